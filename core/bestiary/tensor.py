"""One weight of a checkpoint, read lazily by ranges of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.contributions import shown
from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError


class Tensor(ABC):
    """A weight as stored. The last axis of `shape` is columns; rows are the product of the rest.

    outputs_first: its rows are outputs also where those of plain weights, under the checkpoint's naming, are inputs:
    quantizers turn a matrix before they pack it.
    """

    shape: tuple[int, ...]
    encoding: Encoding
    outputs_first: bool = False

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.encoding.row_bytes(self.columns)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def ordered(self) -> Ordered | None:
        """The weight in its own bits, where these hold its columns in another order, as their groups ask for, and what
        `read` gives is decoded; None for most. Who multiplies may take it and put his inputs in that order."""
        return None

    @property
    def quantized_as(self) -> Encoding | None:
        """The encoding of the codes that the weights are: its own, or where `read` gives them decoded the one that they
        were decoded from; None where nobody quantized them. To quantize anew adds to what they lost, however they are
        read."""
        if self.encoding.quantized:
            return self.encoding
        offer = self.ordered
        return None if offer is None else offer.tensor.quantized_as

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows start..stop-1 as bytes, (stop - start, row_bytes) uint8. May be called from several threads at once."""

    def decode(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start..stop-1 as float32, (stop - start, columns)."""
        return self.encoding.decode(read_exactly(self, start, self.rows if stop is None else stop), self.columns)

    def array(self) -> NDArray[np.float32]:
        """The whole weight in its own shape, as float32. For small weights and the reference backend."""
        if not self.encoding.quantized:
            return self.decode().reshape(self.shape)
        whole = np.empty((self.rows, self.columns), np.float32)
        for first, last in chunks(self):  # the codes of a block take more memory on the way than the weights
            whole[first:last] = self.decode(first, last)
        return whole.reshape(self.shape)


class View(Tensor):
    """Weights of other tensors in other places, or as other numbers: quantized as the first of these that is."""

    def __init__(self, shape: tuple[int, ...], encoding: Encoding, bases: Sequence[Tensor]) -> None:
        self.shape, self.encoding, self._bases = shape, encoding, bases

    @property
    def quantized_as(self) -> Encoding | None:
        if self.encoding.quantized:
            return self.encoding
        return next((found for base in self._bases if (found := base.quantized_as) is not None), None)


class Ordered(NamedTuple):
    """A weight with its columns in another order: column i of the tensor is column order[i] of the weight. order: None
    where rows differ in it, so that nobody can take the weight but as it is read, decoded."""

    tensor: Tensor
    order: NDArray[np.int64] | None


def read_exactly(tensor: Tensor, first: int, last: int) -> NDArray[np.uint8]:
    """The rows as bytes. Raises BestiaryError where a tensor of anybody's gives something else."""
    return rows_of(tensor.read(first, last), tensor, first, last, f"a tensor ({type(tensor).__name__})")


def rows_of(given: object, tensor: Tensor, first: int, last: int, who: str) -> NDArray[np.uint8]:
    """What was given for rows first..last-1 of the tensor. Raises BestiaryError, naming `who`, where it is anything but
    their bytes: what is written would be damaged."""
    wanted = (last - first, tensor.row_bytes)
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or given.shape != wanted:
        raise BestiaryError(f"{who} gave {shown(given)} for rows {first} to {last}, not uint8 of shape {wanted}")
    return given


class ArrayTensor(Tensor):
    """A weight that is in memory already: derived ones, and tests."""

    def __init__(self, array: NDArray[np.float32] | NDArray[np.float16]) -> None:
        kept = array if array.dtype == np.float16 else array.astype(np.float32, copy=False)
        self.shape = tuple(array.shape)
        self.encoding = F16 if kept.dtype == np.float16 else F32
        self._bytes = np.ascontiguousarray(kept).reshape(self.rows, self.columns).view(np.uint8)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._bytes[start:stop]


class BlockTensor(Tensor):
    """A weight in memory in any encoding: rows of bytes, (rows, row_bytes) uint8."""

    def __init__(self, blocks: NDArray[np.uint8], shape: tuple[int, ...], encoding: Encoding) -> None:
        self.shape, self.encoding = shape, encoding
        self._bytes = blocks.reshape(self.rows, self.row_bytes)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._bytes[start:stop]


class Absent(Tensor):
    """A weight that is not here: what is known of it is what it will take. Where only its name is known its shape is
    empty."""

    def __init__(self, shape: tuple[int, ...] = (), encoding: Encoding = F32) -> None:
        self.shape, self.encoding = shape, encoding

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        raise BestiaryError("the weight is not here: only its name and shape are known")


def chunks(tensor: Tensor, bytes_at_a_time: int = 4 << 20) -> list[tuple[int, int]]:
    """Row ranges that cover the tensor, each of about that many decoded bytes; at least one row a range."""
    step = max(1, bytes_at_a_time // max(1, 4 * tensor.columns))
    return [(start, min(start + step, tensor.rows)) for start in range(0, tensor.rows, step)]


def encode_plain(values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.uint8]:
    """float32 rows, (rows, columns) -> bytes of a plain encoding, (rows, row_bytes)."""
    from bestiary.decoding import to_bf16

    match encoding.name:
        case F32.name:
            return np.ascontiguousarray(values, np.float32).view(np.uint8)
        case F16.name:
            with np.errstate(over="ignore"):  # what exceeds f16 becomes infinite; the caller says so
                return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)
        case BF16.name:
            return to_bf16(values).view(np.uint8)
    raise ValueError(f"{encoding.name} is not a plain encoding")
