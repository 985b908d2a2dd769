"""The type nf4: blocks of 64 weights as places in a codebook, times the block's largest magnitude."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bestiary.plugin import Bits, Encoding, Factor, Layout, Quantizer, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

bestiary_api = 1  # the version of the hooks that this is written for
BLOCK = 64

CODEBOOK = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
"""Quantiles of a normal distribution within [-1, 1], 0 among them: QLoRA, appendix E."""

# Two planes: of each row first the codes, two a byte, the first in the high nibble; then a float32 a block.
LAYOUT = Layout(
    codes=(Bits(width=4, offsets=(4, 0), stride=8, plane=0),),
    codebook=CODEBOOK,
    group=BLOCK,
    scale=Factor("f32", Bits(width=32, offsets=(0,), stride=32, plane=1)),
)


class NF4(Quantizer):
    """The nearest entry of the codebook for each weight, by its share of the largest magnitude of its block."""

    name = "nf4"
    encoding = Encoding("nf4", BLOCK, (BLOCK // 2, 4), LAYOUT)
    keeps = (("output.weight", "q8_0"),)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        import numpy as np

        blocks = np.where(np.isfinite(rows), rows, np.float32(0)).reshape(-1, BLOCK)  # (rows * columns / 64, 64)
        scale = np.abs(blocks).max(axis=1, keepdims=True)
        book = np.asarray(CODEBOOK, np.float32)
        between = (book[1:] + book[:-1]) / np.float32(2)  # a weight belongs to the entry on its side of the middle
        codes = np.searchsorted(between, blocks / np.where(scale == 0, np.float32(1), scale)).astype(np.uint8)
        count, columns = rows.shape
        packed = (codes[:, ::2] << np.uint8(4) | codes[:, 1::2]).reshape(count, columns // 2)
        return np.concatenate([packed, scale.astype("<f4").reshape(count, columns // BLOCK).view(np.uint8)], axis=1)


@hookimpl
def bestiary_quantizers() -> Iterable[Quantizer]:
    return [NF4()]
