"""Rows of bytes to float32: plain numbers, and any layout by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.contributions import shown
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.guard import calling

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Unsigned = NDArray[np.unsignedinteger[Any]]


def from_bf16(codes: NDArray[np.uint16]) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Rounds to nearest, ties to even; a NaN keeps its sign and stays a (quiet) NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(64), rounded).astype(np.uint16)


def number_from_bits(bits: Unsigned, number: str) -> Floats:
    """Unsigned codes of a number type -> their values."""
    match number:
        case "f32":
            return bits.astype(np.uint32, copy=False).view(np.float32)
        case "f16":
            return bits.astype(np.uint16, copy=False).view(np.float16).astype(np.float32)
        case "bf16":
            return from_bf16(bits.astype(np.uint16, copy=False))
        case "e8m0":  # a power of two: 2 ** (code - 127); code 0 is the subnormal 2 ** -127
            return np.ldexp(np.float32(1), bits.astype(np.int32) - 127).astype(np.float32)
    raise BestiaryError(f"unknown number type {number!r}; known: f32, f16, bf16, e8m0")


def unsigned(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest type of that many bits: what is decoded is bound by memory."""
    return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= min(bits, 64))}")


def gather(planes: list[Bytes], field: Bits, count: int) -> Unsigned:
    """Entries 0..count-1 of a field, (rows, count), in the smallest type that holds the bytes of one."""
    entry = np.arange(count)
    bit = np.asarray(field.offsets, dtype=np.int64)[entry % len(field.offsets)]
    bit = bit + entry // len(field.offsets) * field.stride
    plane = planes[field.plane]
    if count and not 0 <= int(bit.min()) <= int(bit.max()) + field.width <= 8 * plane.shape[1]:
        raise BestiaryError(f"a layout has a field of {field.width} bits at bit {int(bit.max())}, outside of a row of "
                            f"{plane.shape[1]} bytes")
    byte, shift = bit // 8, bit % 8
    used = int((shift.max() + field.width + 7) // 8) if count else 1
    kind = unsigned(8 * used)
    value: Unsigned = plane.take(byte, axis=1).astype(kind, copy=False)
    for i in range(1, used):
        value |= plane.take(np.minimum(byte + i, plane.shape[1] - 1), axis=1).astype(kind) << kind.type(8 * i)
    value >>= shift.astype(kind)
    value &= kind.type((1 << field.width) - 1)
    return value


def gather_joined(planes: list[Bytes], pieces: tuple[Bits, ...], count: int, signed: bool = False) -> NDArray[Any]:
    """A field in pieces, low bits first; unsigned, or a two's complement integer of all its bits."""
    total = sum(piece.width for piece in pieces)
    kind, width = unsigned(total), 0
    value: NDArray[Any] = np.zeros((planes[0].shape[0], count), kind)
    for piece in pieces:
        value |= gather(planes, piece, count).astype(kind, copy=False) << kind.type(width)
        width += piece.width
    if signed:
        sign = 1 << (total - 1)
        value = np.bitwise_xor(value.astype(np.int16 if total <= 8 else np.int64), sign) - sign
    return value


def factor_values(planes: list[Bytes], factor: Factor, groups: int) -> Floats:
    """The real number of each group, (rows, groups)."""
    value = number_from_bits(gather(planes, factor.at, groups), factor.number)
    if factor.integer:
        whole = gather_joined(planes, factor.integer, groups, factor.signed).astype(np.int64) + factor.bias
        value = value * whole.astype(np.float32)
    return value


def decode_layout(layout: Layout, planes: list[Bytes], columns: int) -> Floats:
    """The weights of rows whose planes are (rows, bytes of the plane's row) each."""
    groups = columns // layout.group if layout.group else 1
    code = gather_joined(planes, layout.codes, columns, layout.signed)
    value: Floats
    if layout.codebook:
        value = np.asarray(layout.codebook, np.float32)[code]
    elif code.itemsize <= 2 and abs(layout.offset) < 1 << 16:  # of what f32 holds, differences are exact
        value = code.astype(np.float32)
        value -= np.float32(layout.offset)
    else:
        value = (code.astype(np.int64) - layout.offset).astype(np.float32)
    value = value.reshape(len(code), groups, columns // groups)
    if layout.zero:
        value -= (gather_joined(planes, layout.zero, groups).astype(np.float32) + layout.zero_bias)[:, :, None]
    value *= factor_values(planes, layout.scale, groups)[:, :, None]
    if layout.minimum is not None:
        value += np.float32(layout.minimum_sign) * factor_values(planes, layout.minimum, groups)[:, :, None]
    return value.reshape(-1, columns)


def decode(encoding: Encoding, rows: Bytes, columns: int) -> Floats:
    """Rows of bytes, (rows, row_bytes) -> (rows, columns). Raises BestiaryError where the bytes are not whole rows."""
    sizes = encoding.plane_bytes(columns)
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise BestiaryError(f"{encoding.name}: a row of {columns} weights is {sum(sizes)} bytes, not {rows.shape[1:]}")
    if encoding.number == "f32":
        return np.ascontiguousarray(rows).view(np.float32)
    if encoding.number is not None:
        return number_from_bits(np.ascontiguousarray(rows).view(np.uint16), encoding.number)
    if encoding.decoder is not None:
        with calling(f"the decoder of encoding {encoding.name}", "decode rows"):
            values: object = encoding.decoder(rows, columns)
        wanted = (len(rows), columns)
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != wanted:
            raise BestiaryError(f"the decoder of encoding {encoding.name} gave {shown(values)}, not float32 of shape "
                                f"{wanted}")
        return values
    if encoding.layout is None:
        raise BestiaryError(f"{encoding.name} has neither a layout nor a decoder")
    starts = np.cumsum([0, *sizes])
    planes = [rows[:, start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be infinite or no number
        return decode_layout(encoding.layout, planes, columns)
