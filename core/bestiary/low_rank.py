"""The product of two small matrices as one weight: what an adapter adds (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import F32
from bestiary.errors import BestiaryError
from bestiary.tensor import Tensor

ROWS = 64


class LowRank(Tensor):
    """factor * up @ down, (rows of up, columns of down), or its transpose; computed in float64 and rounded once.

    It is computed by blocks of ROWS rows that always begin at the same ones: a row is the same to the bit whatever
    range of rows it is read in, which a product of matrices of other shapes need not be."""

    def __init__(self, up: Tensor, down: Tensor, factor: float, transposed: bool = False) -> None:
        """Raises BestiaryError where the two are no matrices, or do not fit together."""
        if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0] or 0 in (*up.shape, *down.shape):
            raise BestiaryError(f"matrices of shapes {list(up.shape)} and {list(down.shape)} have no product")
        self.shape = (down.shape[1], up.shape[0]) if transposed else (up.shape[0], down.shape[1])
        self.encoding = F32
        self._up, self._down, self._factor, self._transposed = up, down, factor, transposed

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        out = np.empty((stop - start, self.columns), np.float32)
        small = (self._up if self._transposed else self._down).decode()
        right = (small.T if self._transposed else small).astype(np.float64)  # (rank, columns)
        whole = self._down.decode().T if self._transposed else None
        for first in range(start - start % ROWS, stop, ROWS):
            last = min(first + ROWS, self.rows)
            left = self._up.decode(first, last) if whole is None else whole[first:last]  # (last - first, rank)
            low, high = max(first, start), min(last, stop)
            with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity stay what they are
                product = np.ascontiguousarray(left, np.float64) @ right * self._factor
                out[low - start:high - start] = product[low - first:high - first]
        return out.view(np.uint8).reshape(stop - start, self.row_bytes)
