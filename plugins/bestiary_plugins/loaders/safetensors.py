"""safetensors files, read by ranges.

The `safetensors` package is not used: its reader maps the file, and a file truncated while mapped ends the process.
Source: huggingface/safetensors, README (format) and safetensors/src/tensor.rs (what it refuses is refused here).
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.strict_json import parse_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.git_lfs import refuse_pointer

LARGEST_HEADER = 100_000_000
MOST_DIMENSIONS, LARGEST_DIMENSION = 8, 1 << 48

DTYPES = {"F32": F32, "F16": F16, "BF16": BF16}
UNREAD = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4,
          "U64": 8, "I64": 8, "F64": 8, "C64": 8}
"""Types that may stand in a file as long as nobody wants the tensor (position ids are I64): bytes of a number."""


class UnreadTensor(FileTensor):
    """A tensor of a type that is not read: reading it raises BestiaryError."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        raise BestiaryError(f"{self.file.path}: tensor {self.name} is {self.encoding.name}, which is not read; "
                            f"known: {', '.join(DTYPES)}")


class Entry(NamedTuple):
    """A tensor of the header. start, stop: from the beginning of the data."""

    name: str
    encoding: Encoding
    shape: tuple[int, ...]
    start: int
    stop: int


def open_safetensors(file: DataFile) -> dict[str, Tensor]:
    """The tensors of a file, in the order of their data, unread. Raises BestiaryError for what is damaged."""
    refuse_pointer(file)
    length = int.from_bytes(file.read(0, 8, "the length of the header"), "little")
    if length > LARGEST_HEADER:
        raise BestiaryError(f"{file.path} claims a header of {length} bytes; {LARGEST_HEADER} are the most")
    header = parse_object(file.read(8, length, "the header"), f"{file.path}: the header", False, LARGEST_HEADER)
    header.pop("__metadata__", None)
    entries = sorted((read_entry(name, value, f"{file.path}: tensor {name}") for name, value in header.items()),
                     key=lambda entry: (entry.start, entry.stop))
    begin, end = 8 + length, 0
    for entry in entries:
        if entry.start != end:
            why = "they overlap" if entry.start < end else "there is a gap"
            raise BestiaryError(f"{file.path}: tensor {entry.name} begins at {entry.start} of the data, and what is "
                                f"before it ends at {end}: {why}")
        file.check(begin + entry.start, entry.stop - entry.start, f"tensor {entry.name}")
        end = entry.stop
    if begin + end != file.size:
        raise BestiaryError(f"{file.path} has {file.size} bytes; its header accounts for {begin + end}")
    return {name: (FileTensor if encoding.name in NAMES else UnreadTensor)(file, begin + start, shape, encoding, name)
            for name, encoding, shape, start, _ in entries}


NAMES = {encoding.name for encoding in DTYPES.values()}


def read_entry(name: str, value: Any, what: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BestiaryError(f"{what} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES and dtype not in UNREAD:
        raise BestiaryError(f"{what} is of the unknown type {dtype!r:.40}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS \
            or not all(whole(size, LARGEST_DIMENSION) for size in shape):
        raise BestiaryError(f"{what} has the shape {shape!r:.60}; it must be at most {MOST_DIMENSIONS} sizes of 0 to "
                            f"{LARGEST_DIMENSION}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(whole(place, 1 << 63) for place in offsets):
        raise BestiaryError(f"{what} has the data_offsets {offsets!r:.60}; they must be two places in the data")
    encoding = DTYPES.get(dtype) or Encoding(dtype, 1, (UNREAD[dtype],))
    size = prod(shape) * encoding.block_bytes[0]
    if offsets[1] - offsets[0] != size:
        raise BestiaryError(f"{what} has {offsets[1] - offsets[0]} bytes; {dtype} of shape {shape} takes {size}")
    return Entry(name, encoding, tuple(shape), *offsets)


def whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
