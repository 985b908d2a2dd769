"""Weights of a byte each, in their own rows, and scales for blocks of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.files import FileTensor
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.quantized.parts import FLOATS, Parts, fitting, raw
from bestiary_plugins.loaders.quantized.rows import CodedRows, IntegerRows

Bytes = NDArray[np.uint8]
INT8, E4M3, E8M0 = "I8", "F8_E4M3", "F8_E8M0"
SCALES = (*FLOATS, E8M0)


def e4m3() -> tuple[float, ...]:
    """What the codes of 8 bits are: sign, exponent of 4 bits less 7, mantissa of 3; no infinities. The two codes that
    are no number stand as 0 and are refused where they are read. Source: Micikevicius et al. 2022 (arXiv 2209.05433).
    """
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent > 0, np.ldexp(8 + fraction, exponent - 10), np.ldexp(fraction, -9))
    size[code & 127 == 127] = 0
    return tuple(np.where(code > 127, -size, size).tolist())


E4M3_VALUES = e4m3()


@dataclass(frozen=True)
class Scales:
    """(rows, columns) numbers, each for so many rows and columns of a weight. factor: multiplies all of them."""

    tensor: FileTensor
    rows_each: int
    columns_each: int
    factor: np.float32 | None = None

    @property
    def number(self) -> str:
        return "e8m0" if self.tensor.encoding.name == E8M0 else self.tensor.encoding.name

    def rows(self, start: int, stop: int) -> Bytes:
        """Those of rows start..stop-1, (rows, columns of the scales, bytes of a number)."""
        size = self.tensor.encoding.block_bytes[0]
        first, last = start // self.rows_each, -(-stop // self.rows_each)
        if len(self.tensor.shape) < 2:  # one for all, or one a row
            given = raw(self.tensor, 0, 1).reshape(-1, 1, size)[first:last]
        else:
            given = raw(self.tensor, first, last).reshape(last - first, self.tensor.columns, size)
        if self.factor is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be infinite or no number
                given = (np.ascontiguousarray(given).view(np.float32) * self.factor).view(np.uint8)
        chosen: Bytes = given[np.arange(start, stop) // self.rows_each - first]
        return chosen


class Scaled(Tensor):
    """A weight of signed bytes, or of floats of 8 bits. zeros: of the same places as the scales, signed bytes."""

    def __init__(self, name: str, codes: FileTensor, scales: Scales, zeros: FileTensor | None = None) -> None:
        self.shape, self.name = codes.shape, name
        self._codes, self._scales = codes, scales
        self._zeros = None if zeros is None else Scales(zeros, scales.rows_each, scales.columns_each)
        self._layout: IntegerRows | CodedRows
        if codes.encoding.name == INT8:
            self._layout = IntegerRows(8, codes.columns, scales.columns_each, scales.number, zeros is not None)
        else:
            self._layout = CodedRows("e4m3", E4M3_VALUES, codes.columns, scales.columns_each, scales.number)
        self.encoding = self._layout.encoding

    def read(self, start: int, stop: int) -> Bytes:
        codes, scales = raw(self._codes, start, stop), self._scales.rows(start, stop)
        if isinstance(self._layout, CodedRows):
            if (codes & np.uint8(127) == 127).any():
                raise BestiaryError(f"{self._codes.file.path}: tensor {self.name} holds a code that is no number")
            return self._layout.fill(codes, scales)
        flip = np.uint8(128)  # from signed to unsigned
        if self._zeros is None:
            return self._layout.fill(codes ^ flip, scales)
        return self._layout.fill(codes ^ flip, scales, self._zeros.rows(start, stop)[:, :, 0] ^ flip)


def take_scales(parts: Parts, name: str, weight: FileTensor, blocks: Sequence[tuple[int, int] | None] = (),
                types: tuple[str, ...] = SCALES) -> Scales:
    """The scales of a weight of two dimensions: one for all, one a row, or one a block of so many rows and columns.
    Raises BestiaryError for another shape, and where it fits several blocks."""
    given = parts.take(name, types, (0, 1, 2))
    rows, columns = weight.shape
    if given.shape in ((), (1,), (1, 1)):
        return Scales(given, rows, columns)
    if given.shape in ((rows,), (rows, 1)):
        return Scales(given, 1, columns)
    sizes = [block for block in blocks if block is not None]
    if not sizes:
        raise BestiaryError(f"{parts.folder}: tensor {name} has the shape {list(given.shape)}; a weight of "
                            f"{list(weight.shape)} asks for one scale, or one a row")
    found = fitting(sizes, lambda block: parts.fits(
        given, name, (-(-rows // block[0]), -(-columns // block[1])),
        f"a weight of {list(weight.shape)} in blocks of {list(block)}"))
    if len(found) > 1:
        raise BestiaryError(f"{parts.folder}: tensor {name} of {list(given.shape)} fits blocks of "
                            f"{' and of '.join(str(list(block)) for block in found)}")
    return Scales(given, *found[0])
