"""How fast a model runs: tokens a second in prefill and in decode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Batch, KVCache
from bestiary.errors import BestiaryError
from bestiary.model import Model

SEED = 1
SHORTEST = 0.05
"""Seconds that a run takes at least."""


@dataclass(frozen=True)
class Measurement:
    """test: "prefill" or "decode". tokens: of a sequence. depth: tokens that are in the context before. runs: tokens a
    second of all sequences together, one a repetition."""

    test: str
    tokens: int
    depth: int
    sequences: int
    runs: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.runs)


class Bench:
    """Measures one loaded model; its limits must hold depth + tokens. Prompts are random ids, always the same ones;
    decoding takes the likeliest token."""

    def __init__(self, model: Model, depth: int = 0, sequences: int = 1) -> None:
        if depth < 0 or sequences < 1:
            raise BestiaryError(f"depth = {depth}, sequences = {sequences}; 0 and 1 are the least")
        self.model, self.depth, self.sequences = model, depth, sequences

    def prefill(self, tokens: int, repeats: int = 3) -> Measurement:
        """`tokens` of one sequence, in batches, after `depth` others."""
        return self._measure("prefill", tokens, 1, repeats, self._prompt)

    def decode(self, tokens: int, repeats: int = 3) -> Measurement:
        """`tokens` one after the other, of all sequences together."""
        return self._measure("decode", tokens, self.sequences, repeats, self._generate)

    def _measure(self, test: str, tokens: int, sequences: int, repeats: int,
                 work: Callable[[Cache, int], None]) -> Measurement:
        limits = self.model.plan.limits
        if tokens < 1 or self.depth + tokens > limits.context:
            raise BestiaryError(f"{tokens} tokens at a depth of {self.depth}; the context holds {limits.context}")
        cache = Cache(self.model, sequences, self.depth)
        work(cache, tokens)  # once before, so that code, weights and cache are warm
        runs = []
        for _ in range(repeats):
            done, started = 0, time.perf_counter()
            while not done or time.perf_counter() - started < SHORTEST:  # a small model is done before a clock can tell
                cache.rewind()
                work(cache, tokens)
                done += tokens
            runs.append(sequences * done / (time.perf_counter() - started))
        return Measurement(test, tokens, self.depth, sequences, tuple(runs))

    def _prompt(self, cache: Cache, tokens: int) -> None:
        cache.fill([0], tokens)

    def _generate(self, cache: Cache, tokens: int) -> None:
        chosen: NDArray[np.int32] = np.full(len(cache.places), cache.ids[-1], np.int32)
        for i in range(tokens):
            chosen = np.argmax(cache.step(chosen, i), axis=1).astype(np.int32)


class Cache:
    """Sequences filled with `depth` random tokens, that go back to it."""

    def __init__(self, model: Model, sequences: int, depth: int) -> None:
        self.model, self.depth = model, depth
        self.places = range(sequences)
        vocabulary = model.plan.graph.vocabulary
        self.ids = np.random.default_rng(SEED).integers(0, vocabulary, model.plan.limits.context).astype(np.int32)
        layout = model.layout(self.ids.tolist())
        self.positions = np.asarray(layout.positions, np.int32)  # (streams, context)
        self.prefixes = {place: layout.prefix for place in self.places} if layout.prefix else None
        self.plan = model.engine.plan
        self.cache: KVCache = self.plan.new_cache()
        self.fill([*self.places], depth, 0)

    def rewind(self) -> None:
        for place in self.places:
            with self.plan.guard:
                self.cache.truncate(place, self.depth)

    def fill(self, places: Sequence[int], tokens: int, start: int | None = None) -> None:
        """Puts `tokens` into each sequence, from `depth` on."""
        start = self.depth if start is None else start
        for place in places:
            for first in range(start, start + tokens, self.model.plan.limits.batch):
                last = min(first + self.model.plan.limits.batch, start + tokens)
                wanted = np.array([last - first - 1] if last == start + tokens else [], np.int32)
                self.plan.forward(Batch(
                    self.ids[first:last], self.positions[:, first:last], np.full(last - first, place, np.int32), wanted,
                    prefixes=self.prefixes), self.cache)

    def step(self, tokens: NDArray[np.int32], i: int) -> NDArray[np.float32]:
        """One token for each sequence, the i-th after `depth` -> logits, (sequences, vocabulary)."""
        places = np.array(self.places, np.int32)
        positions = np.repeat(self.positions[:, self.depth + i:self.depth + i + 1], len(places), axis=1)
        batch = Batch(tokens, positions, places, np.arange(len(places), dtype=np.int32), prefixes=self.prefixes)
        return self.plan.forward(batch, self.cache)
