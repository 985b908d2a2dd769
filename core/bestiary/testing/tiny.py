"""Tiny random models, and the ways to run one that must all give the same logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.architecture import Architecture, PromptLayout
from bestiary.backend import Backend, Batch, KVCache, Limits, Plan
from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.contributions import shown
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.quantizer import Quantizer
from bestiary.tensor import ArrayTensor, BlockTensor, Ordered, Tensor
from bestiary.testing.contract import Broken, expect

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Layout = Callable[[list[int]], PromptLayout]
LIMITS = Limits(64, sequences=3, batch=64, threads=1, cache_type_k="f32", cache_type_v="f32")
GRAIN = np.float32(256)
"""Weights are multiples of 1/256, so that adding a small constant and taking it away again loses nothing."""


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Such that a difference anywhere shows in the logits: norms and biases are not ones and zeros."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if name.endswith(".bias"):
            values *= np.float32(0.3)
        elif len(shape) == 1:
            values = 1 + values * np.float32(0.3)
        elif not name.startswith("token_embd"):
            values *= np.float32(1.5 / np.sqrt(shape[-1]))
        tensors[name] = ArrayTensor(np.rint(values * GRAIN) / GRAIN)
    return tensors


def quantized(tensors: Mapping[str, Tensor], quantizer: Quantizer) -> dict[str, Tensor]:
    """Matrices by the quantizer, where its block divides their rows."""
    made = dict(tensors)
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1 and quantizer.encoding.fits(tensor.columns):
            made[name] = BlockTensor(quantizer.quantize(tensor.decode()), tensor.shape, quantizer.encoding)
    return made


class Shuffled(ArrayTensor):
    """A weight that offers itself with its columns in another order, as the tensor given holds them."""

    def __init__(self, tensor: Tensor, order: NDArray[np.int64]) -> None:
        values = np.empty(tensor.shape, np.float32)
        values[..., order] = tensor.array()
        super().__init__(values)
        self._offer = Ordered(tensor, order)

    @property
    def ordered(self) -> Ordered:
        return self._offer


def shuffled(tensors: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Matrices as they offer themselves in an order of columns, the same for all of one width."""
    return {name: tensor if len(tensor.shape) < 2 else Shuffled(
        tensor, np.random.default_rng(seed).permutation(tensor.columns)) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Model:
    """A tiny model. checkpoint: canonical, its config normalised. given: the config it was made from."""

    given: Mapping[str, Any]
    checkpoint: Checkpoint
    graph: Graph
    layout: Layout

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.checkpoint.tensors


def make_model(architecture: Architecture, config: Mapping[str, Any], seed: int = 0) -> Model:
    """A random model of the family, with just the weights that its graph declares."""
    from pathlib import Path

    normal = architecture.normalise(dict(config), {})
    expect("max_position_embeddings" in normal, "a normalised config says max_position_embeddings, the context that "
                                                "the model was made for")
    graph, again = (architecture.graph(normal, normal["max_position_embeddings"]) for _ in range(2))
    expect(again == graph, f"graph() of {architecture.name} gives another graph when it is called again with the same "
                           "config; does it depend on the order of a set, on chance, or on what it keeps?")
    derived = architecture.derived(normal)
    shapes = {name: shape for name, shape in graph.weights.items() if name not in derived}
    raw = Checkpoint(Path("tiny"), dict(config), random_weights(shapes, seed), CANONICAL, TokenizerMaterial())
    checkpoint, graph = to_canonical(raw, architecture)
    return Model(dict(config), checkpoint, graph, partial(architecture.layout, config=checkpoint.config))


def counting(ids: list[int]) -> PromptLayout:
    """The layout of most families: one stream that counts."""
    return PromptLayout((tuple(range(len(ids))),), next=(len(ids),), step=(1,))


class Piece(NamedTuple):
    """Tokens start..stop-1 of a sequence, whose ids are all given."""

    sequence: int
    ids: Ids
    start: int
    stop: int


class Runs:
    """A plan, and ways to run ids through it."""

    def __init__(self, plan: Plan, layout: Layout = counting) -> None:
        self.plan, self.layout = plan, layout

    def batch(self, *pieces: Piece, wanted: Sequence[int] | None = None, hidden: Floats | None = None) -> Batch:
        layouts = [self.layout(piece.ids.tolist()) for piece in pieces]
        positions = [np.asarray(layout.positions, np.int32).reshape(-1, len(piece.ids))[:, piece.start:piece.stop]
                     for piece, layout in zip(pieces, layouts, strict=True)]
        sequences = [np.full(piece.stop - piece.start, piece.sequence, np.int32) for piece in pieces]
        count = sum(map(len, sequences))
        prefixes = {piece.sequence: layout.prefix for piece, layout in zip(pieces, layouts, strict=True)
                    if layout.prefix}
        return Batch(None if hidden is not None else np.concatenate([p.ids[p.start:p.stop] for p in pieces]),
                     np.ascontiguousarray(np.concatenate(positions, axis=1)), np.concatenate(sequences),
                     np.asarray(range(count) if wanted is None else wanted, np.int32), hidden, prefixes or None)

    def forward(self, cache: KVCache, *pieces: Piece, wanted: Sequence[int] | None = None,
                output: str = "logits") -> Floats:
        return self.run(self.batch(*pieces, wanted=wanted), cache, output)

    def run(self, batch: Batch, cache: KVCache, output: str = "logits") -> Floats:
        """A forward, and whether it gives what such a one must."""
        rows: object = self.plan.forward(batch, cache, output)
        graph = self.plan.graph
        needed = len(batch.wanted), graph.nodes[graph.output if output == "logits" else graph.hidden].width
        found = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else shown(rows)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != needed:
            raise Broken(f"forward() gives {found} for the output {output!r}; needed: float32 of shape {needed}")
        return rows

    def prefix(self, ids: Ids) -> int:
        return self.layout(ids.tolist()).prefix

    def prefill(self, ids: Ids) -> Floats:
        return self.forward(self.plan.new_cache(), Piece(0, ids, 0, len(ids)))

    def in_pieces(self, ids: Ids, sizes: Sequence[int], cache: KVCache | None = None, sequence: int = 0) -> Floats:
        """In pieces of these sizes, the last one repeated; the first holds at least the prefix."""
        cache = self.plan.new_cache() if cache is None else cache
        at = cache.length(sequence)
        left, rows = list(sizes), []
        while at < len(ids):
            size = left.pop(0) if len(left) > 1 else left[0]
            stop = min(max(at + size, self.prefix(ids) if at == 0 else 0), len(ids))
            rows.append(self.forward(cache, Piece(sequence, ids, at, stop)))
            at = stop
        return np.concatenate(rows)

    def beside_others(self, prompts: Sequence[Ids]) -> list[Floats]:
        """Several sequences, in forwards that hold a few tokens of each, token by token in turn."""
        cache, done = self.plan.new_cache(), [0] * len(prompts)
        rows: list[list[Floats]] = [[] for _ in prompts]
        while any(at < len(ids) for at, ids in zip(done, prompts, strict=True)):
            pieces: list[Piece] = []
            for s, ids in enumerate(prompts):
                stop = min(max(done[s] + 3 + s, self.prefix(ids) if done[s] == 0 else 0), len(ids))
                pieces += [Piece(s, ids, at, at + 1) for at in range(done[s], stop)]
                done[s] = stop
            pieces.sort(key=lambda piece: piece.start)  # stable: the sequences stand mixed
            for piece, row in zip(pieces, self.forward(cache, *pieces), strict=True):
                rows[piece.sequence].append(row)
        return [np.stack(found) for found in rows]

    def after_truncating(self, ids: Ids, others: Ids) -> Floats:
        """Runs on from the first half, after other tokens stood in place of the second."""
        cache, half = self.plan.new_cache(), max(len(ids) // 2, self.prefix(ids))
        start = self.forward(cache, Piece(0, ids, 0, half))
        mixed = np.concatenate([ids[:half], others])[:len(ids)]
        if len(mixed) > half and self.prefix(mixed) == self.prefix(ids):
            self.forward(cache, Piece(0, mixed, half, len(mixed)))
        cache.truncate(0, half)
        expect(cache.length(0) == half, f"a sequence truncated to {half} tokens has the length {cache.length(0)}")
        return np.concatenate([start, self.in_pieces(ids, [4], cache)]) if half < len(ids) else start

    def after_copying(self, ids: Ids) -> Floats:
        """Runs the first half as one sequence and goes on as another."""
        cache, half = self.plan.new_cache(), max(len(ids) // 2, self.prefix(ids))
        start = self.forward(cache, Piece(0, ids, 0, half))
        cache.copy(0, 1, half)
        expect((cache.length(0), cache.length(1)) == (half, half), "a copy of a sequence has another length")
        cache.truncate(0, 0)
        return np.concatenate([start, self.in_pieces(ids, [4], cache, 1)]) if half < len(ids) else start

    def every_way(self, ids: Ids, others: Sequence[Ids]) -> dict[str, Floats]:
        """The logits of the ids in all ways that must agree, by what the way is called."""
        return {"one by one": self.in_pieces(ids, [1]), "in pieces of 5, 1, 7 and 2": self.in_pieces(ids, [5, 1, 7, 2]),
                "beside others": self.beside_others([ids, *others])[0],
                "after truncating": self.after_truncating(ids, others[0]), "after copying": self.after_copying(ids)}


def difference(found: Floats, wanted: Floats) -> float:
    """The largest difference, as a share of the spread of what is wanted."""
    if found.shape != wanted.shape:
        raise Broken(f"logits of shape {found.shape}; expected: {wanted.shape}")
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / max(float(np.ptp(wanted)), 1e-30)) if found.size else 0.0


def random_ids(vocabulary: int, count: int, seed: int = 1) -> Ids:
    return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.int32)


def running_backends(host: Host, names: Sequence[str] | None = None) -> dict[str, Backend]:
    """Those that run here, of the names or of all."""
    found = {name: host.backends[name] for name in (host.backends if names is None else names)}
    return {name: backend for name, backend in found.items() if host.unavailable(backend) is None}
