"""The type mole: blocks of 64 weights as signed bytes behind a float32 scale, weight = scale * code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bestiary.plugin import BestiaryError, Bits, Encoding, Factor, Layout, Quantizer, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

bestiary_api = 1  # the version of the hooks that this is written for
BLOCK, BYTES = 64, 4 + 64

# Entry i of a field is at bit `offsets[i % len(offsets)] + i // len(offsets) * stride` of a row.
LAYOUT = Layout(
    codes=(Bits(width=8, offsets=tuple(32 + 8 * i for i in range(BLOCK)), stride=8 * BYTES),),
    signed=True,
    group=BLOCK,
    scale=Factor("f32", Bits(width=32, offsets=(0,), stride=8 * BYTES)),
)


class Mole(Quantizer):
    name = "mole"
    encoding = Encoding("mole", BLOCK, (BYTES,), LAYOUT)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        import numpy as np

        if not np.isfinite(rows).all():
            raise BestiaryError("weights that are infinite or no numbers cannot be quantized to mole")
        blocks = rows.reshape(-1, BLOCK)  # (rows * columns / 64, 64)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)  # the largest weight gets the code 127
        codes = np.rint(blocks / np.where(scale == 0, np.float32(1), scale)).clip(-127, 127).astype(np.int8)
        packed = np.concatenate([scale.astype("<f4").view(np.uint8), codes.view(np.uint8)], axis=1)
        return packed.reshape(len(rows), self.encoding.row_bytes(rows.shape[1]))


@hookimpl
def bestiary_quantizers() -> Iterable[Quantizer]:
    return [Mole()]
