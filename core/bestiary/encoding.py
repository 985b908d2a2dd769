"""How a row of weights becomes bytes: an encoding, and the layout of its blocks as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bestiary.errors import BestiaryError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A row of an encoding is one run of bytes: the row of plane 0, then the row of plane 1, and so on. Most encodings have
# one plane of blocks; NF4 has two (codes, absmax). A file that keeps its planes apart is put into rows by its loader.


@dataclass(frozen=True)
class Bits:
    """Where an unsigned field of `width` bits stands in a plane's row: entry i is at bit
    `offsets[i % len(offsets)] + i // len(offsets) * stride`; bit 0 is the lowest bit of byte 0.

    i counts columns for codes, and groups for scales, zeros and minimums.
    """

    width: int
    offsets: tuple[int, ...]
    stride: int
    plane: int = 0


@dataclass(frozen=True)
class Factor:
    """A real number per group: `number * (integer + bias)`, or the number alone where `integer` is empty.

    number: "f16", "f32", "bf16" or "e8m0", found at `at`. Where one number serves several groups (the super-scale of a
    super-block), `at` repeats its offset. integer: pieces of a field, low bits first; unsigned, or with `signed` a
    two's complement integer of all its bits.
    """

    number: str
    at: Bits
    integer: tuple[Bits, ...] = ()
    bias: int = 0
    signed: bool = False


@dataclass(frozen=True)
class Layout:
    """A block format as data. With u the code of a weight (its pieces joined, low bits first), and per group of weights
    a scale d and optionally an integer zero z or a minimum m:

        weight = d * (u - offset)            integer codes
        weight = d * (u - z - zero_bias)     where `zero` is given
        weight = d * codebook[u]             where `codebook` is given
        ... + minimum_sign * m               where `minimum` is given
    """

    codes: tuple[Bits, ...]
    group: int
    """Weights per scale; 0 for the whole row."""
    scale: Factor
    signed: bool = False
    """The code is a two's complement integer of all its bits."""
    offset: int = 0
    codebook: tuple[float, ...] = ()
    zero: tuple[Bits, ...] = ()
    zero_bias: int = 0
    minimum: Factor | None = None
    minimum_sign: int = 1


@dataclass(frozen=True)
class Encoding:
    """A byte layout for rows of weights.

    block_size: weights in a block; a row must be a whole number of them.
    block_bytes: bytes of a block in each plane (one number for the usual single plane).
    layout: the block as data; None where only `decoder` knows, or where the bytes are plain numbers of type `number`.
    decoder: rows of bytes (rows, row_bytes) uint8 and the number of columns -> float32 (rows, columns).
    """

    name: str
    block_size: int
    block_bytes: tuple[int, ...]
    layout: Layout | None = None
    number: str | None = None
    decoder: Callable[[NDArray[np.uint8], int], NDArray[np.float32]] | None = None

    @property
    def quantized(self) -> bool:
        return self.number is None

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(self.block_bytes) / self.block_size

    def fits(self, columns: int) -> bool:
        """Whether a row of `columns` weights is a whole number of blocks."""
        return columns % self.block_size == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; raises BestiaryError where the block does not divide it."""
        return sum(self.plane_bytes(columns))

    def plane_bytes(self, columns: int) -> tuple[int, ...]:
        """Bytes of a row in each plane."""
        if not self.fits(columns):
            raise BestiaryError(f"{self.name} holds blocks of {self.block_size} weights; a row of {columns} is no "
                                "whole number of them")
        return tuple(columns // self.block_size * size for size in self.block_bytes)

    def decode(self, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        """Rows of bytes, (rows, row_bytes) uint8 -> their weights, (rows, columns) float32."""
        from bestiary import decoding  # late: this module must not need numpy

        return decoding.decode(self, rows, columns)


F32 = Encoding("f32", 1, (4,), number="f32")
F16 = Encoding("f16", 1, (2,), number="f16")
BF16 = Encoding("bf16", 1, (2,), number="bf16")
PLAIN = {encoding.name: encoding for encoding in (F32, F16, BF16)}
"""The encodings that are plain numbers."""
