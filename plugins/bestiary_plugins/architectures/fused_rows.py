"""Queries, keys and values in one matrix, whose rows checkpoints order by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.config import whole
from bestiary.errors import BestiaryError
from bestiary.transform import Transform, check_rows, permuted

if TYPE_CHECKING:
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ByPart(Transform):
    """Rows stand by key head: its queries, the key, the value. Canonical: all queries, all keys, all values."""

    heads: int
    kv_heads: int
    size: int
    back: bool = False

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        count = (self.heads + 2 * self.kv_heads) * self.size
        check_rows(sources, count)
        rows = np.arange(count).reshape(self.kv_heads, -1, self.size)  # (key heads, queries + 2, size)
        order = np.concatenate([part.ravel() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])
        return permuted(sources, np.argsort(order) if self.back else order)

    @property
    def inverse(self) -> ByPart:
        return ByPart(self.heads, self.kv_heads, self.size, not self.back)


def width_and_heads(config: Config) -> tuple[int, int]:
    """Each has two spellings."""
    width = whole(config, "hidden_size", config.get("n_embed"), high=1 << 24)
    heads = whole(config, "num_attention_heads", config.get("n_head"), high=1 << 16)
    if width % heads:
        raise BestiaryError(f"hidden_size = {width} in the config; it must be a multiple of the {heads} heads")
    return width, heads


def by_part(config: Config) -> ByPart:
    """Where every head has a key and a value of its own."""
    width, heads = width_and_heads(config)
    return ByPart(heads, heads, width // heads)
