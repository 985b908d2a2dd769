"""Plain numbers: f32, f16, bf16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import BF16, F16, F32
from bestiary.errors import BestiaryError
from bestiary.quantizer import Quantizer
from bestiary.tensor import encode_plain


class PlainF32(Quantizer):
    """float32, as it is."""

    name, encoding, aliases = "f32", F32, ("0",)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        return encode_plain(rows, self.encoding)


class PlainBF16(PlainF32):
    """bfloat16: the range of float32, 8 bits of precision; rounded to nearest, ties to even."""

    name, encoding, aliases = "bf16", BF16, ("32",)


class PlainF16(PlainF32):
    """float16, rounded to nearest, ties to even. Raises BestiaryError for weights beyond its range."""

    name, encoding, aliases = "f16", F16, ("1",)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        blocks = super().quantize(rows, importance)
        infinite = np.isinf(blocks.view(np.float16)) & np.isfinite(rows)
        if infinite.any():
            raise BestiaryError(f"{int(infinite.sum())} weights exceed the largest f16, 65504; bf16 and f32 hold them")
        return blocks
