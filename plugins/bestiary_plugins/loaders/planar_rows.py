"""Rows of the first 4-bit files: all minimums, then all scales, then all codes of a row, where blocks came later.

A row has as many bytes either way; only its content tells which it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bestiary.files import FileTensor
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import Q4_0_V1, Q4_1_V1

SIZE = {Q4_0_V1.name: 20, Q4_1_V1.name: 24}
TENSORS, ROWS = 16, 64
"""So many are looked at, and of each so many rows, spread over it."""
SURE = 15.01
"""A minimum is at most so many scales below zero, where codes go from the smallest weight to the largest."""


class PlanarRows(Tensor):
    """The same rows as blocks, put together as they are read. base: q4_0_v1 or q4_1_v1 by name and size."""

    def __init__(self, base: FileTensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        rows = self._base.read(start, stop)
        blocks = rows.shape[1] // SIZE[self.encoding.name]
        planes = [rows[:, i:i + 4 * blocks].reshape(len(rows), blocks, 4)
                  for i in range(0, rows.shape[1] - 16 * blocks, 4 * blocks)]
        codes = rows[:, -16 * blocks:].reshape(len(rows), blocks, 16)
        # a block begins with its scale; the planes end with the scales
        return np.concatenate([*planes[::-1], codes], axis=2).reshape(rows.shape)


def is_planar(tensors: Iterable[FileTensor]) -> bool:
    """Whether the q4_1_v1 rows of one file are planes. Counts the blocks that have a plausible scale and minimum either
    way; where both are as good (rows of nothing but zeros, no rows) they are planes, the older."""
    votes = 0
    for tensor in islice(tensors, TENSORS):
        for row in sorted({i * (tensor.rows - 1) // (ROWS - 1) for i in range(ROWS)}):
            data = tensor.read(row, row + 1)
            blocks = data.shape[1] // SIZE[tensor.encoding.name]
            planes = data[0, :8 * blocks].view("<f4").reshape(2, blocks)
            inside = data.reshape(blocks, -1)[:, :8].copy().view("<f4")
            votes += plausible(planes[1], planes[0]) - plausible(inside[:, 0], inside[:, 1])
    return votes >= 0


def plausible(scales: NDArray[np.float32], minimums: NDArray[np.float32]) -> int:
    """How many pairs could be a block's: nothing but zeros, or a positive scale and a minimum that it reaches from."""
    with np.errstate(all="ignore"):
        both = (scales > 0) & (minimums <= 0) & (-minimums <= SURE * scales)
    return int((both | (scales == 0) & (minimums == 0)).sum())
