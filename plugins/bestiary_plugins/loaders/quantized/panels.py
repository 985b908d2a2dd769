"""Weights that a file holds transposed: a row of theirs is a column there, so that rows are read many at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.files import FileTensor
from bestiary.tensor import Ordered, Tensor

Bytes = NDArray[np.uint8]
Key = tuple[str, int, int]
"""Of which weight, the first row and the last + 1."""
Panel = Sequence[NDArray[Any]]
"""What a file holds of some rows, as its weight's module wants it."""
PANEL_BYTES = 16 << 20
"""Of rows that are read at once: a run of one row of the file is then some thousand bytes, also where rows are long."""
KEPT_BYTES = 48 << 20
ALIGNED = 32
"""Panels begin at such rows, so that words of packed zeros are not cut."""


class Slot:
    """A panel, once somebody has made it."""

    __slots__ = ("arrays", "lock", "nbytes")

    def __init__(self) -> None:
        self.lock = Lock()
        self.arrays: Panel | None = None
        self.nbytes = 0


class Panels:
    """The panels that were used last, of all weights of a folder together: who reads ranges of rows in order, on
    several threads, has each panel read once, and memory does not grow with the model."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._lock = most, Lock()
        self._slots: OrderedDict[Key, Slot] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Panel]) -> Panel:
        with self._lock:
            slot = self._slots.setdefault(key, Slot())
            self._slots.move_to_end(key)
        with slot.lock:  # who comes second waits for the panel, and does not read it again
            arrays = slot.arrays
            if arrays is None:
                arrays = slot.arrays = make()
                slot.nbytes = sum(array.nbytes for array in arrays)
        with self._lock:
            held = sum(slot.nbytes for slot in self._slots.values())
            while held > self._most and len(self._slots) > 1:
                held -= self._slots.popitem(last=False)[1].nbytes
        return arrays


class Transposed(Tensor):
    """Its rows are read by panels, `load(first, last)`, of which `fill(panel, start, stop)` makes rows start..stop-1 in
    the encoding, counted from the panel's first: reading is for one thread, what is made of it for all."""

    outputs_first = True

    def __init__(self, name: str, shape: tuple[int, int], encoding: Encoding, panels: Panels,
                 load: Callable[[int, int], Panel], fill: Callable[[Panel, int, int], Bytes],
                 offer: Ordered | None = None, codes: Encoding | None = None) -> None:
        """codes: what `fill` decodes, where it does."""
        self.shape, self.encoding, self.name = shape, encoding, name
        self._panels, self._load, self._fill, self._offer, self._codes = panels, load, fill, offer, codes
        self._step = max(PANEL_BYTES // self.row_bytes // ALIGNED, 1) * ALIGNED

    @property
    def ordered(self) -> Ordered | None:
        return self._offer

    @property
    def quantized_as(self) -> Encoding | None:
        return self._codes or super().quantized_as

    def read(self, start: int, stop: int) -> Bytes:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} of tensor {self.name}, which has {self.rows}")
        found = [np.empty((0, self.row_bytes), np.uint8)]
        for index in range(start // self._step, -(-stop // self._step)):
            first = index * self._step
            last = min(first + self._step, self.rows)
            panel = self._panels.get((self.name, first, last), lambda: self._load(first, last))  # noqa: B023 - called at once
            found.append(self._fill(panel, max(start - first, 0), min(stop, last) - first))
        return np.concatenate(found)


def columns(tensor: FileTensor, first: int, last: int) -> Bytes:
    """Columns first..last-1 of a matrix of numbers, (rows, last - first, bytes of a number) uint8."""
    size = tensor.encoding.block_bytes[0]
    data = tensor.file.read_columns(tensor.offset, tensor.rows, tensor.columns * size, first * size,
                                    (last - first) * size, f"tensor {tensor.name}")
    return data.reshape(tensor.rows, last - first, size)
