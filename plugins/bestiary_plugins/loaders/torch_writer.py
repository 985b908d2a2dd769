"""A state dict as torch.save writes it, streaming: a zip archive of a pickle and the tensors' numbers. torch.load reads
it with weights_only.

Sources: torch/serialization.py; PKWARE's APPNOTE 6.3.10 for the archive.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from itertools import groupby
from math import prod
from typing import IO, TYPE_CHECKING

from bestiary.readahead import read_ahead
from bestiary_plugins.loaders.torch_file import ENCODINGS
from bestiary_plugins.loaders.zip_archive import ALL16, ALL32, CENTRAL, END, END64, LOCAL, LOCATOR

if TYPE_CHECKING:
    from bestiary.tensor import Tensor
    from bestiary_plugins.loaders.written_bytes import Done

STORAGES = {encoding.name: kind for kind, encoding in ENCODINGS.items()}
ALIGNMENT = 64
"""Of the numbers in the file, as torch has it."""
FIRST_DAY = 1 << 5 | 1
"""The first day a zip archive knows: what is written does not depend on when."""
WIDE, PLAIN = 45, 20
"""Versions of the format: with sizes of 64 bits, and without."""


class Archive:
    """A zip archive that is written entry by entry, none compressed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._directory, self._count = file, bytearray(), 0

    def add(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        """An entry of known size, its data at a multiple of the alignment."""
        file, spelled, start, wide = self._file, name.encode(), self._file.tell(), size >= ALL32
        extra = struct.pack("<2H2Q", 1, 16, size, size) if wide else b""
        gap = -(start + 30 + len(spelled) + len(extra) + 4) % ALIGNMENT
        extra += b"FB" + struct.pack("<H", gap) + b"Z" * gap
        short = ALL32 if wide else size
        file.write(LOCAL + struct.pack("<5H3I2H", WIDE if wide else PLAIN, 0, 0, 0, FIRST_DAY, 0, short, short,
                                       len(spelled), len(extra)) + spelled + extra)
        crc = 0
        for piece in pieces:
            file.write(piece)
            crc = zlib.crc32(piece, crc)
        end = file.tell()
        file.seek(start + 14)
        file.write(struct.pack("<I", crc))
        file.seek(end)
        long = [value for value, is_long in ((size, wide), (size, wide), (start, start >= ALL32)) if is_long]
        extra = struct.pack(f"<2H{len(long)}Q", 1, 8 * len(long), *long) if long else b""
        self._directory += CENTRAL + struct.pack(
            "<6H3I5H2I", WIDE, WIDE if long else PLAIN, 0, 0, 0, FIRST_DAY, crc, short, short, len(spelled), len(extra),
            0, 0, 0, 0, min(start, ALL32)) + spelled + extra
        self._count += 1

    def end(self) -> None:
        """The directory."""
        file, count, size, start = self._file, self._count, len(self._directory), self._file.tell()
        file.write(self._directory)
        if count >= ALL16 or start >= ALL32:
            place = start + size
            file.write(END64 + struct.pack("<Q2H2I4Q", 44, WIDE, WIDE, 0, 0, count, count, size, start))
            file.write(LOCATOR + struct.pack("<IQI", 0, place, 1))
        file.write(END + struct.pack("<4H2IH", 0, 0, min(count, ALL16), min(count, ALL16), size, min(start, ALL32), 0))


def save_torch(file: IO[bytes], folder: str, tensors: Mapping[str, Tensor], copies: Mapping[str, str],
               done: Done) -> None:
    """Writes the tensors, of plain encodings. folder: what the archive calls itself. copies: further names -> of the
    tensor that they are, which is written once. done: told the bytes of each piece and its tensor's name."""
    archive = Archive(file)
    data = state_dict(tensors, copies)
    archive.add(f"{folder}/data.pkl", len(data), [data])
    archive.add(f"{folder}/byteorder", 6, [b"little"])
    names = list(tensors)

    def told(index: int, pieces: Iterable[tuple[int, int, memoryview]]) -> Iterable[memoryview]:
        for _, _, rows in pieces:
            yield rows
            done(rows.nbytes, names[index])

    read = ((index, first, rows.data) for index, first, rows in read_ahead(tensors.values()))
    for index, pieces in groupby(read, lambda piece: piece[0]):
        archive.add(f"{folder}/data/{index}", tensors[names[index]].nbytes, told(index, pieces))
    archive.add(f"{folder}/version", 2, [b"3\n"])
    archive.end()


def state_dict(tensors: Mapping[str, Tensor], copies: Mapping[str, str]) -> bytes:
    """The pickle, in protocol 2: a dict of tensors, each a storage of its own."""
    keys = {name: str(i) for i, name in enumerate(tensors)}
    items = [(name, name) for name in tensors] + list(copies.items())
    return b"\x80\x02}(" + b"".join(text(name) + rebuilt(tensors[of], keys[of]) for name, of in items) + b"u."


def rebuilt(tensor: Tensor, key: str) -> bytes:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)"""
    shape = tensor.shape
    strides = tuple(prod(shape[i + 1:]) for i in range(len(shape)))
    storage = (b"(" + text("storage") + called("torch", STORAGES[tensor.encoding.name]) + text(key) + text("cpu")
               + whole(prod(shape)) + b"tQ")
    return (called("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + whole(0) + sizes(shape) + sizes(strides)
            + b"\x89" + called("collections", "OrderedDict") + b")RtR")


def called(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def whole(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data
