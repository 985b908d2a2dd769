"""Work done in order on all cores, the bytes of tensors above all: quantizing a file is bound by arithmetic, not by the
disk."""

from __future__ import annotations

import contextlib
import os
from _thread import allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bestiary.tensor import Tensor, chunks, read_exactly

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(tensors: Iterable[Tensor], threads: int | None = None,
               bytes_at_a_time: int = 4 << 20) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Every row of the tensors, in order: (index of the tensor, first row, rows of bytes).

    At most two ranges a thread are held at once, each of about `bytes_at_a_time` decoded bytes, so memory does not grow
    with the tensors. What reading a tensor raises is raised here, and nothing further is begun. Tensors of which each
    range reads all (a transposed one) are read by several threads at once too: their memory counts that often.
    """
    def read(item: tuple[int, Tensor, int, int]) -> tuple[int, int, NDArray[np.uint8]]:
        index, tensor, first, last = item
        return index, first, read_exactly(tensor, first, last)

    ranges = ((index, tensor, first, last) for index, tensor in enumerate(tensors)
              for first, last in chunks(tensor, bytes_at_a_time))
    return done_ahead(read, ranges, threads or usable_cpus())


def done_ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """work(item) of each, in order, with at most two a thread done or begun ahead. What it raises is raised here, and
    nothing further is begun; what has begun has ended when this has."""
    if threads == 1:
        yield from map(work, items)
        return
    todo: SimpleQueue[Task[Any] | None] = SimpleQueue()
    pending: deque[Task[Result]] = deque()
    try:
        for _ in range(threads):
            with contextlib.suppress(RuntimeError):  # the system has no thread left: there are fewer then
                start_new_thread(help_with, (todo,))
        for item in items:
            pending.append(Task(partial(work, item)))
            todo.put(pending[-1])
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for _ in range(threads):
            todo.put(None)
        for task in [task for task in pending if not task.drop()]:
            task.wait()


class Task(Generic[Result]):
    """Work that is done by whoever comes first: a thread, or he who needs it.

    Of the library's own threads and futures this has one thing more: it cannot wait for what nobody does. There, a
    thread that runs out of memory as it begins leaves its starter waiting for ever."""

    __slots__ = ("_begun", "_ended", "_error", "_given", "_work")

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._begun, self._ended = allocate_lock(), allocate_lock()
        self._ended.acquire()
        self._given: list[Result] = []
        self._error: BaseException | None = None

    def do(self) -> None:
        """Nothing, where another has begun."""
        if self._begun.acquire(False):
            try:
                self._given.append(self._work())
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

    def result(self) -> Result:
        self.do()
        self.wait()
        error, self._error = self._error, None  # kept, it would keep all that its traceback holds
        if not self._given:
            raise error or MemoryError
        return self._given.pop()


def help_with(todo: SimpleQueue[Task[Any] | None]) -> None:
    """What a thread does until it is given None."""
    while (task := todo.get()) is not None:
        task.do()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
