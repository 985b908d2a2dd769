"""The bytes of tensors in order, computed on all cores: quantizing a file is bound by arithmetic, not by the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.tensor import Tensor, chunks


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
    pending: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(threads, "bestiary-read") as pool:
        try:
            for index, tensor, first, last in ranges:
                pending.append((index, first, pool.submit(read_exactly, tensor, first, last)))
                if len(pending) >= 2 * threads:
                    done, row, future = pending.popleft()
                    yield done, row, future.result()
            while pending:
                done, row, future = pending.popleft()
                yield done, row, future.result()
        finally:
            for _, _, future in pending:
                future.cancel()


def read_exactly(tensor: Tensor, first: int, last: int) -> NDArray[np.uint8]:
    """The rows as bytes. Raises BestiaryError where a plugin's tensor gives another number of them."""
    rows = tensor.read(first, last)
    if rows.ndim != 2 or len(rows) != last - first:
        raise BestiaryError(f"a tensor gave bytes of shape {rows.shape} for rows {first} to {last}")
    return rows


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
