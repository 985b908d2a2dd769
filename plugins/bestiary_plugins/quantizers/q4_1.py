"""q4_1: blocks of 32 codes of 4 bits from the smallest weight, the minimum, to the largest, 15 scales above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.plugin import Quantizer
from bestiary_plugins.encodings import Q4_1
from bestiary_plugins.quantizers.codes import by_range, nibbles
from bestiary_plugins.quantizers.compiled import quantized


def reference(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row_bytes) uint8."""
    halves, codes = by_range(rows, 4)
    return np.concatenate([halves, nibbles(codes)], axis=1).reshape(len(rows), -1)


class QuantizerQ4_1(Quantizer):
    """Rounds every block between its smallest weight and its largest."""

    name, encoding, aliases = "q4_1", Q4_1, ("3",)
    keeps = (("output.weight", "q8_0"),)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        # Scale and minimum follow from the block's smallest and largest weights alone: importance has no say.
        return quantized(self.name, reference, rows)
