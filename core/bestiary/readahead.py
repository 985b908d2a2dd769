"""The bytes of tensors in order, computed on all cores: quantizing a file is bound by arithmetic, not by the disk."""

from __future__ import annotations

import contextlib
import os
from _thread import allocate_lock, start_new_thread
from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from bestiary.tensor import Tensor, chunks, read_exactly


def read_ahead(tensors: Iterable[Tensor], threads: int | None = None,
               bytes_at_a_time: int = 4 << 20) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Every row of the tensors, in order: (index of the tensor, first row, rows of bytes).

    At most two ranges a thread are held at once, each of about `bytes_at_a_time` decoded bytes, so memory does not grow
    with the tensors. What reading a tensor raises is raised here, and nothing further is begun. Tensors of which each
    range reads all (a transposed one) are read by several threads at once too: their memory counts that often.
    """
    threads = threads or usable_cpus()
    ranges = ((index, tensor, first, last) for index, tensor in enumerate(tensors)
              for first, last in chunks(tensor, bytes_at_a_time))
    if threads == 1:
        for index, tensor, first, last in ranges:
            yield index, first, read_exactly(tensor, first, last)
        return
    todo: SimpleQueue[Reading | None] = SimpleQueue()
    pending: deque[Reading] = deque()
    try:
        for _ in range(threads):
            with contextlib.suppress(RuntimeError):  # the system has no thread left: there are fewer then
                start_new_thread(work, (todo,))
        for index, tensor, first, last in ranges:
            pending.append(Reading(index, tensor, first, last))
            todo.put(pending[-1])
            if len(pending) >= 2 * threads:
                done = pending.popleft()
                yield done.index, done.first, done.result()
        while pending:
            done = pending.popleft()
            yield done.index, done.first, done.result()
    finally:
        for _ in range(threads):
            todo.put(None)
        for reading in [reading for reading in pending if not reading.drop()]:
            reading.wait()


class Reading:
    """A range that is read by whoever comes first: a thread, or he who needs it.

    Of the library's own threads and futures this has one thing more: it cannot wait for what nobody does. There, a
    thread that runs out of memory as it begins leaves its starter waiting for ever."""

    __slots__ = ("_begun", "_ended", "_error", "_rows", "first", "index", "last", "tensor")

    def __init__(self, index: int, tensor: Tensor, first: int, last: int) -> None:
        self.index, self.tensor, self.first, self.last = index, tensor, first, last
        self._begun, self._ended = allocate_lock(), allocate_lock()
        self._ended.acquire()
        self._rows: NDArray[np.uint8] | None = None
        self._error: BaseException | None = None

    def read(self) -> None:
        """Nothing, where another has begun."""
        if self._begun.acquire(False):
            try:
                self._rows = read_exactly(self.tensor, self.first, self.last)
            except BaseException as error:
                self._error = error
            finally:
                self._ended.release()

    def drop(self) -> bool:
        """Nobody begins it any more; False where somebody has."""
        return self._begun.acquire(False)

    def wait(self) -> None:
        """For him who has begun."""
        self._ended.acquire()

    def result(self) -> NDArray[np.uint8]:
        self.read()
        self.wait()
        error, self._error = self._error, None  # kept, it would keep all that its traceback holds
        if self._rows is None:
            raise error or MemoryError
        return self._rows


def work(todo: SimpleQueue[Reading | None]) -> None:
    """What a thread does until it is given None."""
    while (reading := todo.get()) is not None:
        reading.read()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
