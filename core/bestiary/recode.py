"""The codes of one block format written in another that has room for them: nothing is decoded, nothing quantized anew.

What is lost is the rounding of scales and minimums where the new format keeps them in fewer bits; it is counted.
"""

from __future__ import annotations

from _thread import allocate_lock
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from bestiary.bit_fields import Bytes, apart, put, take
from bestiary.decoding import number_from_bits
from bestiary.encoding import F16, F32, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.layout_json import check_addresses
from bestiary.tensor import Tensor, read_exactly

SIGNS = {F32.name: 1 << 31, F16.name: 1 << 15}
"""The numbers that another may be rounded to, and their signs; the rest keep fewer digits than a scale is worth."""
MOST = 2.0 ** -8
"""What a scale may change by, as a share of its tensor's largest: rounding to bf16 does no more to a weight."""
TINY = 2.0 ** -1000
"""In place of zero below a fraction."""
Rounded = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Numbers before and after."""


@dataclass(frozen=True)
class Recoding:
    """From one encoding to another, for rows of `columns`. factors: of each scale and minimum where it stood, where it
    goes, and whether it is to have the other sign."""

    source: Encoding
    target: Encoding
    columns: int
    old: Layout
    new: Layout
    factors: tuple[tuple[Factor, Factor, bool], ...]


def recoding(source: Encoding, target: Encoding, columns: int) -> Recoding | None:
    """How rows of one encoding are written in the other, code by code; None where the other has no room for some code,
    has other groups, or computes a weight in another way."""
    old, new = simple(source), simple(target)
    if old is None or new is None or not source.fits(columns) or not target.fits(columns):
        return None
    (low, high), (lowest, highest) = code_range(old), code_range(new)
    if not lowest <= low <= high <= highest or (old.group or columns) % (new.group or columns):
        return None
    factors = [(old.scale, new.scale, False)]
    if old.minimum is not None and new.minimum is not None:
        factors.append((old.minimum, new.minimum, old.minimum_sign != new.minimum_sign))
    elif (old.minimum or new.minimum) is not None:
        return None
    if any(there.number not in SIGNS and (there.number != here.number or turned) for here, there, turned in factors):
        return None
    block = min(columns, lcm(target.block_size, new.group or 1))
    if not apart([*((piece, block) for piece in new.codes),
                  *((there.at, groups(new, block)) for _, there, _ in factors)]):
        return None
    for encoding in (source, target):
        check_addresses(encoding, columns)
    return Recoding(source, target, columns, old, new, tuple(factors))


def simple(encoding: Encoding) -> Layout | None:
    """The layout, where a weight is an integer times its group's number, perhaps plus another number of its group."""
    layout = encoding.layout
    if layout is None or encoding.decoder is not None or layout.codebook or layout.zero or layout.scale.integer \
            or layout.minimum is not None and layout.minimum.integer:
        return None
    return layout


def code_range(layout: Layout) -> tuple[int, int]:
    """The smallest and the largest integer that a weight is."""
    values = 1 << sum(piece.width for piece in layout.codes)
    low = -(values // 2 if layout.signed else 0) - layout.offset
    return low, low + values - 1


def groups(layout: Layout, columns: int) -> int:
    return columns // layout.group if layout.group else 1


def planes(encoding: Encoding, rows: Bytes, columns: int) -> list[Bytes]:
    """Rows of bytes as their planes' rows; views of the same memory."""
    ends = np.cumsum(encoding.plane_bytes(columns))
    return [rows[:, end - size:end] for end, size in zip(ends, encoding.plane_bytes(columns), strict=True)]


def recode(how: Recoding, rows: Bytes) -> tuple[Bytes, list[Rounded]]:
    """Rows of bytes, (rows, row_bytes of the source) -> (rows, row_bytes of the target), and the numbers of the groups
    that were rounded. Raises BestiaryError where a number is beyond those of the target."""
    made = np.zeros((len(rows), how.target.row_bytes(how.columns)), np.uint8)
    source, target = planes(how.source, rows, how.columns), planes(how.target, made, how.columns)
    move_codes(how, source, target)
    rounded: list[Rounded] = []
    for here, there, turned in how.factors:
        bits = take(source, here.at, groups(how.old, how.columns))
        if there.number != here.number:
            before = number_from_bits(bits, here.number)
            bits = bits_of(before, there.number)
            if there.number != F32.name:
                rounded.append((before, number_from_bits(bits, there.number)))
        if turned:
            bits ^= np.uint32(SIGNS[there.number])
        put(target, there.at, np.repeat(bits, groups(how.new, how.columns) // bits.shape[1], axis=1))
    return made, rounded


def move_codes(how: Recoding, source: list[Bytes], target: list[Bytes]) -> None:
    """Puts the codes where the target has them, with its offset and sign."""
    old, new = how.old, how.new
    width, room = (sum(piece.width for piece in layout.codes) for layout in (old, new))
    kind: type[np.unsignedinteger] = np.uint8 if max(width, room) <= 8 else np.uint32
    all_bits = (1 << 8 * np.dtype(kind).itemsize) - 1
    codes, done = np.zeros((len(source[0]), how.columns), kind), 0
    for piece in old.codes:
        codes |= take(source, piece, how.columns, kind) << kind(done)
        done += piece.width
    # Integers modulo 2^8 or 2^32: a code that fits is right whatever is carried out of it.
    middle = 1 << width - 1 if old.signed else 0
    codes = (codes ^ kind(middle)) + kind((new.offset - old.offset - middle) & all_bits)
    for piece in new.codes:
        put(target, piece, codes & kind((1 << piece.width) - 1))
        if piece is not new.codes[-1]:
            codes = codes >> kind(piece.width)


def bits_of(values: NDArray[np.float32], number: str) -> NDArray[np.uint32]:
    """Numbers as those of one of SIGNS, to nearest, ties to even. Raises BestiaryError where one is beyond them."""
    if number == F32.name:
        return values.astype(np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if (beyond := np.isinf(halves) & np.isfinite(values)).any():
        raise BestiaryError(f"a scale or minimum of {float(values[beyond][0]):g} is beyond the largest {number}, 65504")
    return halves.view(np.uint16).astype(np.uint32)


class Rounding:
    """What became of scales and minimums that were rounded, counted as they are written.

    numbers: all of them. changed: those that are not what they were. vanished: of these, those that are 0 now. largest:
    the largest change of another one, as a share of it.
    """

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.numbers = self.changed = self.vanished = 0
        self.largest = 0.0

    def add(self, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """For who holds the lock."""
        changed = (before != after) & np.isfinite(before)
        old, new = before[changed].astype(np.float64), after[changed]
        self.numbers += before.size
        self.changed += old.size
        self.vanished += int(np.count_nonzero(new == 0))
        self.largest = max(self.largest, float(np.abs(new / old - 1)[new != 0].max(initial=0)))

    def __str__(self) -> str:
        if not self.changed:
            return f"all {self.numbers} scales and minimums are what they were"
        zero = f"; {self.vanished} others were too small and are 0 now" if self.vanished else ""
        return (f"{self.changed - self.vanished} of {self.numbers} scales and minimums were rounded, by at most "
                f"{100 * self.largest:.2g} %{zero}")


class Recoded(Tensor):
    """A weight in another encoding, its codes the same. Reading raises BestiaryError where a scale is beyond the new
    numbers; and, once all rows were read, where scales were so small that weights of the tensor are lost."""

    def __init__(self, base: Tensor, how: Recoding, name: str, rounding: Rounding) -> None:
        self.shape, self.encoding = base.shape, how.target
        self._base, self._how, self._name, self._rounding = base, how, name, rounding
        self._counted: set[int] = set()  # first rows of ranges
        self._left = base.rows
        self._largest, self._moved = np.zeros((2, len(how.factors)))

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        try:
            rows, rounded = recode(self._how, read_exactly(self._base, start, stop))
            if rounded:
                self._count(start, stop, rounded)
        except BestiaryError as error:
            raise BestiaryError(f"tensor {self._name}: {error}; --outtype {F32.name} keeps the weights") from None
        return rows

    def _count(self, start: int, stop: int, rounded: list[Rounded]) -> None:
        with self._rounding.lock:
            if start in self._counted:
                return  # read once more
            self._counted.add(start)
            self._left -= stop - start
            for i, (before, after) in enumerate(rounded):
                self._rounding.add(before, after)
                finite = np.isfinite(before)
                self._largest[i] = np.abs(before[finite]).max(initial=self._largest[i])
                self._moved[i] = np.abs(after[finite] - before[finite]).max(initial=self._moved[i])
            if self._left <= 0 and (self._moved > MOST * self._largest).any():
                i = int((self._moved / np.maximum(self._largest, TINY)).argmax())
                raise BestiaryError(f"its scales or minimums, at most {self._largest[i]:g}, are too small for the "
                                    f"numbers of {self.encoding.name}: some change by {self._moved[i]:.2g}")
