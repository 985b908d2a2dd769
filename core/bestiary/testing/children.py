"""Runs many cases in child processes that may die: each with little memory and little time."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from bestiary.errors import LONGEST, BestiaryError

MEMORY = 512 << 20
SECONDS = 10
PATIENCE = 6
"""Times the seconds of work: how long a child may take by the clock, which a busy machine holds up."""


class Escape(NamedTuple):
    """A case that neither loaded nor was refused. seed: which. how: what happened, and where if that is known."""

    seed: int
    how: str


@dataclass
class Tally:
    """How many cases loaded and how many were refused with a BestiaryError; all others one by one."""

    loaded: int = 0
    refused: int = 0
    escapes: list[Escape] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.loaded} loaded, {self.refused} refused, {len(self.escapes)} escaped"

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.loaded + other.loaded, self.refused + other.refused, [*self.escapes, *other.escapes])


def run_cases(case: Callable[[int], object], seeds: Sequence[int], *, memory: int = MEMORY, seconds: int = SECONDS,
              most: int = 20) -> Tally:
    """Calls the case with each seed, in a child process (a fork, so POSIX only).

    A case loads if it returns, and is refused if it raises a BestiaryError of one printable line. All else is an
    escape: another exception, a crash, more than `memory` bytes beyond what the process had, more than `seconds` of
    work. One child takes many cases; when it dies, the next one goes on behind the case it died of. After `most`
    escapes it is enough.
    """
    tally, at = Tally(), 0
    while at < len(seeds) and len(tally.escapes) < most:
        with tempfile.TemporaryFile("w+b") as said:
            pid, pipe = start(case, seeds[at:], memory, seconds, said)
            try:
                for kind, how in answers(pipe, seconds * PATIENCE):
                    if kind == "escaped":
                        tally.escapes.append(Escape(seeds[at], how))
                    else:
                        tally.loaded += kind == "loaded"
                        tally.refused += kind == "refused"
                    at += 1
                    if len(tally.escapes) >= most:
                        return tally
            finally:
                os.close(pipe)
                os.kill(pid, signal.SIGKILL)  # a zombie does not mind
                _, status = os.waitpid(pid, 0)
            if at < len(seeds):
                tally.escapes.append(Escape(seeds[at], death(status, seconds, said)))
                at += 1
    return tally


def death(status: int, seconds: int, said: IO[bytes]) -> str:
    """What a child died of, and the end of what it said."""
    said.seek(0)
    words = both_ends(said.read().decode(errors="backslashreplace"))
    if not os.WIFSIGNALED(status):
        return f"ended with status {os.WEXITSTATUS(status)}\n{words}"
    number = os.WTERMSIG(status)
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"no answer in {seconds} s\n{words}"
    return f"died of {signal.Signals(number).name}\n{words}"


def both_ends(text: str, size: int = 2000) -> str:
    """A trace of C says first where it happened, what a library prints says it last."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n...\n{text[-size:]}"


def answers(pipe: int, patience: float) -> Iterator[tuple[str, str]]:
    """The child's answers until it has no more, or keeps us waiting."""
    buffer = b""
    while select.select([pipe], [], [], patience)[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            return
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            kind, how = json.loads(line)
            yield kind, how


def start(case: Callable[[int], object], seeds: Sequence[int], memory: int, seconds: int, said: IO[bytes],
          ) -> tuple[int, int]:
    """A child that works on the seeds: its id, and the pipe of its answers."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child never waits for one of ours
        pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        work(case, seeds, memory, seconds, said, writing)
    finally:
        os._exit(0)
    raise AssertionError("not reached")


def work(case: Callable[[int], object], seeds: Sequence[int], memory: int, seconds: int, said: IO[bytes], pipe: int,
         ) -> None:
    """What the child does. Its output is kept: a crash in C leaves its trace there."""
    import resource

    sys.stdout = sys.stderr = open(  # noqa: SIM115
        said.fileno(), "w", errors="backslashreplace", closefd=False)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    faulthandler.enable(said, all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (now(resource) + memory,) * 2)
    for seed in seeds:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds + 1, most))
        os.write(pipe, json.dumps(outcome(case, seed)).encode() + b"\n")


def now(resource: Any) -> int:
    """Bytes of address space that this process has."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * int(resource.getpagesize())
    except OSError:  # no Linux
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def outcome(case: Callable[[int], object], seed: int) -> tuple[str, str]:
    """What became of a case."""
    try:
        case(seed)
    except BestiaryError as error:
        text = str(error)
        if text and text.isprintable() and len(text) <= LONGEST:
            return "refused", ""
        return "escaped", f"a BestiaryError that is no printable line of at most {LONGEST} characters: {text[:1200]!r}"
    except MemoryError:
        return "escaped", f"MemoryError\n{traceback.format_exc(limit=-6)}"
    except BaseException:
        return "escaped", traceback.format_exc(limit=-6)
    return "loaded", ""
