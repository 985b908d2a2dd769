"""Rows of quantized weights as the kernels can hold them: codes, and for every few columns a scale and perhaps a zero.

Codes of a row come as a stream of bits, in the order of columns, the lowest bit first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary_plugins.encodings import Q4_0, Q8_0

Bytes = NDArray[np.uint8]
NUMBER_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "e8m0": 1}
HALVES = ("f16", "bf16")
WIDEST_SPAN, BLOCK = 256, 32


def span_of(columns: int, group: int) -> int:
    """Columns that share a scale in our rows: as many as the kernels take at once, and of one group."""
    return gcd(columns, group, WIDEST_SPAN)


def groups_of(columns: int, span: int, group: int) -> NDArray[np.int64]:
    """The group that each span of columns is in."""
    return np.arange(0, columns, span) // group


def code_field(bits: int, span: int) -> Bits:
    """Codes in order; but those of 4 bits in halves of 32, as the kernels have them."""
    if bits == 4 and span % BLOCK == 0:
        return Bits(4, tuple(8 * (i % 16) + 4 * (i // 16) for i in range(BLOCK)), 4 * BLOCK)
    count = BLOCK if span % BLOCK == 0 else 8
    return Bits(bits, tuple(bits * i for i in range(count)), bits * count)


def to_halves(stream: Bytes) -> Bytes:
    """Of 32 codes of 4 bits the first 16 become low nibbles and the last 16 high ones; (rows, bytes) uint8."""
    pairs = np.ascontiguousarray(stream).view(np.uint64).reshape(-1, 2)  # eight bytes of each half
    low, high, four = pairs[:, 0], pairs[:, 1], np.uint64(4)
    lower, upper = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
    out = np.empty((len(pairs), 8, 2), np.uint8)
    out[:, :, 0] = ((low & lower) | (high & lower) << four).view(np.uint8).reshape(-1, 8)
    out[:, :, 1] = ((low & upper) >> four | (high & upper)).view(np.uint8).reshape(-1, 8)
    return out.reshape(stream.shape)


def flat(rows: Bytes) -> Bytes:
    """All that a row has in one run; there may be no rows."""
    return rows.reshape(len(rows), prod(rows.shape[1:]))


def unpack(stream: Bytes, bits: int) -> Bytes:
    """A stream's codes, a byte each; bits at its end that are no whole code are left out."""
    if bits == 8:
        return stream
    count = stream.shape[-1] * 8 // bits
    if bits == 4:
        return np.stack((stream & np.uint8(15), stream >> np.uint8(4)), -1).reshape(*stream.shape[:-1], count)
    single = np.unpackbits(stream, axis=-1, bitorder="little", count=count * bits)
    single = single.reshape(*stream.shape[:-1], count, bits)
    codes: Bytes = (single << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return codes


def pack(codes: Bytes, bits: int) -> Bytes:
    """The stream of such codes, of which there are eight or a multiple."""
    if bits == 8:
        return codes
    if bits == 4:
        return codes[..., ::2] | codes[..., 1::2] << np.uint8(4)
    single = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(single.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")


@lru_cache
def integers(bits: int, number: str, span: int, zero: bool) -> Encoding:
    """Integers of 2, 3, 4 or 8 bits in two planes, codes and numbers; without a zero of each group's own it is the
    middle.

    A zero z is held as a minimum, scale * z, of a byte beside the scale: scale * code - scale * z has no rounding, for
    each product is exact in f32 with scales of f16 and bf16; with those of f32 each is rounded once. The former two
    stand as the kernels have them in the fewest bits: scale * 1 and scale * z, a pair of integers every 32 columns."""
    size, middle = NUMBER_BYTES[number], 1 << (bits - 1)
    codes, width = (code_field(bits, span),), 8 * size
    if not zero:
        return Encoding(f"int{bits}_{number}_{span}", span, (span * bits // 8, size), Layout(
            codes, span, Factor(number, Bits(width, (0,), width, 1)), signed=bits == 8,
            offset=0 if bits == 8 else middle))
    if number not in HALVES:
        at, byte = Bits(width, (0,), width + 8, 1), Bits(8, (width,), width + 8, 1)
        return Encoding(f"uint{bits}_{number}_{span}", span, (span * bits // 8, size + 1), Layout(
            codes, span, Factor(number, at), signed=bits == 8,
            minimum=Factor(number, at, (byte,), signed=bits == 8), minimum_sign=-1))
    part = gcd(span, BLOCK)
    parts, each = span // part, 1 if bits <= 4 else 2
    total = size + parts * each
    at = Bits(width, (0,) * parts, 8 * total, 1)
    places = [8 * (size + each * i) for i in range(parts)]
    wide = 4 * each
    one = Bits(wide, tuple(places), 8 * total, 1)
    other = Bits(wide, tuple(place + wide for place in places), 8 * total, 1)
    return Encoding(f"uint{bits}_{number}_{span}", span, (span * bits // 8, total), Layout(
        codes, part, Factor(number, at, (one,), signed=bits == 8), signed=bits == 8,
        minimum=Factor(number, at, (other,), signed=bits == 8), minimum_sign=-1))


RENEWED = tuple(integers(bits, "bf16", span, False) for bits in (4, 8) for span in (32, 64, 128, 256))
"""What differs from our own by the kind of its scales alone: nearly any bf16 scale of a weight is an f16 number, but
which are none, only reading all of them tells. So a file that others shall read takes the codes as they are, and says
what became of the scales."""


@lru_cache
def coded(name: str, codebook: tuple[float, ...], number: str, span: int) -> Encoding:
    """Codes of 4 or 8 bits that are places in a codebook, and a scale, in two planes."""
    bits, size = (len(codebook) - 1).bit_length(), NUMBER_BYTES[number]
    return Encoding(f"{name}_{number}_{span}", span, (span * bits // 8, size), Layout(
        (code_field(bits, span),), span, Factor(number, Bits(8 * size, (0,), 8 * size, 1)), codebook=codebook))


@dataclass(frozen=True)
class IntegerRows:
    """Rows of `columns` integers of some bits; column c has scale and zero c // group. number: of the scales."""

    bits: int
    columns: int
    group: int
    number: str
    zero: bool

    @property
    def span(self) -> int:
        return span_of(self.columns, self.group)

    @property
    def encoding(self) -> Encoding:
        """Among our own where that is the same."""
        if not self.zero and self.number == "f16" and self.span % BLOCK == 0 and self.bits in (4, 8):
            return Q4_0 if self.bits == 4 else Q8_0
        return integers(self.bits, self.number, self.span, self.zero)

    def fill(self, stream: Bytes, scales: Bytes, zeros: Bytes | None = None) -> Bytes:
        """Rows of the encoding. stream: (rows, bytes of the codes), unsigned codes. scales: (rows, groups, bytes of a
        number). zeros: (rows, groups)."""
        rows, encoding = len(stream), self.encoding
        if self.bits == 8:
            stream = stream ^ np.uint8(128)
        elif self.bits == 4 and self.span % BLOCK == 0:
            stream = to_halves(stream)
        if encoding in (Q4_0, Q8_0):
            blocks = np.empty((rows, self.columns // BLOCK, encoding.block_bytes[0]), np.uint8)
            blocks[:, :, :2] = scales[:, groups_of(self.columns, BLOCK, self.group)]
            blocks[:, :, 2:] = stream.reshape(*blocks.shape[:2], encoding.block_bytes[0] - 2)
            return flat(blocks)
        chosen = groups_of(self.columns, self.span, self.group)
        numbers = scales[:, chosen]  # (rows, spans, bytes)
        if zeros is not None:
            own = zeros[:, chosen, None]
            if self.bits == 8:
                own = own ^ np.uint8(128)
            if self.number in HALVES:
                pair = own << np.uint8(4) | np.uint8(1) if self.bits < 8 else \
                    np.concatenate((np.ones_like(own), own), -1)
                own = np.tile(pair, self.span // gcd(self.span, BLOCK))
            numbers = np.concatenate((numbers, own), -1)
        return np.concatenate((stream, flat(numbers)), 1)



@dataclass(frozen=True)
class CodedRows:
    """Rows of `columns` codes that are places in a codebook; column c has scale c // group."""

    name: str
    codebook: tuple[float, ...]
    columns: int
    group: int
    number: str

    @property
    def span(self) -> int:
        return span_of(self.columns, self.group)

    @property
    def encoding(self) -> Encoding:
        return coded(self.name, self.codebook, self.number, self.span)

    def fill(self, stream: Bytes, scales: Bytes) -> Bytes:
        """As IntegerRows.fill."""
        if len(self.codebook) == 16 and self.span % BLOCK == 0:
            stream = to_halves(stream)
        chosen = groups_of(self.columns, self.span, self.group)
        return np.concatenate((stream, flat(scales[:, chosen])), 1)
