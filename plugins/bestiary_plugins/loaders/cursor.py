"""A file read from the front by bounded reads: no count or length is used before it is compared with the file."""

from __future__ import annotations

import struct

from bestiary.errors import BestiaryError
from bestiary.files import DataFile

CHUNK = 1 << 20
# A sparse file of a terabyte is quickly made: being inside the file is not enough for what is held in memory.
LARGEST_HEADER, MOST_STRINGS = 160 << 20, 1 << 21
"""LARGEST_HEADER: two of the largest tokenizer files that are read fit, one of them in base64. MOST_STRINGS: in all
arrays of the header; the largest vocabulary known has 262,144 pieces and 514,906 merges."""


class Cursor:
    """Reads a file from the front, in chunks; each length is checked against the file's rest and the largest header."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self._start, self._buffer, self._at = 0, b"", 0  # the buffer holds the file from _start; _at is inside it
        self._count = struct.Struct("<Q")
        self._strip = False
        self._strings = 0  # in arrays, so far

    @property
    def offset(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return min(self.file.size, LARGEST_HEADER) - self.offset

    def count_as(self, form: str) -> None:
        """How counts, lengths and dimensions are written from here on."""
        self._count = struct.Struct(form)

    @property
    def count_size(self) -> int:
        """Bytes of a count."""
        return self._count.size

    def strip_nuls(self) -> None:
        """From here on one NUL at the end of a string does not belong to it."""
        self._strip = True

    def need(self, size: int, what: str) -> int:
        """Makes `size` bytes stand in the buffer, and gives where."""
        if len(self._buffer) - self._at < size:
            self.file.check(self.offset, size, what)
            if size > self.left:
                raise BestiaryError(f"{self.file.path}: the header is larger than {LARGEST_HEADER} bytes at {what}")
            self._start, self._at = self.offset, 0
            self._buffer = self.file.read(self._start, min(max(size, CHUNK), self.file.size - self._start), what)
        return self._at

    def take(self, size: int, what: str) -> bytes:
        at = self.need(size, what)
        self._at = at + size
        return self._buffer[at:self._at]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str) -> int:
        return int.from_bytes(self.take(self._count.size, what), "little")

    def string(self, what: str) -> bytes:
        value = self.take(self.count(f"the length of {what}"), what)
        return value.removesuffix(b"\0") if self._strip else value

    def strings(self, count: int, what: str, more: int = 0) -> list[bytes]:
        """An array of strings, each with `more` bytes behind it that its length does not count. A vocabulary and its
        merges are 400,000 of them, hence the loop over one buffer."""
        self._strings += count
        if self._strings > MOST_STRINGS or count > self.left // self._count.size:
            raise BestiaryError(f"{self.file.path}: {what} claims {count} strings; the file has {self.left} bytes left "
                                f"and {MOST_STRINGS} are the most in a header")
        found: list[bytes] = []
        size, unpack, append = self._count.size, self._count.unpack_from, found.append
        while True:
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            for _ in range(count - len(found)):
                first = at + size
                if first > end:
                    break
                last = first + unpack(buffer, at)[0] + more
                if last > end:
                    break
                append(buffer[first:last])
                at = last
            self._at = at
            if len(found) == count:
                return [value.removesuffix(b"\0") for value in found] if self._strip else found
            # the one that the buffer does not hold whole: checked, and read with the next
            append(self.take(self.count(f"the length of {what}") + more, what))

    def pad(self, alignment: int) -> int:
        """The next multiple of the alignment from here."""
        return (self.offset + alignment - 1) // alignment * alignment
