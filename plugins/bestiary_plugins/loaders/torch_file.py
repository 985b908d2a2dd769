"""Files of torch.save that hold a state dict: zip archives, and the form before torch 1.6. Neither needs torch.

Source: torch/serialization.py. Tensors are read in place, by ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.tensor import Tensor
from bestiary_plugins.loaders import torch_pickle
from bestiary_plugins.loaders.git_lfs import refuse_pointer
from bestiary_plugins.loaders.safetensors import UnreadTensor
from bestiary_plugins.loaders.torch_pickle import Record, Storage, read_pickle, state_dict
from bestiary_plugins.loaders.zip_archive import LOCAL, Entry, read_archive, read_entry

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
OLD = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
PICKLE = "data.pkl"

ENCODINGS = {"FloatStorage": F32, "HalfStorage": F16, "BFloat16Storage": BF16}
UNREAD = {name: Encoding(spelling, 1, (size,)) for name, spelling, size in (
    ("DoubleStorage", "F64", 8), ("LongStorage", "I64", 8), ("IntStorage", "I32", 4), ("ShortStorage", "I16", 2),
    ("CharStorage", "I8", 1), ("ByteStorage", "U8", 1), ("BoolStorage", "BOOL", 1), ("ComplexFloatStorage", "C64", 8),
    ("ComplexDoubleStorage", "C128", 16), ("float8_e4m3fn", "F8_E4M3", 1), ("float8_e5m2", "F8_E5M2", 1),
    ("float8_e8m0fnu", "F8_E8M0", 1))}
"""Types that may stand in a file as long as nobody wants the tensor."""
KINDS = {**ENCODINGS, **UNREAD}


class StridedTensor(Tensor):
    """A matrix or vector whose numbers lie at regular distances, a transposed one for instance. A range of rows reads
    all that lies between its first number and its last."""

    def __init__(self, file: DataFile, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
                 encoding: Encoding, name: str) -> None:
        self.file, self.offset, self.shape, self.encoding, self.name = file, offset, shape, encoding, name
        self._strides = (*(0,) * (2 - len(strides)), *strides)  # (row, column), in numbers

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} of tensor {self.name}, which has {self.rows}")
        down, right = self._strides
        item, count = self.encoding.row_bytes(1), stop - start
        if not count:
            return np.empty((0, self.row_bytes), np.uint8)
        span = (count - 1) * down + (self.columns - 1) * right + 1
        data = self.file.read_array(self.offset + start * down * item, span * item, f"tensor {self.name}")
        grid = as_strided(data, (count, self.columns, item), (down * item, right * item, 1))
        return np.ascontiguousarray(grid).reshape(count, self.row_bytes)


def is_torch(file: DataFile) -> bool:
    """Whether it begins as torch.save begins a file."""
    begin = file.read(0, min(len(OLD), file.size))
    return begin.startswith(LOCAL) or begin == OLD


def open_torch(file: DataFile) -> dict[str, Tensor]:
    """The tensors of a file, unread. Raises BestiaryError for what is damaged, or more than a state dict."""
    refuse_pointer(file)
    if not is_torch(file):
        raise BestiaryError(f"{file.path} is no file of torch.save: it begins with {file.read(0, min(8, file.size))!r}")
    records, places = (open_old if file.read(0, 4) != LOCAL else open_archive)(file)
    return {name: make_tensor(file, places, record, name) for name, record in records.items()}


def open_archive(file: DataFile) -> tuple[dict[str, Record], dict[str, int]]:
    """The tensors' records, and where each storage begins in the file, by its key."""
    entries = read_archive(file)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith(f"/{PICKLE}")]
    prefix = pickles[0].removesuffix(PICKLE) if len(pickles) == 1 else None
    if prefix is None or not all(name.startswith(prefix) for name in entries):
        raise BestiaryError(f"{file.path} is a zip archive, but not one of torch.save: it must hold one folder with "
                            f"one {PICKLE}")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and (given := read_entry(file, order, 16, f"{file.path}: byteorder")) != b"little":
        raise BestiaryError(f"{file.path} says its byteorder is {given!r}; only little-endian files are read")
    what = f"{file.path}: {PICKLE}"
    data = read_entry(file, entries[pickles[0]], torch_pickle.LARGEST, what)
    value, end = read_pickle(data, what)
    if end != len(data):
        raise BestiaryError(f"{what} goes on for {len(data) - end} bytes after its end")
    records = state_dict(value, what)
    return records, storages_of(file, prefix, entries, records)


def storages_of(file: DataFile, prefix: str, entries: Mapping[str, Entry], records: Mapping[str, Record],
                ) -> dict[str, int]:
    places = {}
    for name, record in records.items():
        entry, wanted = entries.get(f"{prefix}data/{record.storage.key}"), size_of(record.storage)
        if entry is None:
            raise BestiaryError(f"{file.path}: tensor {name!r:.120} lies in storage {record.storage.key!r:.40}, which "
                                "is missing")
        if entry.size != wanted:
            raise BestiaryError(f"{file.path}: storage {record.storage.key!r:.40} has {entry.size} bytes; tensor "
                                f"{name!r:.120} asks for {wanted}")
        places[record.storage.key] = entry.offset
    return places


def open_old(file: DataFile) -> tuple[dict[str, Record], dict[str, int]]:
    """As `open_archive`, of the form before 1.6: pickles of a magic number, the version, sizes of types, the state dict
    and its storages' keys; then the storages, each a count of 64 bits and the numbers."""
    data = file.read(0, min(file.size, torch_pickle.LARGEST))
    values, at = [], 0
    for part in ("magic", "version", "system", "state dict", "list of storages"):
        value, at = read_pickle(data, f"{file.path}: its {part}", at)
        values.append(value)
    magic, version, system, objects, keys = values
    if (magic, version) != (MAGIC, PROTOCOL):
        raise BestiaryError(f"{file.path} has a version of torch's old form that is not known")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BestiaryError(f"{file.path} was not written on a little-endian machine; only such files are read")
    records = state_dict(objects, f"{file.path}: its state dict")
    storages = {record.storage.key: record.storage for record in records.values()}
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) \
            or sorted(keys) != sorted(storages) or set(storages.values()) != {r.storage for r in records.values()}:
        raise BestiaryError(f"{file.path}: its list of storages is not that of its tensors")
    places = {}
    for key in keys:
        count = int.from_bytes(file.read(at, 8, f"storage {key!r:.40}"), "little")
        if count != storages[key].length:
            raise BestiaryError(f"{file.path}: storage {key!r:.40} has {count} numbers; its tensors ask for "
                                f"{storages[key].length}")
        places[key] = at + 8
        at += 8 + size_of(storages[key])
        file.check(at, 0, f"the end of storage {key!r:.40}")
    return records, places


def size_of(storage: Storage) -> int:
    """Bytes."""
    return storage.length * KINDS[storage.kind].block_bytes[0]


def make_tensor(file: DataFile, places: Mapping[str, int], record: Record, name: str) -> Tensor:
    """The tensor, known to lie inside its storage and to hold each of its numbers at most once."""
    storage, shape, strides = record.storage, record.shape, record.strides
    encoding, place = KINDS[storage.kind], places[storage.key]
    what = f"{file.path}: tensor {name!r:.120}"
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        raise BestiaryError(f"{what} has a dimension of 0: {list(shape)}")
    if record.offset + last >= storage.length:
        raise BestiaryError(f"{what} of shape {list(shape)} and strides {list(strides)} from {record.offset} lies "
                            f"outside its storage of {storage.length}")
    if prod(shape) > storage.length:
        raise BestiaryError(f"{what} has the shape {list(shape)} and a storage of only {storage.length} numbers: a "
                            "view that repeats them is not read")
    offset = place + record.offset * encoding.row_bytes(1)
    if contiguous(shape, strides):
        return (UnreadTensor if storage.kind in UNREAD else FileTensor)(file, offset, shape, encoding, name)
    if len(shape) > 2:
        raise BestiaryError(f"{what} of shape {list(shape)} has the strides {list(strides)}; beyond matrices only "
                            "tensors in one piece are read")
    return StridedTensor(file, offset, shape, strides, encoding, name)


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the numbers lie one after the other; the stride of an axis of one entry means nothing."""
    return all(size == 1 or stride == prod(shape[i + 1:])
               for i, (size, stride) in enumerate(zip(shape, strides, strict=True)))
