"""Learned keys and values before the first token of every sequence, on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend, Batch, KVCache, Limits, Needs, Plan, Progress
from bestiary.graph import Graph, Past
from bestiary.ordering import in_order, say_left
from bestiary.tensor import Tensor


def compiled(backend: Backend, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits,
             progress: Progress | None = None) -> Plan:
    """The backend's plan of the graph; one that fills the cache first where the graph has a past. Weights that hold
    their columns in another order are compiled so where that can be."""
    graph, tensors, left = in_order(graph, tensors, backend)
    say_left(left, backend)
    if graph.past is None:
        return backend.compile(graph, tensors, limits, progress=progress)
    main, room, at_once = parts(graph, graph.past, limits)
    before = backend.compile(graph.past.graph, tensors, at_once)
    return PastPlan(graph, limits, backend.compile(main, tensors, room, progress=progress), before, graph.past)


def needed(backend: Backend, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits) -> Needs | None:
    """What the plan of `compiled` takes; None where the backend does not say."""
    graph, tensors, _ = in_order(graph, tensors, backend)
    if graph.past is None:
        return backend.needs(graph, tensors, limits)
    main, room, at_once = parts(graph, graph.past, limits)
    needs, before = backend.needs(main, tensors, room), backend.needs(graph.past.graph, tensors, at_once)
    return needs and before and replace(needs, weights=needs.weights + before.weights, work=needs.work + before.work)


def parts(graph: Graph, past: Past, limits: Limits) -> tuple[Graph, Limits, Limits]:
    """The graph without its past, its limits, in whose cache the past has room, and those of the past."""
    used = {name for node in graph.nodes for name in node.weights.values()}
    main = replace(graph, past=None, weights={name: shape for name, shape in graph.weights.items() if name in used})
    room = replace(limits, context=limits.context + past.tokens)
    return main, room, replace(room, batch=max(limits.batch, past.tokens))


class PastCache(KVCache):
    """Counts from the first token; beneath it stand those of the past."""

    def __init__(self, inner: KVCache, tokens: int) -> None:
        self.inner, self.tokens = inner, tokens

    def length(self, sequence: int) -> int:
        return max(self.inner.length(sequence) - self.tokens, 0)

    def truncate(self, sequence: int, length: int) -> None:
        self.inner.truncate(sequence, self._beneath(sequence, length))

    def copy(self, source: int, target: int, length: int) -> None:
        self.inner.copy(source, target, self._beneath(source, length))

    def _beneath(self, sequence: int, length: int) -> int:
        return length + self.tokens if length or self.inner.length(sequence) else 0

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


class PastPlan(Plan):
    """A plan over two of a backend: one that puts the past into the cache, and the model itself."""

    def __init__(self, graph: Graph, limits: Limits, plan: Plan, before: Plan, past: Past) -> None:
        self.graph, self.limits, self._plan, self._before, self._past = graph, limits, plan, before, past

    def new_cache(self, limits: Limits | None = None) -> PastCache:
        limits = limits or self.limits
        room = replace(limits, context=limits.context + self._past.tokens)
        return PastCache(self._plan.new_cache(room), self._past.tokens)

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        if not isinstance(cache, PastCache):
            raise TypeError("the cache is another plan's")
        count, filled = self._past.tokens, list[int]()
        for sequence in dict.fromkeys(batch.sequences.tolist()):
            if 0 <= sequence < self.limits.sequences and cache.inner.length(sequence) == 0:
                place = np.arange(count, dtype=np.int32)
                self._before.forward(Batch(np.zeros(count, np.int32), place[None], np.full(count, sequence, np.int32),
                                           np.zeros(0, np.int32)), cache.inner)
                filled.append(sequence)
        prefixes = {sequence: length + count for sequence, length in (batch.prefixes or {}).items() if length}
        try:
            return self._plan.forward(replace(batch, prefixes=prefixes or None), cache.inner, output)
        except BaseException:
            for sequence in filled:
                cache.inner.truncate(sequence, 0)
            raise

    def close(self) -> None:
        self._before.close()
        self._plan.close()
