"""How ggml joins 32 codes: nibbles of two codes 16 apart, and a bit of each code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lower 4 bits: (blocks, 32) -> (blocks, 16), codes 0-15 in the low nibbles."""
    low = codes & np.uint8(15)
    return low[:, :16] | low[:, 16:] << np.uint8(4)


def fifth_bits(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(blocks, 32) -> (blocks, 4): bit i is that of code i."""
    return np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")


def truncated(numbers: NDArray[np.float32], largest: int) -> NDArray[np.uint8]:
    """Numbers to codes 0 ... largest; what is infinite or no number becomes 0."""
    return np.where(np.isfinite(numbers), numbers, np.float32(0)).astype(np.uint8).clip(0, largest)
