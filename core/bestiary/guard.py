"""What stands around every call into a plugin: what it prints, and how it may fail."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, TextIO

from bestiary.contributions import Refused, one_line
from bestiary.errors import BestiaryError, Terminated

PASSING = (KeyboardInterrupt, Terminated)
"""What goes through every guard: not a plugin's fault, and somebody waits for it."""
LEAVING = (SystemExit, StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt)
"""What means something to whoever it reaches: out of a plugin it is a fault, and nothing else."""
_counting = threading.Lock()
_inside = 0
_before: tuple[TextIO, TextIO] | None = None


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """What is printed goes to stderr: stdout may be somebody's JSON. sys.stdout belongs to the process, so threads that
    overlap are counted: the first one changes it and the last one gives it back. Both streams are as before then,
    whatever a plugin put in their place."""
    global _inside, _before
    with _counting:
        if _inside == 0:
            _before, sys.stdout = (sys.stdout, sys.stderr), sys.stderr
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if _inside == 0 and _before is not None:
                (sys.stdout, sys.stderr), _before = _before, None


@contextlib.contextmanager
def _same_files() -> Iterator[None]:
    """The names that the user gave mean the same files afterwards, and new ones get the rights that they would have."""
    here = None
    with contextlib.suppress(OSError):  # it may be gone
        here = os.getcwd()
    mask = os.umask(0o077)  # to be told of it is to set it
    os.umask(mask)
    try:
        yield
    finally:
        os.umask(mask)
        if here is not None:
            with contextlib.suppress(OSError):
                os.chdir(here)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around a plugin's import and its hooks: what it changes of the whole process without being asked to, the standard
    streams, the working directory and the umask, the filters of warnings and who is told of Ctrl-C, is as before at the
    end. A KeyboardInterrupt that nobody at the keyboard caused is a fault like any other."""
    import warnings  # late: somebody else has imported it by now

    before, came = signal.getsignal(signal.SIGINT), []

    def interrupted(number: int, frame: FrameType | None) -> Any:
        came.append(number)
        return before(number, frame) if callable(before) else None

    mine = threading.current_thread() is threading.main_thread() and callable(before)  # others get no signals
    try:
        with printing_to_stderr(), _same_files(), warnings.catch_warnings():
            if mine:
                signal.signal(signal.SIGINT, interrupted)
            try:
                yield
            finally:
                if mine:
                    signal.signal(signal.SIGINT, before)
    except KeyboardInterrupt as error:
        if came:
            raise
        raise Refused("it raises KeyboardInterrupt, and nobody pressed Ctrl-C") from error


class calling:  # noqa: N801 - it stands after `with`
    """Around a call that has nothing to fall back on. A SystemExit becomes an error: a plugin does not end the program.
    Anything else but a BestiaryError is a bug and keeps its traceback; a line on the log says whose it is, once of
    each kind. May be entered again and again, by several threads at once, and costs a fraction of a microsecond: it
    stands around the forward of each token."""

    def __init__(self, who: str, what: str) -> None:
        self.who, self.what = who, what
        self._told: dict[type[BaseException], object] = {}

    def also(self, what: str) -> calling:
        """Around another call of the same work: of a fault that several of them have, only the first is said."""
        other = calling(self.who, what)
        other._told = self._told
        return other

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None or isinstance(error, (BestiaryError, Terminated)):
            return
        if isinstance(error, MemoryError):
            with contextlib.suppress(Exception):
                error._bestiary_whose = whose_memory(error) or self.who  # type: ignore[attr-defined]
            return
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            return  # another thread is never told of Ctrl-C
        if isinstance(error, LEAVING):
            raise BestiaryError(f"{self.who} failed to {self.what}: {one_line(error)}") from error
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
            return
        mine = object()
        if not _named(error) and self._told.setdefault(type(error), mine) is mine:
            import logging  # late: a process in which nothing fails does not need it

            logging.getLogger("bestiary").error("%s failed to %s: %s", self.who, self.what, one_line(error))
        with contextlib.suppress(Exception):
            error._bestiary_named = True  # type: ignore[attr-defined]


def _named(error: BaseException) -> bool:
    """Whether a call inside of this one has said whose fault it is, also where it was raised as another since."""
    at: BaseException | None = error
    while at is not None and not getattr(at, "_bestiary_named", False):
        at = at.__context__ if at.__cause__ is None else at.__cause__
    return at is not None


def whose_memory(error: MemoryError) -> str | None:
    """In which call into a plugin the memory ran out, or was said to."""
    return getattr(error, "_bestiary_whose", None)


def whose(item: object) -> str:
    """The item in words, where no Host is there to ask: by its class."""
    return f"{type(item).__name__} of {type(item).__module__}"


def same(one: object, other: object) -> bool:
    """Whether two items of plugins are equal; those that cannot say are not."""
    try:
        return bool(one is other or one == other)
    except PASSING:
        raise
    except BaseException:
        return False
