"""How ggml chooses codes for 32 weights, and joins them: nibbles of two codes 16 apart, and a bit of each code."""

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


def by_largest(rows: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Each block by one scale, so that its weight of the largest magnitude is code 0: the scale as f16, (blocks, 2),
    and the codes, (blocks, 32)."""
    blocks = rows.reshape(-1, 32).astype(np.float32, copy=False)
    middle = 1 << bits - 1
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).argmax(axis=1)[:, None]
        scale = np.take_along_axis(blocks, largest, axis=1) / np.float32(-middle)
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        codes = truncated(blocks * inverse + np.float32(middle + 0.5), 2 * middle - 1)
        return scale.astype(np.float16).view(np.uint8), codes


def by_range(rows: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Each block by a scale and a minimum, from its smallest weight to its largest: both as f16, (blocks, 4), and the
    codes, (blocks, 32)."""
    blocks = rows.reshape(-1, 32).astype(np.float32, copy=False)
    last = (1 << bits) - 1
    with np.errstate(all="ignore"):
        minimum = blocks.min(axis=1, keepdims=True)
        scale = (blocks.max(axis=1, keepdims=True) - minimum) / np.float32(last)
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        codes = truncated((blocks - minimum) * inverse + np.float32(0.5), last)
        return np.concatenate([scale, minimum], axis=1).astype(np.float16).view(np.uint8), codes
