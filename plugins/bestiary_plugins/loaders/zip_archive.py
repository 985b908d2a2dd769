"""Zip archives whose entries are stored, read in place by ranges.

Source: PKWARE's APPNOTE 6.3.10. Only what torch writes is read: nothing compressed, encrypted or spread over disks, no
comment, and every entry once. Python's zipfile takes more, and believes more of what an archive says of itself.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from bestiary.errors import BestiaryError
from bestiary.files import DataFile

LOCAL, CENTRAL, END, END64, LOCATOR = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
LARGEST_DIRECTORY, MOST_ENTRIES = 16 << 20, 1 << 16
ALL32, ALL16 = 0xFFFFFFFF, 0xFFFF
ENCRYPTED = 1 | 1 << 6 | 1 << 13


class Entry(NamedTuple):
    """An entry's data: where it lies in the file."""

    offset: int
    size: int
    crc: int


class Listed(NamedTuple):
    """A line of the directory. header: where the entry's own header is."""

    header: int
    name: str
    size: int
    crc: int


def read_archive(file: DataFile) -> dict[str, Entry]:
    """The entries by name. Raises BestiaryError for what is damaged, ambiguous or not stored as it is."""
    start, size, count = find_directory(file)
    listed = read_directory(file, file.read(start, size, "the zip directory"), count)
    found: dict[str, Entry] = {}
    end = 0
    for line in sorted(listed):
        if line.name in found:
            raise BestiaryError(f"{file.path}: the zip entry {line.name!r:.120} stands there twice")
        if line.header < end:
            raise BestiaryError(f"{file.path}: the zip entry {line.name!r:.120} overlaps the one before it")
        entry = locate(file, line)
        end = entry.offset + entry.size
        if end > start:
            raise BestiaryError(f"{file.path}: the zip entry {line.name!r:.120} of {entry.size} bytes reaches into the "
                                "directory")
        found[line.name] = entry
    return found


def find_directory(file: DataFile) -> tuple[int, int, int]:
    """Where the directory is, its bytes and its entries."""
    place = file.size - 22
    if place < 0 or file.read(place, 4) != END:
        raise BestiaryError(f"{file.path} does not end as a zip archive does; it is truncated or damaged")
    disk, first, here, count, size, start, comment = struct.unpack("<4H2IH", file.read(place + 4, 18))
    if place >= 20 and file.read(place - 20, 4) == LOCATOR:
        _, place64, _ = struct.unpack("<IQI", file.read(place - 16, 16))
        record = file.read(place64, 56, "the zip64 record")
        count64, size64, start64 = struct.unpack("<3Q", record[32:])
        agreed = all(short in (long, most) for short, long, most in (
            (count, count64, ALL16), (size, size64, ALL32), (start, start64, ALL32)))
        if record[:4] != END64 or place64 + 56 != place - 20 or not agreed:
            raise BestiaryError(f"{file.path}: the two ends of the zip directory contradict each other; it is damaged")
        here = count64 if here in (count64, ALL16) else here
        count, size, start, place = count64, size64, start64, place64
    if disk or first or here != count or comment:
        raise BestiaryError(f"{file.path} is a zip archive in several parts or with a comment; torch never writes such")
    if size > min(LARGEST_DIRECTORY, place) or start != place - size or count > min(MOST_ENTRIES, size // 46):
        raise BestiaryError(f"{file.path} claims a zip directory of {count} entries and {size} bytes at {start}, "
                            f"which does not fit the file of {file.size} bytes")
    return start, size, count


def read_directory(file: DataFile, data: bytes, count: int) -> list[Listed]:
    listed, at = [], 0
    for _ in range(count):
        if data[at:at + 4] != CENTRAL or at + 46 > len(data):
            raise BestiaryError(f"{file.path}: the zip directory is damaged")
        flags, method = struct.unpack_from("<2H", data, at + 8)
        crc, packed, size, name_size, extra_size, comment, disk = struct.unpack_from("<3I4H", data, at + 16)
        (header,) = struct.unpack_from("<I", data, at + 42)
        begin = at + 46
        at = begin + name_size + extra_size + comment
        if at > len(data):
            raise BestiaryError(f"{file.path}: the zip directory is damaged")
        name = entry_name(file, data[begin:begin + name_size])
        wide = zip64_values(data[begin + name_size:begin + name_size + extra_size])
        size, packed, header = (next(wide, value) if value == ALL32 else value for value in (size, packed, header))
        if flags & ENCRYPTED or method or packed != size or disk not in (0, ALL16):
            raise BestiaryError(f"{file.path}: the zip entry {name!r:.120} is compressed, encrypted or elsewhere; only "
                                "stored entries are read, as torch writes them")
        listed.append(Listed(header, name, size, crc))
    if at != len(data):
        raise BestiaryError(f"{file.path}: the zip directory holds more than its {count} entries")
    return listed


def zip64_values(extra: bytes) -> Iterator[int]:
    """The long forms, in the order of the fields that are too short for them."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4:at + 4 + size]
            return iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
        at += 4 + size
    return iter(())


def entry_name(file: DataFile, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BestiaryError(f"{file.path}: the zip directory holds a name that is no UTF-8 text") from None


def locate(file: DataFile, line: Listed) -> Entry:
    """The entry's data, behind its own header, which must agree with the directory."""
    what = f"the zip entry {line.name!r:.120}"
    header = file.read(line.header, 30, what)
    flags, method = struct.unpack_from("<2H", header, 6)
    name_size, extra_size = struct.unpack_from("<2H", header, 26)
    name = file.read(line.header + 30, name_size, what)
    if header[:4] != LOCAL or flags & ENCRYPTED or method or name != line.name.encode():
        raise BestiaryError(f"{file.path}: {what} has a header that says something else than the directory")
    offset = line.header + 30 + name_size + extra_size
    file.check(offset, line.size, what)
    return Entry(offset, line.size, line.crc)


def read_entry(file: DataFile, entry: Entry, most: int, what: str) -> bytes:
    """A whole small entry, its checksum compared."""
    if entry.size > most:
        raise BestiaryError(f"{what} has {entry.size} bytes; {most} are the most")
    data = file.read(entry.offset, entry.size, what)
    if zlib.crc32(data) != entry.crc:
        raise BestiaryError(f"{what} does not have the checksum that the zip directory gives; it is damaged")
    return data
