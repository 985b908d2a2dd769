"""Reading tensors on all cores gives what reading them one by one gives."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary import readahead
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


def test_without_threads_and_where_they_end_at_once_everything_is_read_all_the_same(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    for start in (none, lambda *_: None):
        monkeypatch.setattr(readahead, "start_new_thread", start)
        assert [first for _, first, _ in read_ahead([Watched(100)], 3, bytes_at_a_time=32)] == list(range(100))


def test_a_reader_that_stops_early_waits_for_what_is_begun_and_begins_nothing_more() -> None:
    tensor = Watched(1000)
    some = read_ahead([tensor], 3, bytes_at_a_time=32)
    next(some)
    some.close()  # type: ignore[attr-defined]
    begun = tensor.begun
    time.sleep(0.05)
    assert tensor.begun == begun <= 7


def test_what_a_thread_raises_is_raised_to_him_who_reads_whatever_it_is() -> None:
    class Failing(Watched):
        def read(self, start: int, stop: int) -> NDArray[np.uint8]:
            raise MemoryError

    with pytest.raises(MemoryError):
        list(read_ahead([Failing(1000)], 3, bytes_at_a_time=32))
