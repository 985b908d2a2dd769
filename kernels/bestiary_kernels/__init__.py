"""The compiled kernels: packed matrices, the programs that use them, their cache, and quantizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bestiary_kernels._native import (
    Cache,
    Layout,
    Matrix,
    Program,
    isas,
    quantize_q4_0_into,
    quantize_q4_1_into,
    quantize_q5_0_into,
    quantize_q5_1_into,
    quantize_q8_0_into,
    usable_threads,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cache", "Layout", "Matrix", "Program", "isas", "quantize_q4_0", "quantize_q4_1", "quantize_q5_0",
           "quantize_q5_1", "quantize_q8_0", "usable_threads"]


def _quantized(into: Callable[[NDArray[np.float32], NDArray[np.uint8]], None], block_bytes: int,
               rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    import numpy as np

    values = np.ascontiguousarray(rows, dtype=np.float32)
    out = np.empty((values.shape[0], values.shape[1] // 32 * block_bytes), np.uint8)
    into(values, out)
    return out


def quantize_q8_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, columns / 32 * 34) uint8. Raises ValueError where 32 does not divide a row."""
    return _quantized(quantize_q8_0_into, 34, rows)


def quantize_q4_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, columns / 32 * 18) uint8. Raises ValueError where 32 does not divide a row."""
    return _quantized(quantize_q4_0_into, 18, rows)


def quantize_q4_1(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, columns / 32 * 20) uint8. Raises ValueError where 32 does not divide a row."""
    return _quantized(quantize_q4_1_into, 20, rows)


def quantize_q5_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, columns / 32 * 22) uint8. Raises ValueError where 32 does not divide a row."""
    return _quantized(quantize_q5_0_into, 22, rows)


def quantize_q5_1(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, columns / 32 * 24) uint8. Raises ValueError where 32 does not divide a row."""
    return _quantized(quantize_q5_1_into, 24, rows)
