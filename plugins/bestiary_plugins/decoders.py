"""Decoders of ggml's types whose weights are no formula of their codes: points of a grid with signs (IQ1, IQ2, IQ3),
digits of base 3 (TQ1_0), and numbers of 4 bits with scales of 8 (NVFP4).

Each takes rows of bytes and gives float32: signed integers of 8 bits by table, then each group of them times its scale.
Every product is exact in f32, so the order of the factors does not matter. Where the fields stand: the structs and
dequantize_row_* of ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary_plugins import grids

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Floats = NDArray[np.float32]
DELTA = 2048
"""What the code of an IQ1 point grows by where an eighth is taken off its weights; else it is added."""


def _field(blocks: Bytes, start: int, stop: int, number: str = "u1") -> NDArray[Any]:
    """Bytes start..stop-1 of each block as little-endian numbers, (blocks, numbers)."""
    return np.ascontiguousarray(blocks[:, start:stop]).view("<" + number)


def _scaled(codes: Codes, scales: Floats, group: int, columns: int) -> Floats:
    """Codes in their order, each group times its scale, as rows of weights."""
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be infinite or no number
        values: Floats = codes.reshape(*scales.shape, group) * scales[..., None]
    return values.reshape(-1, columns)


def _odd_scales(bits: Bytes, integers: NDArray[Any], unit: float) -> Floats:
    """The scale of each group: the block's f16, its bits given, times 2 * integer + 1, times a power of two."""
    with np.errstate(over="ignore", invalid="ignore"):
        odd = (2 * integers.astype(np.float32) + 1) * np.float32(unit)
        scales: Floats = bits.view("<f2").astype(np.float32) * odd
    return scales


def _split(fields: NDArray[Any], width: int, shifts: tuple[int, ...]) -> NDArray[Any]:
    """(blocks, n) -> (blocks, n * shifts): the fields of `width` bits at each of the shifts, in order."""
    parts: NDArray[Any] = fields[..., None] >> np.array(shifts, fields.dtype) & fields.dtype.type((1 << width) - 1)
    return parts.reshape(len(fields), fields.shape[1] * len(shifts))


def _picked(table: Codes, codes: NDArray[Any]) -> Codes:
    """The rows of a table side by side, (blocks, codes * size). A row is copied as one number of as many bytes."""
    whole = table.view(f"u{table.shape[1]}")[:, 0]
    return whole.take(codes).view(np.int8)


@cache
def _signs() -> Codes:
    """A byte -> 8 factors: -1 where its bit is set, lowest bit first."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return 1 - 2 * bits.astype(np.int8)


@cache
def _even_signs() -> Codes:
    """7 bits -> 8 factors, of which an even number is -1."""
    signs = _signs()[:128].copy()
    signs[:, 7] = signs[:, :7].prod(axis=1)
    return signs


@cache
def _eighths() -> Codes:
    """The points of IQ1 in eighths: an eighth added to all coordinates, and after those the same with one taken off."""
    points = 8 * grids.points(grids.IQ1)
    return np.concatenate([points + np.int8(1), points - np.int8(1)])


@cache
def _base_3() -> Codes:
    """Digit and byte -> -1, 0 or 1. A byte is a fraction of 256, rounded up, of which the digits stand after the point:
    those before one are gone when it is multiplied modulo 256."""
    return np.array([[(byte * 3 ** k % 256 * 3 >> 8) - 1 for byte in range(256)] for k in range(5)], np.int8)


@cache
def _half_e4m3() -> Floats:
    """A byte -> half of the unsigned number that it is: 4 bits of exponent, 3 of mantissa, its sign bit ignored. As in
    ggml, 0x7F (no number) is 0."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    numbers = np.where(exponent > 0, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    numbers[0x7F] = 0
    return np.asarray(numbers / 2, np.float32)


def decode_iq1_s(rows: Bytes, columns: int) -> Floats:
    """50 bytes: f16 scale; 32 low bytes of codes; for each 32 weights 16 bits: the high 3 bits of 4 codes, 3 bits of
    scale, and which way the eighth goes."""
    blocks = rows.reshape(-1, 50)
    groups = _field(blocks, 34, 50, "u2")
    high = _split(groups, 3, (0, 3, 6, 9)) << 8 | np.repeat(groups >> 15, 4, axis=1) * np.uint16(DELTA)
    scales = _odd_scales(_field(blocks, 0, 2), groups >> 12 & 7, 1 / 8)
    return _scaled(_picked(_eighths(), _field(blocks, 2, 34) | high), scales, 32, columns)


def decode_iq1_m(rows: Bytes, columns: int) -> Floats:
    """56 bytes: 32 low bytes of codes; for each code 3 high bits and which way the eighth goes; 4 times 16 bits: 4
    scales of 3 bits for 16 weights each, and a nibble of the f16 scale."""
    blocks = rows.reshape(-1, 56)
    high = _split(_field(blocks, 32, 48), 4, (0, 4)).astype(np.uint16) << 8  # the fourth bit is worth DELTA
    groups = _field(blocks, 48, 56, "u2")
    nibbles = groups >> 12 << np.array([0, 4, 8, 12], np.uint16)
    bits = np.bitwise_or.reduce(nibbles, axis=1, keepdims=True)
    scales = _odd_scales(bits.astype("<u2").view(np.uint8), _split(groups, 3, (0, 3, 6, 9)), 1 / 8)
    return _scaled(_picked(_eighths(), _field(blocks, 0, 32) | high), scales, 16, columns)


def decode_iq2_xxs(rows: Bytes, columns: int) -> Floats:
    """66 bytes: f16 scale; for each 32 weights 4 codes, and 32 bits: 4 times 7 signs, 4 bits of scale."""
    blocks = rows.reshape(-1, 66)
    words = _field(blocks, 2, 66, "u4").reshape(-1, 8, 2)
    codes = _picked(grids.points(grids.IQ2_XXS), _split(words[..., 0], 8, (0, 8, 16, 24)))
    codes *= _picked(_even_signs(), _split(words[..., 1], 7, (0, 7, 14, 21)))
    return _scaled(codes, _odd_scales(_field(blocks, 0, 2), words[..., 1] >> 28, 1 / 8), 32, columns)


def decode_iq2_xs(rows: Bytes, columns: int) -> Floats:
    """74 bytes: f16 scale; for each 8 weights a code of 9 bits and 7 signs; scales of 4 bits for 16 weights each."""
    blocks = rows.reshape(-1, 74)
    words = _field(blocks, 2, 66, "u2")
    codes = _picked(grids.points(grids.IQ2_XS), words & 511)
    codes *= _picked(_even_signs(), words >> 9)
    return _scaled(codes, _odd_scales(_field(blocks, 0, 2), _split(blocks[:, 66:], 4, (0, 4)), 1 / 8), 16, columns)


def decode_iq2_s(rows: Bytes, columns: int) -> Floats:
    """82 bytes: f16 scale; 32 low bytes of codes; 32 bytes of signs; the high 2 bits of the codes; scales of 4 bits for
    16 weights each."""
    blocks = rows.reshape(-1, 82)
    high = _split(_field(blocks, 66, 74), 2, (0, 2, 4, 6)).astype(np.uint16) << 8
    codes = _picked(grids.points(grids.IQ2_S), _field(blocks, 2, 34) | high)
    codes *= _picked(_signs(), _field(blocks, 34, 66))
    return _scaled(codes, _odd_scales(_field(blocks, 0, 2), _split(blocks[:, 74:], 4, (0, 4)), 1 / 8), 16, columns)


def decode_iq3_xxs(rows: Bytes, columns: int) -> Floats:
    """98 bytes: f16 scale; 64 codes of 4 weights; for each 32 weights 32 bits: 4 times 7 signs, 4 bits of scale."""
    blocks = rows.reshape(-1, 98)
    words = _field(blocks, 66, 98, "u4")
    codes = _picked(grids.points(grids.IQ3_XXS), _field(blocks, 2, 66))
    codes *= _picked(_even_signs(), _split(words, 7, (0, 7, 14, 21)))
    return _scaled(codes, _odd_scales(_field(blocks, 0, 2), words >> 28, 1 / 4), 32, columns)


def decode_iq3_s(rows: Bytes, columns: int) -> Floats:
    """110 bytes: f16 scale; 64 low bytes of codes of 4 weights; their ninth bits; 32 bytes of signs; scales of 4 bits
    for 32 weights each."""
    blocks = rows.reshape(-1, 110)
    high = np.unpackbits(_field(blocks, 66, 74), axis=1, bitorder="little").astype(np.uint16) << 8
    codes = _picked(grids.points(grids.IQ3_S), _field(blocks, 2, 66) | high)
    codes *= _picked(_signs(), _field(blocks, 74, 106))
    return _scaled(codes, _odd_scales(_field(blocks, 0, 2), _split(blocks[:, 106:], 4, (0, 4)), 1), 32, columns)


def decode_tq1_0(rows: Bytes, columns: int) -> Floats:
    """54 bytes: 32 of 5 digits, the first digits of all before the second; 16 of 5; 4 of 4; f16 scale."""
    blocks = rows.reshape(-1, 54)
    parts = [digits[blocks[:, start:stop]] for start, stop, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
             for digits in _base_3()[:count]]
    return _scaled(np.concatenate(parts, axis=1), _odd_scales(_field(blocks, 52, 54), np.zeros(1), 1), 256, columns)


def decode_nvfp4(rows: Bytes, columns: int) -> Floats:
    """36 bytes: 4 scales of 8 bits; for each 16 weights 8 bytes, whose low nibbles come first: places among the numbers
    of 4 bits, here doubled."""
    blocks = rows.reshape(-1, 36)
    numbers = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
    pairs = blocks[:, 4:].reshape(-1, 4, 1, 8) >> np.array([[0], [4]], np.uint8) & np.uint8(15)
    return _scaled(numbers[pairs], _half_e4m3()[blocks[:, :4]], 16, columns)
