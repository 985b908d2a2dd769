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
from typing import TYPE_CHECKING, Any, TextIO

from bestiary.contributions import Refused, one_line
from bestiary.errors import BestiaryError, Terminated

if TYPE_CHECKING:
    from bestiary.host import Host

PASSING = (KeyboardInterrupt, Terminated)
"""What goes through every guard: not a plugin's fault, and somebody waits for it."""
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
    Anything else but a BestiaryError is a bug and keeps its traceback; a line on the log says whose it is. May be
    entered again and again, by several threads at once, and costs a fraction of a microsecond: it stands around the
    forward of each token."""

    def __init__(self, who: str, what: str) -> None:
        self.who, self.what = who, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None or isinstance(error, (BestiaryError, MemoryError, *PASSING)):
            return
        if isinstance(error, SystemExit):
            raise BestiaryError(f"{self.who} failed to {self.what}: {one_line(error)}") from error
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
            return
        if not getattr(error, "_bestiary_named", False):  # by the call inside of this one, whose fault it is
            import logging  # late: a process in which nothing fails does not need it

            logging.getLogger("bestiary").error("%s failed to %s: %s", self.who, self.what, one_line(error))
            with contextlib.suppress(Exception):
                error._bestiary_named = True  # type: ignore[attr-defined]


def whose(item: object, host: Host | None = None) -> str:
    """The item in words, as Host.whose; without a host by its class."""
    return f"{type(item).__name__} of {type(item).__module__}" if host is None else host.whose(item)


def same(one: object, other: object) -> bool:
    """Whether two items of plugins are equal; those that cannot say are not."""
    try:
        return bool(one is other or one == other)
    except PASSING:
        raise
    except BaseException:
        return False
