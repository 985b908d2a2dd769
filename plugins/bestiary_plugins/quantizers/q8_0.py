"""q8_0: blocks of 32 signed bytes with one scale, the largest magnitude / 127."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.plugin import Quantizer
from bestiary_plugins.encodings import Q8_0
from bestiary_plugins.quantizers.compiled import quantized


def reference(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row_bytes) uint8, rounding halves away from zero as ggml does."""
    blocks = rows.reshape(-1, 32).astype(np.float32, copy=False)  # (blocks, 32)
    with np.errstate(all="ignore"):
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        magnitude = np.abs(blocks * inverse)
        floor = np.floor(magnitude)
        codes = np.sign(blocks) * (floor + np.floor(2 * (magnitude - floor)))
        codes = np.where(np.isfinite(codes), codes, np.float32(0)).astype(np.int8)
        halves = scale.astype(np.float16)
    return np.concatenate([halves.view(np.uint8), codes.view(np.uint8)], axis=1).reshape(len(rows), -1)


class QuantizerQ8_0(Quantizer):
    """Rounds every block by its largest magnitude."""

    name, encoding, aliases = "q8_0", Q8_0, ("7",)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        # The scale follows from the block's largest weight alone: importance has no say.
        return quantized(self.name, reference, rows)
