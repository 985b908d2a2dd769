"""The header of a GGUF file: metadata and the table of tensors, parsed by bounded reads.

Every count, length and offset is compared with what is left of the file before it is used.
Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np

from bestiary.errors import BestiaryError
from bestiary.files import DataFile

from bestiary_plugins.loaders.git_lfs import refuse_pointer
from bestiary_plugins.loaders.gguf_types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    DTYPES,
    LARGEST_ALIGNMENT,
    MAGIC,
    SCALARS,
    STRING,
    TENSOR_TYPES,
)

CHUNK = 1 << 20
# A sparse file of a terabyte is quickly made: being inside the file is not enough for what is held in memory.
LARGEST_HEADER = 256 << 20
MOST_KEYS, MOST_TENSORS, MOST_STRINGS, MOST_DIMENSIONS = 1 << 16, 1 << 17, 1 << 22, 4

COUNTS = {2: "<Q", 3: "<Q"}
"""File version -> how it writes counts, lengths and dimensions. (Version 1 has 32 bits.)"""


class Cursor:
    """Reads a file from the front, in chunks; each length is checked against the file's rest and the largest header."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self._start, self._buffer, self._at = 0, b"", 0  # the buffer holds the file from _start; _at is inside it
        self._count = struct.Struct("<Q")

    @property
    def offset(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return min(self.file.size, LARGEST_HEADER) - self.offset

    def count_as(self, form: str) -> None:
        """How counts, lengths and dimensions are written from here on."""
        self._count = struct.Struct(form)

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
        return self.take(self.count(f"the length of {what}"), what)

    def strings(self, count: int, what: str) -> list[bytes]:
        """An array of strings. A vocabulary and its merges are 400,000 of them, hence the loop over one buffer."""
        if count > min(MOST_STRINGS, self.left // self._count.size):
            raise BestiaryError(f"{self.file.path}: {what} claims {count} strings; the file has {self.left} bytes left "
                                f"and {MOST_STRINGS} are the most")
        found: list[bytes] = []
        size, unpack, append = self._count.size, self._count.unpack_from, found.append
        while True:
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            for _ in range(count - len(found)):
                first = at + size
                if first > end:
                    break
                last = first + unpack(buffer, at)[0]
                if last > end:
                    break
                append(buffer[first:last])
                at = last
            self._at = at
            if len(found) == count:
                return found
            append(self.string(what))  # the one that the buffer does not hold whole: checked, and read with the next

    def pad(self, alignment: int) -> int:
        """The next multiple of the alignment from here."""
        return (self.offset + alignment - 1) // alignment * alignment


@dataclass(frozen=True)
class Value:
    """A metadata value. kind: "u32", "str" ..., with "[]" for an array. A string is bytes, an array of numbers numpy's."""

    kind: str
    value: Any


class Metadata(Mapping[str, Value]):
    """Metadata by key, with getters that check the kind. Each gives None where the key is missing, and raises
    BestiaryError, naming the key, where the value is of another kind."""

    def __init__(self, path: object, values: Mapping[str, Value]) -> None:
        self._path, self._values = path, values

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def wrong(self, key: str, why: str) -> BestiaryError:
        return BestiaryError(f"{self._path}: metadata {key} {why}")

    def _get(self, key: str, kinds: tuple[str, ...], wanted: str) -> Any:
        found = self._values.get(key)
        if found is None:
            return None
        if found.kind not in kinds:
            raise self.wrong(key, f"is {found.kind}; it must be {wanted}")
        return found.value

    def text(self, key: str) -> str | None:
        value = self._get(key, ("str",), "a string")
        return None if value is None else self._utf8(key, value)

    def integer(self, key: str, low: int = 0, high: int = (1 << 32) - 1) -> int | None:
        """Of whatever width it is stored in."""
        value = self._get(key, INTEGERS, "an integer")
        if value is not None and not low <= value <= high:
            raise self.wrong(key, f"is {value}; it must be from {low} to {high}")
        return None if value is None else int(value)

    def real(self, key: str) -> float | None:
        """A finite number; from 32 bits it gets the shortest decimal that means it (1e-05, not 9.99999974e-06)."""
        value = self._get(key, ("f32", "f64"), "a number")
        if value is not None and not isfinite(value):
            raise self.wrong(key, f"is {value}; it must be finite")
        return None if value is None else float(str(value))

    def flag(self, key: str) -> bool | None:
        value = self._get(key, ("bool",), "a boolean")
        return None if value is None else bool(value)

    def strings(self, key: str) -> list[bytes] | None:
        value: list[bytes] | None = self._get(key, ("str[]",), "an array of strings")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self.strings(key)
        return None if value is None else [self._utf8(key, item) for item in value]

    def integers(self, key: str) -> list[int] | None:
        value = self._get(key, tuple(f"{kind}[]" for kind in INTEGERS), "an array of integers")
        return None if value is None else [int(item) for item in value.tolist()]

    def reals(self, key: str) -> list[float] | None:
        value = self._get(key, ("f32[]", "f64[]"), "an array of numbers")
        if value is None:
            return None
        if not np.isfinite(value).all():
            raise self.wrong(key, "holds numbers that are not finite")
        return [float(item) for item in value.tolist()]

    def flags(self, key: str) -> list[bool] | None:
        value = self._get(key, ("bool[]",), "an array of booleans")
        return None if value is None else [bool(item) for item in value.tolist()]

    def get_kind(self, key: str, kind: str) -> Any:
        """The value as `kind` ("u32", "f32", "bool", "str", or an array of them) wants it in Python."""
        return GETTERS[kind](self, key)

    def _utf8(self, key: str, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self.wrong(key, "is no UTF-8 text") from None


INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
LIMITS = {"u32": (0, (1 << 32) - 1), "i32": (-(1 << 31), (1 << 31) - 1), "u64": (0, (1 << 64) - 1),
          "i64": (-(1 << 63), (1 << 63) - 1)}
GETTERS: Mapping[str, Callable[[Metadata, str], Any]] = {
    "u32": lambda metadata, key: metadata.integer(key, *LIMITS["u32"]),
    "i32": lambda metadata, key: metadata.integer(key, *LIMITS["i32"]),
    "u64": lambda metadata, key: metadata.integer(key, *LIMITS["u64"]),
    "i64": lambda metadata, key: metadata.integer(key, *LIMITS["i64"]),
    "f32": Metadata.real, "f64": Metadata.real, "bool": Metadata.flag, "str": Metadata.text,
    "f32[]": Metadata.reals, "f64[]": Metadata.reals, "bool[]": Metadata.flags, "str[]": Metadata.texts,
    **{f"{kind}[]": Metadata.integers for kind in INTEGERS},
}
"""Kind of a key -> the getter for it."""


@dataclass(frozen=True)
class TensorEntry:
    """A line of the table of tensors. shape: outermost dimension first. offset: from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    code: int
    offset: int


@dataclass(frozen=True)
class Header:
    """All of a GGUF file but the data."""

    version: int
    metadata: Metadata
    tensors: tuple[TensorEntry, ...]


def read_header(file: DataFile) -> Header:
    """The header. Raises BestiaryError for what is damaged, not GGUF, or not read."""
    refuse_pointer(file)
    cursor = Cursor(file)
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        raise BestiaryError(f"{file.path} is no GGUF file: it begins with {magic!r}")
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise BestiaryError(f"{file.path} is a big-endian GGUF file, which is not read; little-endian ones are")
    if version not in COUNTS:
        raise BestiaryError(f"{file.path} is GGUF version {version}; known: {', '.join(map(str, COUNTS))}")
    cursor.count_as(COUNTS[version])
    tensors = limited(cursor, cursor.count("the number of tensors"), MOST_TENSORS, 24, "tensors")
    keys = limited(cursor, cursor.count("the number of metadata keys"), MOST_KEYS, 13, "metadata keys")
    metadata = Metadata(file.path, read_metadata(cursor, keys))
    alignment = metadata.integer("general.alignment")
    if alignment is None:
        alignment = DEFAULT_ALIGNMENT
    if not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise metadata.wrong("general.alignment", f"is {alignment}; it must be a power of two, at most {LARGEST_ALIGNMENT}")
    return Header(version, metadata, read_tensors(cursor, tensors, alignment))


def limited(cursor: Cursor, count: int, most: int, least_bytes: int, what: str) -> int:
    """The count, if that many things of at least so many bytes each fit into the rest of the file."""
    if count > min(most, cursor.left // least_bytes):
        raise BestiaryError(f"{cursor.file.path} claims {count} {what}; it has {max(cursor.left, 0)} bytes left and "
                            f"{most} are the most")
    return count


def read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for i in range(count):
        key = text(cursor, f"metadata key {i}")
        if key in values:
            raise BestiaryError(f"{cursor.file.path}: metadata key {key!r} stands there twice")
        values[key] = read_value(cursor, f"metadata {key}")
    return values


def read_value(cursor: Cursor, what: str) -> Value:
    code = cursor.u32(what)
    if code == STRING:
        return Value("str", cursor.string(what))
    if code == ARRAY:
        return read_array(cursor, what)
    kind = kind_of(cursor, code, what)
    dtype = DTYPES[kind]
    number = np.frombuffer(cursor.take(dtype.itemsize, what), dtype)[0]
    if kind == "bool":
        check_booleans(cursor, number, what)
    return Value(kind, int(number) if dtype.kind in "iu" else number)


def read_array(cursor: Cursor, what: str) -> Value:
    code = cursor.u32(what)
    count = cursor.count(f"the length of {what}")
    if code == ARRAY:
        raise BestiaryError(f"{cursor.file.path}: {what} is an array of arrays, which is not read")
    if code == STRING:
        return Value("str[]", cursor.strings(count, what))
    kind = kind_of(cursor, code, what)
    dtype = DTYPES[kind]
    numbers = np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)
    if kind == "bool":
        check_booleans(cursor, numbers, what)
    return Value(f"{kind}[]", numbers)


def kind_of(cursor: Cursor, code: int, what: str) -> str:
    if code not in SCALARS:
        raise BestiaryError(f"{cursor.file.path}: {what} has the unknown type {code}; 0 to 12 are known")
    return SCALARS[code][0]


def check_booleans(cursor: Cursor, values: Any, what: str) -> None:
    if np.any(values > 1):
        raise BestiaryError(f"{cursor.file.path}: {what} has a boolean that is neither 0 nor 1")


def text(cursor: Cursor, what: str) -> str:
    value = cursor.string(what)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BestiaryError(f"{cursor.file.path}: {what} is no UTF-8 text") from None


def read_tensors(cursor: Cursor, count: int, alignment: int) -> tuple[TensorEntry, ...]:
    """The table of tensors, each known to lie inside the file, aligned, and apart from the others."""
    path = cursor.file.path
    raw = []
    for i in range(count):
        name = text(cursor, f"the name of tensor {i}")
        what = f"tensor {name}"
        dimensions = cursor.u32(what)
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise BestiaryError(f"{path}: {what} has {dimensions} dimensions; it must have 1 to {MOST_DIMENSIONS}")
        sizes = [cursor.count(what) for _ in range(dimensions)]
        if 0 in sizes:
            raise BestiaryError(f"{path}: {what} has a dimension of 0: {sizes}")
        raw.append((name, tuple(reversed(sizes)), cursor.u32(what), cursor.u64(what)))
    start = cursor.pad(alignment)
    entries = tuple(TensorEntry(name, shape, code, start + offset) for name, shape, code, offset in raw)
    check_places(cursor.file, entries, start, alignment)
    return entries


def check_places(file: DataFile, entries: tuple[TensorEntry, ...], start: int, alignment: int) -> None:
    names = {entry.name for entry in entries}
    if len(names) != len(entries):
        seen: set[str] = set()
        for entry in entries:
            if entry.name in seen:
                raise BestiaryError(f"{file.path}: tensor {entry.name} stands there twice")
            seen.add(entry.name)
    end, before = start, ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if (entry.offset - start) % alignment:
            raise BestiaryError(f"{file.path}: tensor {entry.name} begins at {entry.offset - start} of the data, which is "
                                f"no multiple of the alignment {alignment}")
        if entry.offset < end:
            raise BestiaryError(f"{file.path}: tensors {before} and {entry.name} overlap")
        size = byte_size(file, entry)
        file.check(entry.offset, size, f"tensor {entry.name}")
        end, before = entry.offset + size, entry.name


def byte_size(file: DataFile, entry: TensorEntry) -> int:
    """Bytes of a tensor. Raises BestiaryError where its type has no known size or does not divide its rows."""
    kind = TENSOR_TYPES.get(entry.code)
    if kind is None:
        raise BestiaryError(f"{file.path}: tensor {entry.name} has the unknown type {entry.code}")
    if entry.shape[-1] % kind.block_size:
        raise BestiaryError(f"{file.path}: tensor {entry.name} is {kind.name}, whose blocks of {kind.block_size} do not "
                            f"divide its rows of {entry.shape[-1]}")
    return prod(entry.shape) // kind.block_size * kind.block_bytes
