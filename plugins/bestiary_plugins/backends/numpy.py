"""The reference backend: every operation of the graph by its numpy meaning; slow and obvious."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend, Batch, KVCache, Limits, Plan, Progress
from bestiary.batch_check import BatchCheck
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Node
from bestiary.guard import calling
from bestiary.named_function import operation
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import Q8_0
from bestiary_plugins.quantizers.q8_0 import reference as q8_0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CacheType:
    """store: (tokens, heads, columns) as they are kept. load: back to float32, of so many columns."""

    store: Callable[[Floats], NDArray[Any]]
    load: Callable[[NDArray[Any], int], Floats]


def _store_q8_0(x: Floats) -> NDArray[np.uint8]:
    """Blocks of 32 columns of a head; the last one is filled with zeros, and counts so many bytes less."""
    columns = x.shape[-1]
    rows = np.pad(x, ((0, 0), (0, 0), (0, -columns % 32))).reshape(-1, columns + -columns % 32)
    return q8_0(rows).reshape(*x.shape[:2], -1)[:, :, :2 * -(-columns // 32) + columns]


def _load_q8_0(blocks: NDArray[np.uint8], columns: int) -> Floats:
    rows = np.pad(blocks, ((0, 0), (0, 0), (0, -columns % 32))).reshape(-1, Q8_0.row_bytes(columns + -columns % 32))
    return Q8_0.decode(rows, columns + -columns % 32).reshape(*blocks.shape[:2], -1)[:, :, :columns]


CACHE_TYPES: Mapping[str, CacheType] = {
    "f32": CacheType(lambda x: x, lambda rows, _: rows),
    "f16": CacheType(lambda x: x.astype(np.float16), lambda rows, _: rows.astype(np.float32)),
    "q8_0": CacheType(_store_q8_0, _load_q8_0),
}


class NumpyCache(KVCache):
    """Keys and values of a layer and sequence: two arrays, (tokens, heads, what a head's columns take)."""

    def __init__(self, limits: Limits) -> None:
        for name in (limits.cache_type_k, limits.cache_type_v):
            if name not in CACHE_TYPES:
                raise BestiaryError(f"unknown cache type {name!r}; the numpy backend knows: {', '.join(CACHE_TYPES)}")
        self.limits = limits
        self.types = (CACHE_TYPES[limits.cache_type_k], CACHE_TYPES[limits.cache_type_v])
        self.rows: dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]] = {}
        self.lengths = [0] * limits.sequences

    def length(self, sequence: int) -> int:
        return self.lengths[self._known(sequence)]

    def _known(self, sequence: int) -> int:
        if not 0 <= sequence < len(self.lengths):
            raise BestiaryError(f"sequence {sequence}; the cache has {len(self.lengths)}")
        return sequence

    def truncate(self, sequence: int, length: int) -> None:
        self.copy(sequence, sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._known(target)
        if not 0 <= length <= self.lengths[self._known(source)]:
            raise BestiaryError(f"sequence {source} holds {self.lengths[source]} tokens, not {length}")
        kept = {layer: (k[:length], v[:length])
                for (layer, sequence), (k, v) in self.rows.items() if sequence == source}
        self.rows = {key: rows for key, rows in self.rows.items() if key[1] != target}
        self.rows.update({(layer, target): rows for layer, rows in kept.items()})
        self.lengths[target] = length

    def append(self, layer: int, sequence: int, k: Floats, v: Floats) -> tuple[Floats, Floats]:
        """k, v: (tokens, heads, columns). Those of the sequence including the new ones, as float32; kept once the
        forward is complete."""
        new = self.types[0].store(k), self.types[1].store(v)
        old = self.rows.get((layer, sequence))
        both = new if old is None else (np.concatenate([old[0], new[0]]), np.concatenate([old[1], new[1]]))
        self.rows[layer, sequence] = both
        return self.types[0].load(both[0], k.shape[-1]), self.types[1].load(both[1], v.shape[-1])

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.rows.values())


class NumpyPlan(Plan):
    """Interprets the nodes one by one."""

    def __init__(self, graph: Graph, weights: dict[str, Floats], limits: Limits) -> None:
        self.graph, self.limits, self.weights = graph, limits, weights
        self._check, self._lock, self._closed = BatchCheck(graph, limits), threading.RLock(), False

    def new_cache(self, limits: Limits | None = None) -> NumpyCache:
        return NumpyCache(limits or self.limits)

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> Floats:
        if not isinstance(cache, NumpyCache):
            raise TypeError("the cache is another backend's")
        if output not in ("hidden", "logits"):
            raise BestiaryError(f"unknown output {output!r}; known: hidden, logits")
        with self._lock:
            if self._closed:
                raise BestiaryError("the plan was closed")
            return self._forward(self._check(batch, len(cache.lengths)), cache, output)

    def close(self) -> None:
        with self._lock:
            self._closed, self.weights = True, {}

    def _forward(self, batch: Batch, cache: NumpyCache, output: str) -> Floats:
        run = Forward(self, batch, cache)
        results: list[Floats] = []
        rows, lengths = dict(cache.rows), list(cache.lengths)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                for node in self.graph.nodes:
                    weights = {part: self.weights[name] for part, name in node.weights.items()}
                    operation = getattr(run, node.op)
                    results.append(operation(node, *(results[i] for i in node.inputs), **weights))
        except BaseException:
            cache.rows, cache.lengths = rows, lengths
            raise
        for sequence in run.groups:
            cache.lengths[sequence] += len(run.groups[sequence])
        return results[self.graph.hidden if output == "hidden" else self.graph.output][batch.wanted]


class Forward:
    """One batch on its way through the graph. A method an operation; x is (tokens, width)."""

    def __init__(self, plan: NumpyPlan, batch: Batch, cache: NumpyCache) -> None:
        self.batch, self.cache, self.plan = batch, cache, plan
        count = len(batch.sequences)
        self.groups = {int(s): np.flatnonzero(batch.sequences == s) for s in np.unique(batch.sequences)}
        self.places = np.zeros(count, np.int64)  # of each token, in the cache of its sequence
        for sequence, tokens in self.groups.items():
            past = cache.length(sequence)
            if past + len(tokens) > cache.limits.context:
                raise BestiaryError(f"the context of {cache.limits.context} tokens is full")
            self.places[tokens] = past + np.arange(len(tokens))

    def input(self, node: Node) -> Floats:
        if self.batch.hidden is None:
            raise BestiaryError("this graph begins with a hidden state, and the batch has none")
        return self.batch.hidden

    def embed(self, node: Node, weight: Floats) -> Floats:
        index = self.batch.tokens if node.params["index"] == "token" else self.batch.positions[0]
        return weight[index]

    def linear(self, node: Node, x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
        y: Floats = x @ weight.T
        return y if bias is None else y + bias

    def rms_norm(self, node: Node, x: Floats, weight: Floats | None = None) -> Floats:
        g = x.reshape(len(x), -1, node.params["group"])  # (tokens, groups, group)
        return normalised(g, node.params["eps"], weight).reshape(x.shape)

    def layer_norm(self, node: Node, x: Floats, weight: Floats | None = None, bias: Floats | None = None) -> Floats:
        g = x.reshape(len(x), -1, node.params["group"])
        g = normalised(g - g.mean(axis=-1, keepdims=True), node.params["eps"], weight)
        return (g if bias is None else g + bias).reshape(x.shape)

    def rope(self, node: Node, x: Floats, factors: Floats | None = None) -> Floats:
        p = node.params
        start, count = p["start"], p["count"]
        turns = p["scaling"] * p["base"] ** (-2.0 * np.arange(count // 2) / count)
        if p["numbers"] or factors is not None:
            turns = turns / np.asarray(p["numbers"] or factors, np.float64)
        angle = self.batch.positions[p["stream"]][:, None, None] * turns  # (tokens, 1, pairs)
        cos, sin = (f(angle).astype(np.float32) * np.float32(p["magnitude"]) for f in (np.cos, np.sin))
        heads = x.reshape(len(x), -1, p["head_dim"]).copy()
        part = heads[:, :, start:start + count]
        half = count // 2
        first, second = ((slice(0, None, 2), slice(1, None, 2)) if p["pairing"] == "adjacent"
                         else (slice(0, half), slice(half, None)))
        a, b = part[:, :, first].copy(), part[:, :, second].copy()
        part[:, :, first] = a * cos - b * sin
        part[:, :, second] = a * sin + b * cos
        return heads.reshape(x.shape)

    def attention(self, node: Node, q: Floats, k: Floats, v: Floats) -> Floats:
        p = node.params
        heads, kv_heads, window, cap = p["heads"], p["kv_heads"], p["window"], p["soft_cap"]
        if node.layer is None:
            raise BestiaryError("attention outside of a layer")
        out = np.empty((len(q), node.width), np.float32)
        for sequence, tokens in self.groups.items():
            keys, values = self.cache.append(node.layer, sequence, *(
                x[tokens].reshape(len(tokens), kv_heads, -1) for x in (k, v)))
            places, past = self.places[tokens], np.arange(len(keys))
            distance = past[None, :] - places[:, None]  # (tokens, past), 0 at the token itself
            seen = distance <= 0
            if window:
                seen &= distance > -window
            if p["mask"] == "prefix":
                prefix = (self.batch.prefixes or {}).get(sequence, 0)
                seen |= (places[:, None] < prefix) & (past[None, :] < prefix)
            qh = q[tokens].reshape(len(tokens), heads, -1)
            kh, vh = (np.repeat(x, heads // kv_heads, axis=1) for x in (keys, values))
            scores = np.einsum("thd,phd->htp", qh, kh) * np.float32(p["scale"])  # (heads, tokens, past)
            if cap:
                scores = np.float32(cap) * np.tanh(scores / np.float32(cap))
            if p["slopes"]:
                scores = scores + np.asarray(p["slopes"], np.float32)[:, None, None] * distance.astype(np.float32)
            scores = np.where(seen, scores, np.float32(-np.inf))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights = weights / weights.sum(axis=-1, keepdims=True)
            out[tokens] = np.einsum("htp,phd->thd", weights, vh).reshape(len(tokens), -1)
        return out

    def moe(self, node: Node, x: Floats, router: Floats, gate: Floats, up: Floats, down: Floats) -> Floats:
        scores = x @ router.T  # (tokens, experts)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
        out = np.zeros_like(x)
        for t, row in enumerate(scores):
            best = np.argsort(-row, kind="stable")[:node.params["top_k"]]
            share = row[best] / row[best].sum() if node.params["normalise"] else row[best]
            for expert, weight in zip(best, share, strict=True):
                out[t] += weight * (down[expert] @ (silu(gate[expert] @ x[t]) * (up[expert] @ x[t])))
        return out

    def silu(self, node: Node, x: Floats) -> Floats:
        return silu(x)

    def gelu(self, node: Node, x: Floats) -> Floats:
        if node.params["form"] == "tanh":
            inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
            below: Floats = np.float32(0.5) * (1 + np.tanh(inner))
        else:
            below = _phi(x).astype(np.float32)
        return x * below

    def add(self, node: Node, a: Floats, b: Floats) -> Floats:
        return a + b

    def mul(self, node: Node, a: Floats, b: Floats) -> Floats:
        return a * b

    def scale(self, node: Node, x: Floats) -> Floats:
        return x * np.float32(node.params["factor"])

    def slice(self, node: Node, x: Floats) -> Floats:
        return x[:, node.params["start"]:node.params["stop"]]

    def order(self, node: Node, x: Floats) -> Floats:
        return x[:, np.asarray(node.params["columns"])]

    def soft_cap(self, node: Node, x: Floats) -> Floats:
        cap = np.float32(node.params["cap"])
        capped: Floats = cap * np.tanh(x / cap)
        return capped

    def call(self, node: Node, *inputs: Floats, **weights: Floats) -> Floats:
        params = dict(node.params)
        function = operation(params.pop("function"))
        with calling(f"operation {node.params['function']}", "run"):
            result = function(*inputs, **weights, **params)
        expected = (len(self.batch.sequences), node.width)
        if getattr(result, "shape", None) != expected:
            raise BestiaryError(f"{node.params['function']} returned shape {getattr(result, 'shape', None)}, "
                                f"not {expected}")
        return np.asarray(result, np.float32)


def normalised(g: Floats, eps: float, weight: Floats | None) -> Floats:
    """g / sqrt(mean(g ** 2) + eps) * weight, over the last axis."""
    size: Floats = np.sqrt(np.mean(g * g, axis=-1, keepdims=True) + np.float32(eps))
    return g / size if weight is None else g / size * weight


def silu(x: Floats) -> Floats:
    y: Floats = x / (1 + np.exp(-x))
    return y


_phi = np.frompyfunc(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))), 1, 1)


class NumpyBackend(Backend):
    """The reference: every weight as float32, every operation by its definition."""

    name = "numpy"
    rank = 0
    orders = True

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *, share: Plan | None = None,
                progress: Progress | None = None) -> NumpyPlan:
        known = share.weights if isinstance(share, NumpyPlan) else {}
        NumpyCache(limits)  # refuses cache types that it does not know, before anything is read
        weights: dict[str, Floats] = {}
        total = sum(tensors[name].nbytes for name in graph.weights)
        done = 0
        for name in graph.weights:
            weights[name] = known[name] if name in known else tensors[name].array()
            done += tensors[name].nbytes
            if progress:
                progress(done, total, "loading")
        return NumpyPlan(graph, weights, limits)
