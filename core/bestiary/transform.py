"""Row operations between the tensors of one naming and another, lazy, each with its inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import F32, PLAIN
from bestiary.errors import BestiaryError
from bestiary.tensor import Ordered, Tensor, View, encode_plain

Rows = NDArray[np.uint8]
LARGEST_GAP = 64
"""Rows of a matrix that are read although nobody wants them, rather than to read twice."""


class _Permuted(View):
    def __init__(self, base: Tensor, order: NDArray[np.int64]) -> None:
        super().__init__(base.shape, base.encoding, (base,))
        self._base, self._order = base, order

    @property
    def ordered(self) -> Ordered | None:
        offer = self._base.ordered
        return offer and Ordered(_Permuted(offer.tensor, self._order), offer.order)

    def read(self, start: int, stop: int) -> Rows:
        wanted = self._order[start:stop]
        if not len(wanted):
            return self._base.read(0, 0)
        # A read for each run of neighbours, with the few rows between them that nobody wants: queries, keys and values
        # of one head may lie far apart.
        rows = np.sort(wanted)
        breaks = np.flatnonzero(np.diff(rows) > LARGEST_GAP) + 1
        starts, ends = rows[np.r_[0, breaks]], rows[np.r_[breaks - 1, len(rows) - 1]] + 1
        found = [self._base.read(int(low), int(high)) for low, high in zip(starts, ends, strict=True)]
        sizes = ends - starts
        run = np.searchsorted(starts, wanted, "right") - 1
        places = (np.cumsum(sizes) - sizes)[run] + wanted - starts[run]
        kept: Rows = (found[0] if len(found) == 1 else np.concatenate(found))[places]
        return kept


class _PermutedEntries(Tensor):
    """A bias: its entries are the rows of the matrix beside it."""

    def __init__(self, base: Tensor, order: NDArray[np.int64]) -> None:
        if base.encoding.quantized:
            raise BestiaryError(f"the entries of a {base.encoding.name} vector cannot be permuted")
        self.shape, self.encoding, self._base, self._order = base.shape, base.encoding, base, order

    def read(self, start: int, stop: int) -> Rows:
        item = self.encoding.row_bytes(1)
        entries = self._base.read(start, stop).reshape(stop - start, self.columns, item)[:, self._order]
        return entries.reshape(stop - start, self.row_bytes)


class _Slice(View):
    def __init__(self, base: Tensor, first: int, shape: tuple[int, ...]) -> None:
        super().__init__(shape, base.encoding, (base,))
        self._base, self._first = base, first

    @property
    def ordered(self) -> Ordered | None:
        offer = self._base.ordered
        return offer and Ordered(_Slice(offer.tensor, self._first, self.shape), offer.order)

    def read(self, start: int, stop: int) -> Rows:
        return self._base.read(self._first + start, self._first + stop)


class Widened(View):
    """The same numbers in f32."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.shape, F32, (base,))
        self._base = base

    @property
    def ordered(self) -> Ordered | None:
        return self._base.ordered

    def read(self, start: int, stop: int) -> Rows:
        return encode_plain(self._base.decode(start, stop), F32)


def alike(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors in one encoding, where plain ones of several are to be one: in f32, which holds them all."""
    if len({part.encoding for part in parts}) > 1 and all(part.encoding.name in PLAIN for part in parts):
        return [part if part.encoding == F32 else Widened(part) for part in parts]
    return parts


class _Joined(View):
    def __init__(self, parts: Sequence[Tensor], shape: tuple[int, ...]) -> None:
        parts = alike(parts)
        super().__init__(shape, parts[0].encoding, parts)
        self._parts = parts
        if any(part.encoding != self.encoding or part.columns != parts[0].columns for part in parts):
            raise BestiaryError(f"tensors of shapes {[part.shape for part in parts]} and encodings "
                                f"{[part.encoding.name for part in parts]} cannot be joined")

    @property
    def ordered(self) -> Ordered | None:
        offers = [offer for part in self._parts if (offer := part.ordered) is not None]
        if not offers:
            return None
        if len(offers) < len(self._parts) or any(
                offer.tensor.encoding != offers[0].tensor.encoding or offer.order is None or offers[0].order is None
                or not np.array_equal(offer.order, offers[0].order) for offer in offers):
            return Ordered(self, None)
        return Ordered(_Joined([offer.tensor for offer in offers], self.shape), offers[0].order)

    def read(self, start: int, stop: int) -> Rows:
        pieces, first = [], 0
        for part in self._parts:
            low, high = max(start - first, 0), min(stop - first, part.rows)
            if low < high:
                pieces.append(part.read(low, high))
            first += part.rows
        return np.concatenate(pieces) if pieces else self._parts[0].read(0, 0)


class _Entries(Tensor):
    """A run of the entries of a vector."""

    def __init__(self, base: Tensor, first: int, count: int) -> None:
        self.shape, self.encoding, self._base = (count,), base.encoding, base
        self._bytes = slice(base.encoding.row_bytes(first), base.encoding.row_bytes(first + count))

    def read(self, start: int, stop: int) -> Rows:
        return self._base.read(start, stop)[:, self._bytes]


class _JoinedEntries(Tensor):
    """Vectors one after the other."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        parts = alike(parts)
        self.shape, self.encoding, self._parts = (sum(part.columns for part in parts),), parts[0].encoding, parts
        if any(part.encoding != self.encoding for part in parts):
            raise BestiaryError(f"vectors of encodings {[part.encoding.name for part in parts]} cannot be joined")

    def read(self, start: int, stop: int) -> Rows:
        return np.concatenate([part.read(start, stop) for part in self._parts], axis=1)


class _Columns(View):
    """Some columns of a matrix. Reads whole rows."""

    def __init__(self, base: Tensor, first: int, count: int) -> None:
        super().__init__((*base.shape[:-1], count), base.encoding, (base,))
        self._base = base
        self._bytes = slice(base.encoding.row_bytes(first), base.encoding.row_bytes(first + count))

    def read(self, start: int, stop: int) -> Rows:
        return np.ascontiguousarray(self._base.read(start, stop)[:, self._bytes])


class _JoinedColumns(View):
    """Matrices side by side."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        parts = alike(parts)
        first = parts[0]
        super().__init__((*first.shape[:-1], sum(part.columns for part in parts)), first.encoding, parts)
        self._parts = parts
        if any(part.encoding != self.encoding or part.shape[:-1] != first.shape[:-1] for part in parts):
            raise BestiaryError(f"tensors of shapes {[part.shape for part in parts]} and encodings "
                                f"{[part.encoding.name for part in parts]} cannot stand side by side")

    def read(self, start: int, stop: int) -> Rows:
        return np.concatenate([part.read(start, stop) for part in self._parts], axis=1)


def one_plane(sources: Sequence[Tensor]) -> None:
    """Raises BestiaryError where the bytes of some columns are no single run in their row."""
    for source in sources:
        if len(source.encoding.block_bytes) != 1:
            raise BestiaryError(f"a {source.encoding.name} tensor keeps its planes apart and cannot be cut by columns")


class _Transposed(View):
    """Reads the whole base for every range: use it on what fits in memory, one tensor at a time."""

    def __init__(self, base: Tensor) -> None:
        if base.encoding.quantized or len(base.shape) != 2:
            raise BestiaryError(f"a {base.encoding.name} tensor of shape {base.shape} cannot be transposed")
        super().__init__((base.shape[1], base.shape[0]), base.encoding, (base,))
        self._base = base

    def read(self, start: int, stop: int) -> Rows:
        rows, columns = self._base.shape
        item = self.encoding.row_bytes(1)
        grid = self._base.read(0, rows).reshape(rows, columns, item)[:, start:stop]
        return np.ascontiguousarray(grid.swapaxes(0, 1)).reshape(stop - start, rows * item)


class _Shifted(Tensor):
    def __init__(self, base: Tensor, amount: float) -> None:
        if base.encoding.quantized:
            raise BestiaryError(f"a constant cannot be added to a {base.encoding.name} tensor")
        self.shape, self.encoding, self._base, self._amount = base.shape, F32, base, amount

    def read(self, start: int, stop: int) -> Rows:
        return encode_plain(self._base.decode(start, stop) + np.float32(self._amount), F32)


class Transform(ABC):
    """Tensors of a checkpoint's naming -> canonical ones; `inverse` is the way back."""

    @abstractmethod
    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]: ...

    @property
    @abstractmethod
    def inverse(self) -> Transform: ...


@dataclass(frozen=True)
class Permute(Transform):
    """New row i of each tensor is old row `order[i]`; the entries of a vector count as rows."""

    order: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        order = np.asarray(self.order, np.int64)
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise BestiaryError(f"an order of {len(order)} rows that is no permutation of them")
        check_rows(sources, len(order))
        return permuted(sources, order)

    @property
    def inverse(self) -> Permute:
        return Permute(tuple(np.argsort(np.asarray(self.order, np.int64)).tolist()))


def check_rows(sources: Sequence[Tensor], count: int) -> None:
    """Raises BestiaryError unless each tensor has that many rows; the entries of a vector count as rows."""
    for source in sources:
        if (source.rows if len(source.shape) > 1 else source.columns) != count:
            raise BestiaryError(f"{count} rows cannot be permuted in a tensor of shape {source.shape}")


def permuted(sources: Sequence[Tensor], order: NDArray[np.int64]) -> list[Tensor]:
    return [(_Permuted if len(source.shape) > 1 else _PermutedEntries)(source, order) for source in sources]


@dataclass(frozen=True)
class Regroup(Transform):
    """The rows of each tensor, numbered as the entries of an array of `shape`, in the order they have once its axes are
    `axes`; the entries of a vector count as rows. A permutation that costs nothing before it is known to fit, since
    the shape comes from a config, which may ask for 2^31 heads."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        if sorted(self.axes) != list(range(len(self.shape))):
            raise BestiaryError(f"axes {self.axes} of an array of {len(self.shape)}")
        check_rows(sources, prod(self.shape))
        return permuted(sources, np.arange(prod(self.shape)).reshape(self.shape).transpose(self.axes).ravel())

    @property
    def inverse(self) -> Regroup:
        return Regroup(tuple(self.shape[axis] for axis in self.axes),
                       tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class Split(Transform):
    """One tensor into several of `rows` rows each, in order."""

    rows: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        (source,) = sources
        length = source.rows if len(source.shape) > 1 else source.columns
        if sum(self.rows) != length:
            raise BestiaryError(f"a tensor of shape {source.shape} cannot be split into rows {self.rows}")
        starts = [sum(self.rows[:i]) for i in range(len(self.rows))]
        if len(source.shape) == 1:
            return [_Entries(source, start, count) for start, count in zip(starts, self.rows, strict=True)]
        return [_Slice(source, start, (count, source.columns)) for start, count in zip(starts, self.rows, strict=True)]

    @property
    def inverse(self) -> Join:
        return Join(self.rows)


@dataclass(frozen=True)
class Join(Transform):
    """Several tensors of `rows` rows each into one, in order."""

    rows: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        vectors = all(len(source.shape) == 1 for source in sources)
        if tuple(source.columns if vectors else source.rows for source in sources) != self.rows:
            raise BestiaryError(f"tensors of shapes {[source.shape for source in sources]} cannot be joined as rows "
                                f"{self.rows}")
        if vectors:
            return [_JoinedEntries(sources)]
        return [_Joined(sources, (sum(source.rows for source in sources), sources[0].columns))]

    @property
    def inverse(self) -> Split:
        return Split(self.rows)


@dataclass(frozen=True)
class SplitColumns(Transform):
    """One matrix into several of `columns` columns each, in order."""

    columns: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        (source,) = sources
        one_plane(sources)
        if len(source.shape) < 2 or sum(self.columns) != source.columns:
            raise BestiaryError(f"a tensor of shape {source.shape} cannot be split into columns {self.columns}")
        starts = [sum(self.columns[:i]) for i in range(len(self.columns))]
        return [_Columns(source, start, count) for start, count in zip(starts, self.columns, strict=True)]

    @property
    def inverse(self) -> JoinColumns:
        return JoinColumns(self.columns)


@dataclass(frozen=True)
class JoinColumns(Transform):
    """Several matrices of `columns` columns each into one, side by side."""

    columns: tuple[int, ...]

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        one_plane(sources)
        if tuple(source.columns for source in sources) != self.columns or any(len(s.shape) < 2 for s in sources):
            raise BestiaryError(f"tensors of shapes {[source.shape for source in sources]} cannot be joined as columns "
                                f"{self.columns}")
        return [_JoinedColumns(sources)]

    @property
    def inverse(self) -> SplitColumns:
        return SplitColumns(self.columns)


@dataclass(frozen=True)
class Stack(Transform):
    """`count` tensors of one shape into one with a new first axis (experts)."""

    count: int

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(sources) != self.count:
            raise BestiaryError(f"{len(sources)} tensors for a stack of {self.count}")
        if any(source.shape != sources[0].shape for source in sources):
            raise BestiaryError(f"tensors of shapes {sorted({source.shape for source in sources})} cannot be stacked")
        return [_Joined(sources, (len(sources), *sources[0].shape))]

    @property
    def inverse(self) -> Unstack:
        return Unstack(self.count)


@dataclass(frozen=True)
class Unstack(Transform):
    """One tensor into its `count` entries along the first axis."""

    count: int

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        (source,) = sources
        if len(source.shape) < 3 or source.shape[0] != self.count:
            raise BestiaryError(f"a tensor of shape {source.shape} is no stack of {self.count}")
        rows = source.rows // self.count
        return [_Slice(source, i * rows, source.shape[1:]) for i in range(self.count)]

    @property
    def inverse(self) -> Stack:
        return Stack(self.count)


@dataclass(frozen=True)
class Transpose(Transform):
    """Rows become columns; a tensor that is `outputs_first` stays as it is. Unquantized tensors only."""

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_Slice(source, 0, source.shape) if source.outputs_first else _Transposed(source) for source in sources]

    @property
    def inverse(self) -> Transpose:
        return self


@dataclass(frozen=True)
class Add(Transform):
    """Adds a constant to every weight, in float32; unquantized tensors only."""

    amount: float

    def apply(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_Shifted(source, self.amount) for source in sources]

    @property
    def inverse(self) -> Add:
        return Add(-self.amount)
