"""The scheduler: requests in, token streams out; prefill in chunks beside running decodes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bestiary.architecture import PromptLayout
from bestiary.backend import Batch, Plan
from bestiary.errors import BestiaryError, ContextFull
from bestiary.guard import whose
from bestiary.guarded_plan import GuardedPlan
from bestiary.sampling import Chooser, Sampling

Placed = tuple[int, ...]
"""A token's id, and its position in each stream."""


@dataclass(frozen=True)
class Request:
    """ids: the prompt. max_tokens: -1 for as many as fit. ends: ids that end the answer. banned: ids never chosen."""

    ids: tuple[int, ...]
    max_tokens: int = -1
    sampling: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    banned: frozenset[int] = frozenset()


class Generation:
    """One request on its way. reason: why it ended: "end" (an end-of-generation token), "length" (max_tokens),
    "context" (the context is full), "cancelled"; None while it runs. tokens: what was generated, the ending id not
    included. reused: tokens of the prompt that were in the cache already."""

    def __init__(self, request: Request, layout: PromptLayout) -> None:
        self.request, self.layout = request, layout
        self.chooser = Chooser(request.sampling, sorted(request.banned))
        self.ids = list(request.ids)  # the prompt, then what was generated
        self.reason: str | None = None
        self.sequence: int | None = None
        self.done = 0  # tokens that are in the cache
        self.reused = 0
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self.last_token: float | None = None

    @property
    def tokens(self) -> list[int]:
        return self.ids[len(self.request.ids):]

    def positions(self, start: int, stop: int) -> NDArray[np.int32]:
        """(streams, stop - start): of the tokens start..stop-1, the prompt's or those after it."""
        prompt = len(self.request.ids)
        return np.array([[stream[i] if i < prompt else first + (i - prompt) * step for i in range(start, stop)]
                         for stream, first, step in zip(self.layout.positions, self.layout.next, self.layout.step,
                                                        strict=True)], np.int32)

    def placed(self, start: int, stop: int) -> list[Placed]:
        """The tokens start..stop-1, each with where it stands."""
        return list(zip(self.ids[start:stop], *self.positions(start, stop).tolist(), strict=True))


class Engine:
    """Runs requests over one plan, as many at a time as its limits have sequences; the others wait their turn. Threads
    may share it: `lock` is held for each forward, and by whoever else uses the plan."""

    def __init__(self, plan: Plan, layout: Callable[[list[int]], PromptLayout], who: str | None = None) -> None:
        """who: whose plan it is, in words."""
        self.plan, self._layout = GuardedPlan(plan, whose(plan) if who is None else who), layout
        self.cache = self.plan.new_cache()
        self.lock = threading.RLock()
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._held: list[list[Placed]] = [[] for _ in range(plan.limits.sequences)]  # the tokens each sequence holds

    def submit(self, request: Request) -> Generation:
        """Queues a request. Raises BestiaryError where it can never run."""
        if not request.ids:
            raise BestiaryError("an empty prompt, and a model without a token to begin a text with")
        if len(request.ids) >= self.plan.limits.context + (request.max_tokens == 0):
            raise ContextFull(f"the prompt has {len(request.ids)} tokens; the context holds "
                              f"{self.plan.limits.context}")
        vocabulary = self.plan.graph.vocabulary
        bad = [i for i in request.ids if not 0 <= i < vocabulary]
        if bad:
            raise BestiaryError(f"token {bad[0]} is outside of the model's vocabulary of {vocabulary}")
        generation = Generation(request, self._layout(list(request.ids)))
        if max(generation.layout.prefix, 1) > self.plan.limits.batch:
            raise BestiaryError(f"a prefix of {generation.layout.prefix} tokens takes one forward; the limit is "
                                f"{self.plan.limits.batch}")
        with self.lock:
            self._waiting.append(generation)
        return generation

    def cancel(self, generation: Generation) -> None:
        """Ends a generation now; what its sequence holds may still be reused."""
        with self.lock:
            if generation.reason is None:
                self._finish(generation, "cancelled")

    def run(self, generation: Generation) -> Iterator[int]:
        """The tokens of one generation as they come; steps the whole engine meanwhile."""
        given = len(generation.request.ids)
        while generation.reason is None or given < len(generation.ids):
            if given < len(generation.ids):
                given += 1
                yield generation.ids[given - 1]
            else:
                with self.lock:
                    if generation.reason is None and given == len(generation.ids):  # nobody else did it meanwhile
                        self.step()

    def step(self) -> list[Generation]:
        """One forward: a token for each running sequence and prompt tokens up to the batch's limit. Returns the
        generations that got a token or ended."""
        with self.lock:
            return self._step()

    def _step(self) -> list[Generation]:
        self._admit()
        room = self.plan.limits.batch
        parts: list[tuple[Generation, int]] = []
        # Decodes first: each needs one token only, and somebody is reading it.
        for generation in sorted(self._running, key=lambda g: len(g.ids) - g.done):
            left = len(generation.ids) - generation.done
            if generation.layout.prefix > generation.done and generation.layout.prefix > room:
                continue  # its prefix takes one forward: the next
            count = min(left, room)
            if count:
                parts.append((generation, count))
                room -= count
        if not parts:
            return []
        try:
            logits = self.plan.forward(self._batch(parts), self.cache)
        except BaseException:
            for generation, _ in parts:
                self._finish(generation, "cancelled")
            raise
        changed, row = [], 0
        for generation, count in parts:
            held = self._held[self._place(generation)]
            held.extend(generation.placed(generation.done, generation.done + count))
            generation.done += count
            if generation.done == len(generation.ids):
                self._advance(generation, logits[row])
                row += 1
                changed.append(generation)
        return changed

    def _advance(self, generation: Generation, logits: NDArray[np.float32]) -> None:
        request = generation.request
        generation.last_token = time.perf_counter()
        generation.first_token = generation.first_token or generation.last_token
        if request.max_tokens == 0:
            return self._finish(generation, "length")
        token = generation.chooser.choose(logits, generation.ids)
        if token in request.ends:
            return self._finish(generation, "end")
        generation.ids.append(token)
        if len(generation.ids) - len(request.ids) == request.max_tokens:
            return self._finish(generation, "length")
        if len(generation.ids) > self.plan.limits.context:
            return self._finish(generation, "context")
        return None

    def _batch(self, parts: list[tuple[Generation, int]]) -> Batch:
        tokens, positions, sequences, wanted = [], [], [], []
        prefixes = {}
        for generation, count in parts:
            stop = generation.done + count
            tokens += generation.ids[generation.done:stop]
            positions.append(generation.positions(generation.done, stop))
            sequences += [self._place(generation)] * count
            if stop == len(generation.ids):
                wanted.append(len(tokens) - 1)
            if generation.layout.prefix:
                prefixes[self._place(generation)] = generation.layout.prefix
        return Batch(np.array(tokens, np.int32), np.concatenate(positions, axis=1), np.array(sequences, np.int32),
                     np.array(wanted, np.int32), prefixes=prefixes or None)

    def _place(self, generation: Generation) -> int:
        if generation.sequence is None:
            raise RuntimeError("the generation has no sequence yet")
        return generation.sequence

    def _admit(self) -> None:
        if not self._waiting:
            return
        free = set(range(len(self._held))) - {generation.sequence for generation in self._running}
        while self._waiting and free:
            generation = self._waiting.popleft()
            asked = generation.placed(0, len(generation.request.ids))
            # The sequence that shares the longest beginning; among equals the one that holds least.
            place = max(free, key=lambda s: (self._shared(asked, s), -len(self._held[s])))
            shared = self._shared(asked, place)
            with self.plan.guard:
                self.cache.truncate(place, shared)
            del self._held[place][shared:]
            generation.sequence, generation.done, generation.reused = place, shared, shared
            self._running.append(generation)
            free.remove(place)

    def _shared(self, asked: list[Placed], place: int) -> int:
        """Tokens of the prompt that the sequence holds already, where they stand in the prompt; the last one is run
        again for its logits. None where a prefix sees itself in both directions."""
        if self.plan.graph.prefix_mask:
            return 0
        held, count = self._held[place], 0
        while count < min(len(held), len(asked) - 1) and held[count] == asked[count]:
            count += 1
        return count

    def _finish(self, generation: Generation, reason: str) -> None:
        generation.reason = reason
        if generation in self._running:
            self._running.remove(generation)
        if generation in self._waiting:
            self._waiting.remove(generation)
