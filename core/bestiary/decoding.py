"""Rows of bytes to float32: plain numbers, and any layout by its definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.contributions import shown
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.guard import calling

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def from_bf16(codes: NDArray[np.uint16]) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Rounds to nearest, ties to even; a NaN keeps its sign and stays a (quiet) NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(64), rounded).astype(np.uint16)


def number_from_bits(bits: NDArray[np.uint32], number: str) -> Floats:
    """Unsigned codes of a number type -> their values."""
    match number:
        case "f32":
            return bits.view(np.float32)
        case "f16":
            return bits.astype(np.uint16).view(np.float16).astype(np.float32)
        case "bf16":
            return from_bf16(bits.astype(np.uint16))
        case "e8m0":  # a power of two: 2 ** (code - 127); code 0 is the subnormal 2 ** -127
            return np.ldexp(np.float32(1), bits.astype(np.int32) - 127).astype(np.float32)
    raise BestiaryError(f"unknown number type {number!r}; known: f32, f16, bf16, e8m0")


def gather(planes: list[Bytes], field: Bits, count: int) -> NDArray[np.uint32]:
    """Entries 0..count-1 of a field, (rows, count)."""
    entry = np.arange(count)
    bit = np.asarray(field.offsets, dtype=np.int64)[entry % len(field.offsets)]
    bit = bit + entry // len(field.offsets) * field.stride
    plane = planes[field.plane]
    if count and not 0 <= int(bit.min()) <= int(bit.max()) + field.width <= 8 * plane.shape[1]:
        raise BestiaryError(f"a layout has a field of {field.width} bits at bit {int(bit.max())}, outside of a row of "
                            f"{plane.shape[1]} bytes")
    byte, shift = bit // 8, (bit % 8).astype(np.uint64)
    used = int((shift.max() + field.width + 7) // 8) if count else 0
    value = np.zeros((plane.shape[0], count), np.uint64)
    for i in range(used):
        value |= plane[:, np.minimum(byte + i, plane.shape[1] - 1)].astype(np.uint64) << np.uint64(8 * i)
    return ((value >> shift) & np.uint64((1 << field.width) - 1)).astype(np.uint32)


def gather_joined(planes: list[Bytes], pieces: tuple[Bits, ...], count: int, signed: bool = False) -> NDArray[np.int64]:
    """A field in pieces, low bits first; unsigned, or a two's complement integer of all its bits."""
    value = np.zeros((planes[0].shape[0], count), np.int64)
    width = 0
    for piece in pieces:
        value |= gather(planes, piece, count).astype(np.int64) << width
        width += piece.width
    return (value ^ (1 << (width - 1))) - (1 << (width - 1)) if signed else value


def factor_values(planes: list[Bytes], factor: Factor, groups: int) -> Floats:
    """The real number of each group, (rows, groups)."""
    value = number_from_bits(gather(planes, factor.at, groups), factor.number)
    if factor.integer:
        whole = gather_joined(planes, factor.integer, groups, factor.signed) + factor.bias
        value = value * whole.astype(np.float32)
    return value


def decode_layout(layout: Layout, planes: list[Bytes], columns: int) -> Floats:
    """The weights of rows whose planes are (rows, bytes of the plane's row) each."""
    groups = columns // layout.group if layout.group else 1
    code = gather_joined(planes, layout.codes, columns, layout.signed)
    value: Floats
    if layout.codebook:
        value = np.asarray(layout.codebook, np.float32)[code]
    else:
        value = (code - layout.offset).astype(np.float32)
    value = value.reshape(-1, groups, columns // groups)
    if layout.zero:
        value = value - (gather_joined(planes, layout.zero, groups).astype(np.float32) + layout.zero_bias)[:, :, None]
    value = value * factor_values(planes, layout.scale, groups)[:, :, None]
    if layout.minimum is not None:
        value = value + np.float32(layout.minimum_sign) * factor_values(planes, layout.minimum, groups)[:, :, None]
    return value.reshape(-1, columns)


def decode(encoding: Encoding, rows: Bytes, columns: int) -> Floats:
    """Rows of bytes, (rows, row_bytes) -> (rows, columns). Raises BestiaryError where the bytes are not whole rows."""
    sizes = encoding.plane_bytes(columns)
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise BestiaryError(f"{encoding.name}: a row of {columns} weights is {sum(sizes)} bytes, not {rows.shape[1:]}")
    if encoding.number == "f32":
        return np.ascontiguousarray(rows).view(np.float32)
    if encoding.number is not None:
        return number_from_bits(np.ascontiguousarray(rows).view(np.uint16).astype(np.uint32), encoding.number)
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
