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
            self._widths = {"logits": plan.graph.vocabulary, "hidden": plan.graph.nodes[plan.graph.hidden].width}

    def new_cache(self, limits: Limits | None = None) -> KVCache:
        with self.guard:
            cache: object = self.plan.new_cache(limits)
        if not isinstance(cache, KVCache):
            raise BestiaryError(f"{self.who} gave {shown(cache)}, not a KVCache")
        return cache

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        with self.guard:
            rows: object = self.plan.forward(batch, cache, output)
        wanted = (len(batch.wanted), self._widths[output])
        if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.shape != wanted:
            if wanted[0]:
                raise BestiaryError(f"{self.who} gave {shown(rows)}, not float32 of shape {wanted}: a row for each of "
                                    f"{wanted[0]} tokens")
            return np.empty(wanted, np.float32)
        return rows

    def close(self) -> None:
        with self.guard:
            self.plan.close()
