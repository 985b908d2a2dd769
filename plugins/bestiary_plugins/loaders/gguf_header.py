"""The header of a GGUF file: metadata and the table of tensors, parsed and checked against the file.

Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary_plugins.loaders.cursor import Cursor
from bestiary_plugins.loaders.gguf_metadata import Metadata, Value
from bestiary_plugins.loaders.gguf_types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    DTYPES,
    LARGEST_ALIGNMENT,
    MAGIC,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    unknown_type,
)
from bestiary_plugins.loaders.git_lfs import refuse_pointer

MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS = 1 << 16, 1 << 17, 4

COUNTS = {1: "<I", 2: "<Q", 3: "<Q"}
"""File version -> how it writes counts, lengths and dimensions."""
MAY_COUNT_NULS = (1, 2)
"""Versions of which llama.cpp's `quantize` wrote files that count a NUL at the end of every string."""


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
    keys = limited(cursor, cursor.count("the number of metadata keys"), MOST_KEYS, cursor.count_size + 5,
                   "metadata keys")
    metadata = Metadata(file.path, read_metadata(cursor, keys, version in MAY_COUNT_NULS))
    alignment = metadata.integer("general.alignment")
    if alignment is None:
        alignment = DEFAULT_ALIGNMENT
    if not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise metadata.wrong("general.alignment", f"is {alignment}; it must be a power of two, at most "
                                                  f"{LARGEST_ALIGNMENT}")
    return Header(version, metadata, read_tensors(cursor, tensors, alignment))


def limited(cursor: Cursor, count: int, most: int, least_bytes: int, what: str) -> int:
    """The count, if that many things of at least so many bytes each fit into the rest of the file."""
    if count > min(most, cursor.left // least_bytes):
        raise BestiaryError(f"{cursor.file.path} claims {count} {what}; it has {max(cursor.left, 0)} bytes left and "
                            f"{most} are the most")
    return count


def read_metadata(cursor: Cursor, count: int, nuls: bool) -> dict[str, Value]:
    """nuls: the file may count a NUL at the end of every string; its first key tells."""
    values: dict[str, Value] = {}
    for i in range(count):
        key = text(cursor, f"metadata key {i}")
        if nuls and not i and key.endswith("\0"):
            cursor.strip_nuls()
            key = key[:-1]
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
            raise BestiaryError(f"{file.path}: tensor {entry.name} begins at {entry.offset - start} of the data, which "
                                f"is no multiple of the alignment {alignment}")
        if entry.offset < end:
            raise BestiaryError(f"{file.path}: tensors {before} and {entry.name} overlap")
        size = byte_size(file, entry)
        file.check(entry.offset, size, f"tensor {entry.name}")
        end, before = entry.offset + size, entry.name


def byte_size(file: DataFile, entry: TensorEntry) -> int:
    """Bytes of a tensor. Raises BestiaryError where its type has no known size or does not divide its rows."""
    kind = TENSOR_TYPES.get(entry.code)
    if kind is None:
        raise BestiaryError(f"{file.path}: tensor {entry.name} {unknown_type(entry.code)}")
    if entry.shape[-1] % kind.block_size:
        raise BestiaryError(f"{file.path}: tensor {entry.name} is {kind.spelling}, whose blocks of {kind.block_size} "
                            f"do not divide its rows of {entry.shape[-1]}")
    return prod(entry.shape) // kind.block_size * kind.block_bytes
