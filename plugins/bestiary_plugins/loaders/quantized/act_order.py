"""Act-order: groups that are no runs of columns, since columns were quantized in another order than they stand in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bestiary.decoding import number_from_bits
from bestiary.encoding import PLAIN, Encoding
from bestiary.errors import BestiaryError
from bestiary.tensor import encode_plain
from bestiary_plugins.loaders.quantized.parts import Parts, raw
from bestiary_plugins.loaders.quantized.rows import NUMBER_BYTES, IntegerRows, pack, unpack

log = logging.getLogger("bestiary")
Bytes = NDArray[np.uint8]
Columns = NDArray[np.int64]


class Rows(Protocol):
    """What IntegerRows is: rows of an encoding, made of codes in the order of the file, scales and zeros."""

    @property
    def encoding(self) -> Encoding: ...

    def fill(self, stream: Bytes, scales: Bytes, zeros: Bytes | None = None) -> Bytes: ...


@dataclass(frozen=True, eq=False)
class DecodedRows:
    """Rows as numbers of the scales' type, rounded once, as where the formats come from. groups: of each column."""

    layout: IntegerRows
    groups: Columns

    @property
    def encoding(self) -> Encoding:
        return PLAIN[self.layout.number]

    def fill(self, stream: Bytes, scales: Bytes, zeros: Bytes | None = None) -> Bytes:
        bits, number = self.layout.bits, self.layout.number
        values = np.ascontiguousarray(scales).view(np.uint16 if NUMBER_BYTES[number] == 2 else np.uint32)[:, :, 0]
        scale = number_from_bits(values.astype(np.uint32), number)[:, self.groups]
        zero = np.float32(1 << (bits - 1)) if zeros is None else zeros[:, self.groups].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be infinite or no number
            return encode_plain(scale * (unpack(stream, bits) - zero), self.encoding)


@dataclass(frozen=True, eq=False)
class MovedRows:
    """Rows in their own bits, their columns in an order in which groups are runs."""

    layout: IntegerRows
    order: Columns

    @property
    def encoding(self) -> Encoding:
        return self.layout.encoding

    def fill(self, stream: Bytes, scales: Bytes, zeros: Bytes | None = None) -> Bytes:
        codes = unpack(stream, self.layout.bits).take(self.order, 1)
        return self.layout.fill(pack(codes, self.layout.bits), scales, zeros)


def rows_of(layout: IntegerRows, groups: Columns | None) -> tuple[Rows, MovedRows | None]:
    """What a weight is read as, and where that is decoded, what can be offered in its stead: nothing where the groups
    are runs in no order of columns. groups: of each column, if a file says so."""
    runs = np.arange(layout.columns) // layout.group
    if groups is None or np.array_equal(groups, runs):
        return layout, None
    order = np.argsort(groups, kind="stable")
    return DecodedRows(layout, groups), MovedRows(layout, order) if np.array_equal(groups[order], runs) else None


def read_groups(parts: Parts, name: str, inputs: int, groups: int) -> Columns | None:
    """The group of each input, where there is such a tensor. Raises BestiaryError for a group that there is not."""
    if name not in parts.left:
        return None
    given = parts.take(name, ("I32", "I64"), (1,))
    parts.fits(given, name, (inputs,), "the weight")
    found: Columns = raw(given, 0, 1)[0].view(np.int32 if given.encoding.name == "I32" else np.int64).astype(np.int64)
    if found.min() < 0 or found.max() >= groups:
        raise BestiaryError(f"{parts.folder}: tensor {name} holds {int(found.min())} to {int(found.max())}; groups are "
                            f"counted from 0 to {groups - 1}")
    return found


def say_uneven(folder: Path, encodings: Iterable[Encoding]) -> None:
    """A line on weights that are decoded and cannot be offered otherwise, by what they are decoded to."""
    for name, count in Counter(encoding.name for encoding in encodings).items():
        log.warning("%s: %d weights have groups of uneven sizes (g_idx), which can only be run decoded to %s; `convert "
                    "--outtype q8_0 --allow-requantize` makes them smaller", folder, count, name)
