"""q4_0: blocks of 32 codes of 4 bits with one scale, the weight of the largest magnitude / -8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.plugin import Quantizer
from bestiary_plugins.encodings import Q4_0
from bestiary_plugins.quantizers.codes import by_largest, nibbles
from bestiary_plugins.quantizers.compiled import quantized


def reference(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row_bytes) uint8."""
    halves, codes = by_largest(rows, 4)
    return np.concatenate([halves, nibbles(codes)], axis=1).reshape(len(rows), -1)


class QuantizerQ4_0(Quantizer):
    """Rounds every block so that its largest weight is met exactly."""

    name, encoding, aliases = "q4_0", Q4_0, ("2",)
    keeps = (("output.weight", "q8_0"),)
    retired = {name: f"it was q4_{kind} in spring 2023 and is gone; q4_0 has its size" for name, kind in (
        ("5", 2), ("q4_2", 2), ("6", 3), ("q4_3", 3))}
    retired |= {name: "a mix of types that are read and run, and not written yet" for name in (
        "iq2_m", "iq3_m", "iq3_xs")}

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        # The scale follows from the block's largest weight alone: importance has no say.
        return quantized(self.name, reference, rows)
