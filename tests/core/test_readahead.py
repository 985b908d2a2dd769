"""Reading tensors on all cores gives what reading them one by one gives."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.encoding import F32
from bestiary.errors import BestiaryError
from bestiary.readahead import read_ahead
from bestiary.tensor import ArrayTensor, Tensor


class Watched(Tensor):
    """Counts how many ranges are held at once."""

    def __init__(self, rows: int, fail_at: int | None = None) -> None:
        self.shape, self.encoding, self.fail_at = (rows, 8), F32, fail_at
        self.begun, self.lock = 0, threading.Lock()

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        with self.lock:
            self.begun += 1
        if self.fail_at is not None and start >= self.fail_at:
            raise BestiaryError("unreadable")
        return np.full((stop - start, 32), start % 251, np.uint8)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_come_in_order(threads: int) -> None:
    random = np.random.default_rng(1)
    tensors = [ArrayTensor(random.standard_normal(shape, np.float32)) for shape in ((70, 8), (5,), (3, 4, 16), (1, 8))]
    got: list[list[NDArray[np.uint8]]] = [[] for _ in tensors]
    for index, first, rows in read_ahead(tensors, threads, bytes_at_a_time=256):
        assert first == sum(map(len, got[index]))
        got[index].append(rows)
    for tensor, parts in zip(tensors, got, strict=True):
        assert np.array_equal(np.concatenate(parts), tensor.read(0, tensor.rows))


def test_few_ranges_are_held_at_once() -> None:
    tensor, given = Watched(1000), 0
    for _ in read_ahead([tensor], 3, bytes_at_a_time=32):
        given += 1
        assert tensor.begun <= given + 6
    assert given == 1000


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_ends_it(threads: int) -> None:
    tensor = Watched(1000, fail_at=10)
    with pytest.raises(BestiaryError, match="unreadable"):
        for _ in read_ahead([tensor], threads, bytes_at_a_time=32):
            pass
    assert tensor.begun < 30
