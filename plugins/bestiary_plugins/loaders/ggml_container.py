"""What ggml's model files before GGUF have in common: a magic, a few numbers, a vocabulary, tensors until the end.

Nothing says what program wrote such a file, and several gave the same magic to files of their own: a loader reads the
numbers and the vocabulary in its own way, and looks whether a tensor follows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary_plugins.loaders.cursor import Cursor

MAGICS = {0x67676D6C: "ggml", 0x67676D66: "ggmf", 0x67676A74: "ggjt", 0x67676363: "ggcc"}
MOST_TENSORS, LONGEST_NAME, MOST_AXES = 1 << 14, 256, 2


class Start(NamedTuple):
    """The first words. version: 0 where the container has none. offset: where the numbers of the model begin."""

    container: str
    version: int
    offset: int


class Entry(NamedTuple):
    """The header of a tensor. shape: (rows, columns), or (columns,). code: its type, in ggml's numbers of the time.
    offset: of its data."""

    name: str
    shape: tuple[int, ...]
    code: int
    offset: int


def read_start(file: DataFile) -> Start | None:
    """None where the file begins otherwise."""
    if file.size < 8:
        return None
    magic, version = struct.unpack("<II", file.read(0, 8))
    container = MAGICS.get(magic)
    if container is None:
        return None
    return Start(container, 0, 4) if container == "ggml" else Start(container, version, 8)


def read_vocabulary(cursor: Cursor, count: int, scored: bool) -> tuple[list[bytes], list[float]]:
    """The pieces from where the cursor stands, and their scores, if any: u32 length, bytes, f32 score. Raises
    BestiaryError where the file does not hold as many, and for scores that are not finite."""
    if not 0 <= count <= cursor.left // (8 if scored else 4):
        raise BestiaryError(f"{cursor.file.path} claims a vocabulary of {count} pieces; {cursor.left} bytes are left")
    cursor.count_as("<I")
    entries = cursor.strings(count, "the vocabulary", 4 if scored else 0)
    if not scored:
        return entries, []
    scores = struct.unpack(f"<{count}f", b"".join(entry[-4:] for entry in entries))
    if not all(map(math.isfinite, scores)):
        wrong = next(i for i, score in enumerate(scores) if not math.isfinite(score))
        raise BestiaryError(f"{cursor.file.path}: the score of piece {wrong} is {scores[wrong]}; the file is damaged")
    return [entry[:-4] for entry in entries], list(scores)


def read_entry(file: DataFile, offset: int, alignment: int = 1) -> Entry | None:
    """The tensor whose header begins at the offset; None where nothing plausible does.

    i32 axes, i32 bytes of the name, i32 type, i32 an axis with the columns first, name, zeros to the alignment, data.
    """
    if file.size - offset < 12:
        return None
    axes, length, code = struct.unpack("<3i", file.read(offset, 12))
    if not (1 <= axes <= MOST_AXES and 1 <= length <= LONGEST_NAME and 0 <= code < 32) \
            or file.size - offset - 12 < 4 * axes + length:
        return None
    shape = struct.unpack(f"<{axes}i", file.read(offset + 12, 4 * axes))[::-1]
    name = file.read(offset + 12 + 4 * axes, length)
    if min(shape) < 1 or not name.isascii() or not name.decode("ascii").isprintable():
        return None
    end = offset + 12 + 4 * axes + length
    return Entry(name.decode("ascii"), shape, code, (end + alignment - 1) // alignment * alignment)


def encoding_by(codes: Mapping[int, Encoding], path: Path, container: str) -> Callable[[Entry], Encoding]:
    """What gives a tensor's encoding by its code; it raises BestiaryError for a code that such files do not have."""
    def encoding_of(entry: Entry) -> Encoding:
        if entry.code not in codes:
            known = ", ".join(f"{code} ({encoding.name})" for code, encoding in codes.items())
            raise BestiaryError(f"{path}: tensor {entry.name} is of type {entry.code}; {container} files have {known}")
        return codes[entry.code]

    return encoding_of


def holds(file: DataFile, offset: int, alignment: int, encoding_of: Callable[[Entry], Encoding],
          wanted: Callable[[str], bool], most: int = 64) -> bool:
    """Whether one of the first tensors from the offset has a name that is wanted; its data may be cut off."""
    try:
        for _ in range(most):
            entry = read_entry(file, offset, alignment)
            if entry is None or wanted(entry.name):
                return entry is not None
            offset = entry.offset + prod(entry.shape[:-1]) * encoding_of(entry).row_bytes(entry.shape[-1])
    except BestiaryError:
        pass
    return False


def read_entries(file: DataFile, offset: int, alignment: int,
                 encoding_of: Callable[[Entry], Encoding]) -> Iterator[tuple[Entry, Encoding]]:
    """The tensors from the offset to the end of the file. Raises BestiaryError for what is none, or leaves the file."""
    seen: set[str] = set()
    while offset < file.size:
        entry = read_entry(file, offset, alignment)
        if entry is None:
            raise BestiaryError(f"{file.path}: no tensor begins at byte {offset} of {file.size}, where one should; the "
                                "file is truncated or damaged")
        if entry.name in seen or len(seen) == MOST_TENSORS:
            raise BestiaryError(f"{file.path}: " + (f"tensor {entry.name} is there twice" if entry.name in seen else
                                                    f"more than {MOST_TENSORS} tensors"))
        seen.add(entry.name)
        encoding = encoding_of(entry)
        if not encoding.fits(entry.shape[-1]):
            raise BestiaryError(f"{file.path}: tensor {entry.name} has rows of {entry.shape[-1]} weights; "
                                f"{encoding.name} holds blocks of {encoding.block_size}")
        size = prod(entry.shape[:-1]) * encoding.row_bytes(entry.shape[-1])
        file.check(entry.offset, size, f"tensor {entry.name}")
        yield entry, encoding
        offset = entry.offset + size
