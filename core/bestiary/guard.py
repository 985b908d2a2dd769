"""What stands around every call into a plugin: what it prints, and how it may fail."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from bestiary.contributions import one_line
from bestiary.errors import BestiaryError, Terminated

PASSING = (KeyboardInterrupt, Terminated)
"""What goes through every guard: not a plugin's fault, and somebody waits for it."""
_counting = threading.Lock()
_inside = 0
_before: TextIO | None = None


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """What is printed goes to stderr: stdout may be somebody's JSON. sys.stdout belongs to the process, so threads that
    overlap are counted: the first one changes it and the last one gives it back."""
    global _inside, _before
    with _counting:
        if _inside == 0:
            _before, sys.stdout = sys.stdout, sys.stderr
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if _inside == 0 and _before is not None:
                sys.stdout, _before = _before, None


@contextlib.contextmanager
def calling(who: str, what: str) -> Iterator[None]:
    """Around a call that has nothing to fall back on. A SystemExit becomes an error: a plugin does not end the program.
    Anything else but a BestiaryError is a bug and keeps its traceback; a line on the log says whose it is."""
    try:
        yield
    except (BestiaryError, MemoryError, *PASSING):
        raise
    except SystemExit as error:
        raise BestiaryError(f"{who} failed to {what}: {one_line(error)}") from error
    except BaseException as error:
        if not (isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC)):
            import logging  # late: a process in which nothing fails does not need it

            logging.getLogger("bestiary").error("%s failed to %s: %s", who, what, one_line(error))
        raise
