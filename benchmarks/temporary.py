"""A folder that a benchmark leaves no trace of, however it is told to end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PREFIX = "bestiary-bench-"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def temporary(place: Path | None = None) -> Iterator[Path]:
    """A new folder, in `place` or where temporary files are kept, removed at the end. A signal ends the program by way
    of all that is to be cleaned up, and is heard once: `timeout` sends two. What runs left that were killed outright
    is removed first."""
    before = {number: signal.signal(number, _end) for number in SIGNALS}
    parent = Path(place or tempfile.gettempdir())
    try:
        remove_dead(parent)
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=parent) as folder:
            yield Path(folder)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _end:  # else the program ends, and nothing may come between
                signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def remove_dead(parent: Path) -> None:
    """Removes the folders of processes that are no more."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return True
