"""q5_0: blocks of 32 codes of 5 bits with one scale, the weight of the largest magnitude / -16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.plugin import Quantizer
from bestiary_plugins.encodings import Q5_0
from bestiary_plugins.quantizers.codes import by_largest, fifth_bits, nibbles
from bestiary_plugins.quantizers.compiled import quantized


def reference(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row_bytes) uint8."""
    halves, codes = by_largest(rows, 5)
    return np.concatenate([halves, fifth_bits(codes), nibbles(codes)], axis=1).reshape(len(rows), -1)


class QuantizerQ5_0(Quantizer):
    """Rounds every block so that its largest weight is met exactly."""

    name, encoding, aliases = "q5_0", Q5_0, ("8",)
    keeps = (("output.weight", "q8_0"),)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        # The scale follows from the block's largest weight alone: importance has no say.
        return quantized(self.name, reference, rows)
