"""Small random models for the tests of the backends, made on the spot; no size is one that a tile divides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, KVCache, Limits, Plan
from bestiary.graph import Graph, Trace, Value
from bestiary.quantizer import Quantizer
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads share the work in another way than two, on whatever machine."""
    monkeypatch.setenv("BESTIARY_OVERSUBSCRIBE", "1")


class Lab:
    """Makes graphs, weights and batches."""

    def llama(self, *, hidden: int = 96, ffn: int = 224, vocabulary: int = 199, heads: int = 6, kv_heads: int = 2,
              head_dim: int = 16, layers: int = 2, tied: bool = False, bias: bool = True,
              attention: Mapping[str, Any] | None = None, rope: Mapping[str, Any] | None = None) -> Graph:
        g = Trace()
        x = g.embed("token_embd", vocabulary, hidden)
        for i in g.layers(layers):
            h = g.rms_norm(x, f"{i}.attn_norm", 1e-5)
            q = g.linear(h, f"{i}.q", heads * head_dim, bias=f"{i}.q_bias" if bias else None)
            k, v = g.linear(h, f"{i}.k", kv_heads * head_dim), g.linear(h, f"{i}.v", kv_heads * head_dim)
            q, k = (g.rope(part, head_dim, 10000.0, **(rope or {})) for part in (q, k))
            a = g.attention(q, k, v, heads, kv_heads, **(attention or {}))
            x = g.add(x, g.linear(a, f"{i}.o", hidden))
            h = g.rms_norm(x, f"{i}.ffn_norm", 1e-5)
            gate, up = g.linear(h, f"{i}.gate", ffn), g.linear(h, f"{i}.up", ffn)
            x = g.add(x, g.linear(g.mul(g.silu(gate), up), f"{i}.down", hidden))
        x = g.rms_norm(x, "output_norm", 1e-5)
        return g.finish(g.linear(x, "token_embd" if tied else "output", vocabulary), x,
                        prefix_mask=(attention or {}).get("mask") == "prefix")

    def single(self, weight: Tensor, rows: Floats, operation: str = "linear") -> tuple[Graph, dict[str, Tensor]]:
        """rows, looked up by token id, times one weight."""
        g = Trace()
        x = g.embed("rows", *rows.shape)
        y = g.linear(x, "weight", weight.shape[0])
        return g.finish(y, y), {"rows": ArrayTensor(rows), "weight": weight}

    def function(self, apply: Any, rows: Floats) -> tuple[Graph, dict[str, Tensor]]:
        """apply(trace, value) over rows, looked up by token id."""
        g = Trace()
        y: Value = apply(g, g.embed("rows", *rows.shape))
        return g.finish(y, y), {"rows": ArrayTensor(rows)}

    def weights(self, graph: Graph, quantizer: Quantizer, seed: int = 0) -> dict[str, Tensor]:
        """Random weights; matrices by the quantizer, where its block divides them."""
        random = np.random.default_rng(seed)
        tensors: dict[str, Tensor] = {}
        for name, shape in graph.weights.items():
            w = random.standard_normal(shape).astype(np.float32)
            if len(shape) == 1:
                tensors[name] = ArrayTensor(w * np.float32(0.3) + 1)
                continue
            w *= np.float32(1 if name == "token_embd" else 1.5 / np.sqrt(shape[-1]))
            if not quantizer.encoding.fits(shape[-1]):
                tensors[name] = ArrayTensor(w)
                continue
            blocks = quantizer.quantize(w.reshape(-1, shape[-1]))
            tensors[name] = BlockTensor(blocks, tuple(shape), quantizer.encoding)
        return tensors

    def batch(self, ids: Sequence[int] | NDArray[np.integer[Any]], start: int = 0, *, sequence: int = 0,
              wanted: Sequence[int] | None = None, **more: Any) -> Batch:
        n = len(ids)
        return Batch(np.asarray(ids, np.int32), np.arange(start, start + n, dtype=np.int32)[None],
                     np.full(n, sequence, np.int32),
                     np.asarray(range(n) if wanted is None else wanted, np.int32), **more)

    def ids(self, count: int, vocabulary: int = 199, seed: int = 1) -> NDArray[np.int32]:
        return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.int32)

    def prefill(self, plan: Plan, ids: NDArray[np.int32], cache: KVCache | None = None) -> Floats:
        return plan.forward(self.batch(ids), cache or plan.new_cache())

    def in_pieces(self, plan: Plan, ids: NDArray[np.int32], sizes: Sequence[int]) -> Floats:
        """The prompt in pieces of these sizes, the last one repeated."""
        cache, results, at = plan.new_cache(), [], 0
        left = list(sizes)
        while at < len(ids):
            size = left.pop(0) if len(left) > 1 else left[0]
            results.append(plan.forward(self.batch(ids[at:at + size], at), cache))
            at += size
        return np.concatenate(results)

    def limits(self, **given: Any) -> Limits:
        return Limits(**({"context": 1024, "batch": 1024, "threads": 1, "sequences": 4} | given))


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()
