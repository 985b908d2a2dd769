"""q4_1: blocks of 32 codes of 4 bits from the smallest weight, the minimum, to the largest, 15 scales above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.plugin import Quantizer
from bestiary_plugins.encodings import Q4_1
from bestiary_plugins.quantizers.codes import nibbles, truncated
from bestiary_plugins.quantizers.compiled import kernel


def reference(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row_bytes) uint8."""
    blocks = rows.reshape(-1, 32).astype(np.float32, copy=False)  # (blocks, 32)
    with np.errstate(all="ignore"):
        minimum = blocks.min(axis=1, keepdims=True)
        scale = (blocks.max(axis=1, keepdims=True) - minimum) / np.float32(15)
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        codes = truncated((blocks - minimum) * inverse + np.float32(0.5), 15)
        halves = np.concatenate([scale, minimum], axis=1).astype(np.float16).view(np.uint8)
    return np.concatenate([halves, nibbles(codes)], axis=1).reshape(len(rows), -1)


class QuantizerQ4_1(Quantizer):
    """Rounds every block between its smallest weight and its largest."""

    name, encoding, aliases = "q4_1", Q4_1, ("3",)
    keeps = (("output.weight", "q8_0"),)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        # Scale and minimum follow from the block's smallest and largest weights alone: importance has no say.
        compiled = kernel("quantize_q4_1")
        blocks: NDArray[np.uint8] = reference(rows) if compiled is None else compiled(rows)
        return blocks
