"""What people see while they wait and when it is done: progress bars, sizes, types."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from bestiary.backend import Progress

PATIENCE = 0.3
"""Seconds; what is done sooner needs no bar."""


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """What the log said before in the block is not said again: a model that is loaded several times has one story."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if line in said:
            return False
        said.add(line)
        return True

    log = logging.getLogger("bestiary")
    log.addFilter(new)
    try:
        yield
    finally:
        log.removeFilter(new)


@contextlib.contextmanager
def aside(as_json: bool = True) -> Iterator[None]:
    """Where JSON is to come, all that is written to stdout until the end of the block goes to stderr: what plugins
    print, and what they and their children write to the file descriptor itself."""
    if not as_json:
        yield
        return
    out, kept = sys.stdout, None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what stands for stdout need not be a file
        if out.fileno() == 1:
            out.flush()
            kept = os.dup(1)
            os.dup2(sys.stderr.fileno(), 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            try:
                out.flush()  # what was written to sys.__stdout__
            finally:
                os.dup2(kept, 1)
                os.close(kept)


@contextlib.contextmanager
def progress_bar(title: str, unit: str | None = None) -> Iterator[Progress | None]:
    """A bar on stderr where that is a terminal, else None. unit: what is counted; bytes where none is named."""
    if not sys.stderr.isatty():
        yield None
        return
    started, bar, task = time.perf_counter(), None, None

    def show(done: int, total: int, what: str) -> None:
        nonlocal bar, task
        if bar is None:
            if time.perf_counter() - started < PATIENCE:
                return
            bar = _rich_bar(unit)
            bar.start()
            task = bar.add_task(title, total=total, what="")
        bar.update(task, completed=done, total=total, what="" if what == title else what)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _rich_bar(unit: str | None) -> Any:
    from rich import progress  # late: it is slow to import, and short work needs none
    from rich.console import Console

    count = progress.TextColumn("{task.completed}/{task.total} " + unit) if unit else progress.DownloadColumn()
    return progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(), count,
        progress.TimeRemainingColumn(), progress.TextColumn("{task.fields[what]}", style="dim", markup=False),
        console=Console(stderr=True), transient=True)


def size(count: float) -> str:
    """Bytes for people: 3.4 GB."""
    return f"{count:.0f} bytes" if count < 1000 else f"{amount(count)}B"


def amount(count: float) -> str:
    """A number for people: 1.1 G."""
    units = iter((" ", " K", " M", " G"))
    unit = next(units)
    while count >= 999.5 and unit != " G":
        count, unit = count / 1000, next(units)
    return f"{count:.3g}{unit}" if count < 1000 else f"{count:.0f}{unit}"


def type_counts(types: Mapping[str, Mapping[str, Any]]) -> str:
    """ "32 tensors bf16, 11 f32"."""
    counts = [(name, entry["tensors"]) for name, entry in types.items()]
    return ", ".join(f"{count} {'tensors ' if i == 0 else ''}{name}" for i, (name, count) in enumerate(counts))


def bits_per_weight(types: Mapping[str, Mapping[str, Any]]) -> float:
    weights = sum(entry["weights"] for entry in types.values())
    return 8 * sum(entry["bytes"] for entry in types.values()) / weights if weights else 0.0


def table(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Rows of cells, the first the titles, in columns as wide as they need; `left` are aligned to the left."""
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(
        cell + " " * (wide - width(cell)) if i in left else " " * (wide - width(cell)) + cell
        for i, (cell, wide) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def width(text: str) -> int:
    """Columns the text takes in a terminal; wide characters take two."""
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
