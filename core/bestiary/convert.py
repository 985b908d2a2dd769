"""A checkpoint and a recipe to a checkpoint of other types, lazily: writing it is what converts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.checkpoint import Checkpoint
from bestiary.encoding import F16, F32
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.guard import calling
from bestiary.host import Host
from bestiary.ordering import Decoded
from bestiary.quantizer import Quantizer
from bestiary.recode import Recoded, Rounding, recoding
from bestiary.tensor import Tensor, rows_of
from bestiary.transform import Widened

log = logging.getLogger("bestiary")


@dataclass(frozen=True)
class Recipe:
    """Which weights get which quantizer: ordered (pattern, quantizer's name); the first that matches a canonical name
    in full decides. Vectors stay f32 whatever it says. The model's output matrix answers to "output.weight" even
    where it is the embedding.

    requantize: whether a quantized weight may be decoded and quantized again, which adds the errors of both. To decode
    it to a plain type loses nothing, and needs no leave; so too where the type holds the codes that there are. keeps:
    rules that come before the others, but for weights whose codes the type of the others holds: those gain nothing.
    """

    rules: tuple[tuple[str, str], ...]
    requantize: bool = False
    keeps: tuple[tuple[str, str], ...] = ()

    def choose(self, name: str, kept: bool = True) -> str:
        for pattern, quantizer in (*(self.keeps if kept else ()), *self.rules):
            if re.fullmatch(pattern, name):
                return quantizer
        raise BestiaryError(f"the recipe says nothing about {name}")


def recipe_for(quantizer: Quantizer, pure: bool = False, requantize: bool = False) -> Recipe:
    """Everything in one type, but for what the quantizer better leaves at another (unless `pure`)."""
    kept = () if pure else tuple((re.escape(name), other) for name, other in quantizer.keeps)
    return Recipe(((".*", quantizer.name),), requantize, kept)


class Quantized(Tensor):
    """A weight in another encoding, quantized as it is read."""

    def __init__(self, base: Tensor, quantizer: Quantizer, name: str, guard: calling) -> None:
        self.shape, self.encoding = base.shape, quantizer.encoding
        self._base, self._quantizer, self._name = base, quantizer, name
        self._guard = guard.also(f"quantize {name}")

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        rows = self._base.decode(start, stop)
        try:
            with self._guard:
                blocks: object = self._quantizer.quantize(rows)
        except BestiaryError as error:
            raise BestiaryError(f"tensor {self._name}: {error}") from None
        return rows_of(blocks, self, start, stop, f"tensor {self._name}: {self._guard.who}")


def choices(checkpoint: Checkpoint, graph: Graph, recipe: Recipe, host: Host) -> tuple[dict[str, Quantizer], list[str]]:
    """The quantizer of each weight, and the kinds of weights that cannot have the recipe's, in words, one a weight."""
    output = graph.nodes[graph.output].weights.get("weight")
    nodes = (*graph.nodes, *(graph.past.graph.nodes if graph.past else ()))
    by_position = {node.weights["weight"] for node in nodes
                   if node.op == "embed" and node.params["index"] == "position"}
    chosen: dict[str, Quantizer] = {}
    left: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        called = "output.weight" if name == output else name
        quantizer, plainly = (host.quantizers[recipe.choose(called, kept)] for kept in (True, False))
        if quantizer is not plainly and recoding(tensor.encoding, plainly.encoding, tensor.columns):
            quantizer = plainly
        if len(tensor.shape) < 2:
            quantizer = host.quantizers[F32.name]
        elif name in by_position and quantizer.encoding.quantized:  # few rows, of which each token sees one or all
            quantizer = host.quantizers[F16.name]
        elif not quantizer.encoding.fits(tensor.columns):
            quantizer = host.quantizers[F16.name]
            left.append(f"{re.sub('[.][0-9]+[.]', '.*.', name)} (rows of {tensor.columns})")
        chosen[name] = quantizer
    return chosen, left


def convert(checkpoint: Checkpoint, graph: Graph, recipe: Recipe, host: Host,
            rounding: Rounding | None = None) -> Checkpoint:
    """A view of the canonical checkpoint in the types of the recipe. Codes that a type has room for are kept. Raises
    BestiaryError where quantized weights would be quantized again without leave."""
    rounding = rounding or Rounding()
    guards: dict[str, calling] = {}
    tensors: dict[str, Tensor] = {}
    again: list[str] = []
    chosen, left = choices(checkpoint, graph, recipe, host)
    for name, tensor in checkpoint.tensors.items():
        quantizer = chosen[name]
        if tensor.encoding == quantizer.encoding:
            tensors[name] = tensor if tensor.ordered is None else Decoded(tensor)
            continue
        if (how := recoding(tensor.encoding, quantizer.encoding, tensor.columns)) is not None:
            tensors[name] = Recoded(tensor, how, name, rounding)
            continue
        if quantizer.encoding.quantized and (first := tensor.quantized_as) is not None:
            decoded = f", decoded to {tensor.encoding.name}," * (not tensor.encoding.quantized)
            again.append(f"{name} from {first.name}{decoded} to {quantizer.name}")
        guard = guards.setdefault(quantizer.name, host.calling(quantizer, "quantize"))
        tensors[name] = Quantized(tensor, quantizer, name, guard)
    if again:
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        line = f"quantized already: {again[0]}{more}. What they lost does not come back, and a smaller type loses more"
        if not recipe.requantize:
            raise BestiaryError(f"{line}: start from the unquantized model, or say --allow-requantize")
        log.warning("%s", line)
    if left:
        log.warning("%d tensors are kept as f16, because the block does not divide their rows: %s", len(left),
                    ", ".join(dict.fromkeys(left)))
    anew: Callable[..., Checkpoint] = partial(_again, recipe, host, graph)
    return checkpoint.having(tensors=tensors, source=(anew, (checkpoint,)))


def vectors_widened(checkpoint: Checkpoint) -> Checkpoint:
    """A view of the canonical checkpoint, each weight in its own type, but for vectors: they are f32 in every file, and
    there are programs that multiply with no others."""
    return checkpoint.having(source=(vectors_widened, (checkpoint,)), tensors={
        name: tensor if len(tensor.shape) > 1 or tensor.encoding == F32 else Widened(tensor)
        for name, tensor in checkpoint.tensors.items()})


def _again(recipe: Recipe, host: Host, graph: Graph, checkpoint: Checkpoint) -> Checkpoint:
    return convert(checkpoint, graph, recipe, host)


def types(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Tensors, weights and bytes of each encoding, the largest first."""
    counts: dict[str, dict[str, Any]] = {}
    for tensor in checkpoint.tensors.values():
        entry = counts.setdefault(tensor.encoding.name, {"tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += tensor.rows * tensor.columns
        entry["bytes"] += tensor.nbytes
    return dict(sorted(counts.items(), key=lambda item: -item[1]["bytes"]))
