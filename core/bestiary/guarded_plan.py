"""A plan whose backend is named for its faults, and whose rows are looked at before anybody uses them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Batch, KVCache, Limits, Plan
from bestiary.contributions import shown
from bestiary.errors import BestiaryError
from bestiary.guard import calling


class GuardedPlan(Plan):
    """Another plan, called under guard. What a forward prints is left alone: to catch it, all threads of the process
    would have to wait for another's forward before they print."""

    def __init__(self, plan: Plan, who: str) -> None:
        self.plan, self.who = plan, who
        self.guard = calling(who, "run")
        """For calls into the plan's caches."""
        with self.guard:
            self.graph, self.limits = plan.graph, plan.limits

    def new_cache(self, limits: Limits | None = None) -> KVCache:
        with self.guard:
            cache: object = self.plan.new_cache(limits)
        if not isinstance(cache, KVCache):
            raise BestiaryError(f"{self.who} gave {shown(cache)}, not a KVCache")
        return cache

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        with self.guard:
            rows = self.plan.forward(batch, cache, output)
        if len(batch.wanted) and getattr(rows, "shape", ())[:1] != (len(batch.wanted),):
            raise BestiaryError(f"{self.who} gave {shown(rows)}, not a row for each of {len(batch.wanted)} tokens")
        return rows

    def close(self) -> None:
        with self.guard:
            self.plan.close()
