"""The type radix11: blocks of 32 weights as numbers to the base of 11, of which no field stands at any bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bestiary.plugin import Encoding, Quantizer, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

bestiary_api = 1  # the version of the hooks that this is written for
BLOCK, DIGITS, BASE, MIDDLE = 32, 16, 11, 5
BYTES = 2 + 2 * 7
"""A float16 scale, and two numbers of 56 bits: 11 ** 16 < 2 ** 56."""


def decode(rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """weight = scale * (digit - 5), the digits of a number from the lowest to the highest."""
    import numpy as np

    blocks = rows.reshape(-1, BYTES)  # (rows * columns / 32, 16)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    numbers = np.zeros((len(blocks), 2, 8), np.uint8)
    numbers[:, :, :7] = blocks[:, 2:].reshape(-1, 2, 7)
    left = numbers.view("<u8")  # (blocks, 2, 1)
    powers = np.uint64(BASE) ** np.arange(DIGITS, dtype=np.uint64)
    digits = left // powers % np.uint64(BASE)  # (blocks, 2, 16)
    with np.errstate(invalid="ignore"):  # a damaged scale may be infinite or no number
        values: NDArray[np.float32] = scale * (digits.reshape(-1, BLOCK).astype(np.float32) - np.float32(MIDDLE))
    return values.reshape(len(rows), columns)


class Radix11(Quantizer):
    """Eleven steps from minus the block's largest magnitude to it."""

    name = "radix11"
    encoding = Encoding("radix11", BLOCK, (BYTES,), decoder=decode)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        import numpy as np

        blocks = np.where(np.isfinite(rows), rows, np.float32(0)).reshape(-1, BLOCK)
        scale = np.minimum(np.abs(blocks).max(axis=1, keepdims=True) / MIDDLE, np.float32(65504)).astype("<f2")
        steps = blocks / np.where(scale == 0, np.float32(1), scale.astype(np.float32))
        digits = (np.rint(steps).clip(-MIDDLE, MIDDLE) + MIDDLE).astype(np.uint64).reshape(-1, 2, DIGITS)
        powers = np.uint64(BASE) ** np.arange(DIGITS, dtype=np.uint64)
        numbers = (digits * powers).sum(axis=2, dtype=np.uint64).astype("<u8")  # (blocks, 2)
        packed = numbers.view(np.uint8).reshape(-1, 2, 8)[:, :, :7].reshape(-1, 14)
        count, columns = rows.shape
        return np.concatenate([scale.view(np.uint8), packed], axis=1).reshape(count, columns // BLOCK * BYTES)


@hookimpl
def bestiary_quantizers() -> Iterable[Quantizer]:
    return [Radix11()]
