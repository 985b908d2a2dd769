"""Rows of 4-bit blocks that are kept in planes, as in ggml's first files: told by their numbers, read as blocks.

A row of n blocks was, until 11 March 2023 (Q4_0) and 17 March 2023 (Q4_1), n f32 scales and then n times 16 bytes of
codes, with n f32 minimums in front in Q4_1. Programs that went their own way from there kept it longer. With blocks,
scale first, a row has as many bytes, and no file says which it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bestiary.tensor import Tensor
from bestiary_plugins.encodings import Q4_0_V1, Q4_1_V1

T = TypeVar("T")
Rows = NDArray[np.uint8]
PLANES = {Q4_0_V1.name: ((4, 16), (0, 1)), Q4_1_V1.name: ((4, 4, 16), (1, 0, 2))}
"""Encoding of the blocks -> bytes of a block in each plane, and the planes in the order of the block."""
SAMPLED_TENSORS, SAMPLED_ROWS = 16, 4
SMALLEST, LARGEST = 1e-6, 10.0
"""Scales of Q4_0, where they are not 0."""
STEPS = 15.01
"""A minimum is at most 15 scales below 0, and a rounding."""


class PlanarRows(Tensor):
    """A tensor whose rows are planes, as rows of blocks of its encoding: re-blocked as it is read."""

    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base

    def read(self, start: int, stop: int) -> Rows:
        return blocks_of(self._base.read(start, stop), self)


def blocks_of(rows: Rows, tensor: Tensor) -> Rows:
    """Rows of planes -> rows of blocks, both (rows, row_bytes)."""
    sizes, order = PLANES[tensor.encoding.name]
    count, at, planes = tensor.columns // tensor.encoding.block_size, 0, []
    for size in sizes:
        planes.append(rows[:, at:at + count * size].reshape(len(rows), count, size))
        at += count * size
    return np.concatenate([planes[i] for i in order], axis=2).reshape(rows.shape)


def is_planar(tensors: Iterable[Tensor]) -> bool:
    """Whether the rows of these tensors, all of one encoding in PLANES, are planes. Reads a few rows of some of them,
    and counts in how many blocks the scale and the minimum could be some, under both readings. Where both are as good,
    as in rows of zeros, Q4_1 is taken for planes, which are the usual, and Q4_0 for blocks."""
    votes = 0
    some = spread(list(tensors), SAMPLED_TENSORS)
    for tensor in some:
        for row in spread(range(tensor.rows), SAMPLED_ROWS):
            read = tensor.read(row, row + 1)
            votes += likely_blocks(blocks_of(read, tensor), tensor) - likely_blocks(read, tensor)
    return votes > 0 or votes == 0 and bool(some) and some[0].encoding.name == Q4_1_V1.name


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most that many of the items, at even distances."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def likely_blocks(row: Rows, tensor: Tensor) -> int:
    """How many blocks of the row begin with what may be a scale, and a minimum. These programs wrote no negative
    scales, no positive minimums but of blocks that are positive throughout, and zeros for blocks of zeros."""
    numbers = row.reshape(-1, tensor.encoding.block_bytes[0])[:, :-16].copy().view("<f4")  # (blocks, 1 or 2)
    scales = numbers[:, 0]
    with np.errstate(all="ignore"):  # read in the wrong way they are any numbers, or none
        if numbers.shape[1] == 1:
            return int(np.sum((scales > SMALLEST) & (scales < LARGEST) | (scales == 0)))
        minimums = numbers[:, 1]
        return int(np.sum((scales > 0) & (minimums <= 0) & (-minimums <= STEPS * scales)
                          | (scales == 0) & (minimums == 0)))
