"""Fields of bits in rows of bytes, taken and put a column of blocks at a time.

`decoding.gather` takes any field by the address of each entry, and is what tests compare with; here all entries that
stand at one place of their blocks are one strided view, which is some times faster, and goes both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Bits

Bytes = NDArray[np.uint8]
Values = NDArray[np.unsignedinteger]


def runs(field: Bits, count: int) -> Iterator[tuple[slice, int, int, int]]:
    """The entries of the field in runs that lie whole bytes apart: which they are, the first one's first bit, how many,
    the bytes from one to the next (0 where all are the same bits)."""
    times = 8 // gcd(8, field.stride)
    period = times * len(field.offsets)
    for first in range(min(period, count)):
        turn, place = divmod(first, len(field.offsets))
        yield (slice(first, None, period), field.offsets[place] + turn * field.stride,
               len(range(first, count, period)), times * field.stride // 8)


def views(plane: Bytes, width: int, bit: int, count: int, step: int) -> Iterator[tuple[Bytes, int]]:
    """The bytes that the entries of a run touch, (rows, count) each, lowest first; and how far to the left of the
    entry's lowest bit they begin."""
    byte, shift = divmod(bit, 8)
    for k in range((shift + width + 7) // 8):
        start = byte + k
        yield plane[:, start:start + max(step * (count - 1), 0) + 1:max(step, 1)], 8 * k - shift


def take(planes: Sequence[Bytes], field: Bits, count: int, kind: type[np.unsignedinteger] = np.uint32) -> Values:
    """Entries 0..count-1 of a field of at most 32 bits, (rows, count). The addresses must have been checked, see
    layout_json.check_addresses; kind: a type of at least the field's width."""
    plane = planes[field.plane]
    values = np.zeros((len(plane), count), kind)
    for entries, bit, number, step in runs(field, count):
        for view, left in views(plane, field.width, bit, number, step):
            part = view.astype(kind, copy=False)
            values[:, entries] |= part << kind(left) if left >= 0 else part >> kind(-left)
    if field.width < 8 * values.itemsize:
        values &= kind((1 << field.width) - 1)
    return values


def put(planes: Sequence[Bytes], field: Bits, values: Values) -> None:
    """Writes the entries of a field, (rows, count), into planes whose bits there are zero: the inverse of `take`. The
    values are below 2 ** width, the fields' bits apart from each other."""
    plane, kind = planes[field.plane], values.dtype.type
    for entries, bit, number, step in runs(field, values.shape[1]):
        column = values[:, entries]
        for view, left in views(plane, field.width, bit, number, step):
            view |= (column >> kind(left) if left >= 0 else column << kind(-left)).astype(np.uint8)


def apart(fields: Sequence[tuple[Bits, int]]) -> bool:
    """Whether no bit belongs to two entries of the fields, each given with its number of entries."""
    seen: set[tuple[int, int]] = set()
    wanted = 0
    for field, count in fields:
        for i in range(count):
            first = field.offsets[i % len(field.offsets)] + i // len(field.offsets) * field.stride
            seen.update((field.plane, first + k) for k in range(field.width))
        wanted += count * field.width
    return len(seen) == wanted
