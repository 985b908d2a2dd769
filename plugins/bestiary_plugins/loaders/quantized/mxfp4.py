"""MXFP4 as gpt-oss is published: blocks of 32 floats of 4 bits and a power of two each.

Sources: the OCP specification of microscaling formats, version 1.0; the model card of gpt-oss. X_blocks: (experts, out,
in / 32, 16) bytes, the earlier code in the low nibble; X_scales: (experts, out, in / 32), exponents more by 127. They
become the tensor X of shape (experts, out, in).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.files import FileTensor
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import MXFP4
from bestiary_plugins.loaders.quantized.parts import Parts, Settings, raw
from bestiary_plugins.loaders.quantized.rows import to_halves


def read_mxfp4(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Says how they are quantized."""
    for name in parts.ending("_blocks"):
        blocks = parts.take(f"{name}_blocks", ("U8",), (3, 4))
        parts.fits(blocks, f"{name}_blocks", (*blocks.shape[:-1], 16), "a block of 32 weights")
        scales = parts.take(f"{name}_scales", ("U8",), (2, 3))
        parts.fits(scales, f"{name}_scales", blocks.shape[:-1], f"{name}_blocks")
        parts.give(f"{name}_blocks", name, Blocks(blocks, scales))
    return "MXFP4, groups of 32"


class Blocks(Tensor):
    """A stack of weights, its scales put before its codes."""

    def __init__(self, blocks: FileTensor, scales: FileTensor) -> None:
        self.shape, self.encoding = (*blocks.shape[:-2], blocks.shape[-2] * 32), MXFP4
        self._blocks, self._scales = blocks, scales

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        each = self.shape[-1] // 32
        codes = to_halves(raw(self._blocks, start * each, stop * each))
        scales = raw(self._scales, start, stop).reshape(-1, 1)
        return np.concatenate((scales, codes), 1).reshape(stop - start, self.row_bytes)
