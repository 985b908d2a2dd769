"""Runs many cases in child processes that may die: each with little memory and little time."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from bestiary.errors import LONGEST, BestiaryError

MEMORY = 512 << 20
SECONDS = 10
"""What ends a child: bytes of address space beyond what the process had, and seconds of processor time."""
USUAL = 0.4, 0.25
"""The parts of both that a case may really take: 205 MB that it touches, and two and a half seconds."""
IDLE = 5
"""Seconds that a case may wait for something that is not the processor."""
PATIENCE = 6
"""Times the seconds of work: how long a child may take by the clock, which a busy machine holds up."""
TRIES = 3
"""Times that a case may take too long."""
DEEP = re.compile(rb"Exception ignored in audit hook:\nRecursionError: .*\n")
"""What the interpreter says where `hear` below is called at the end of its stack: no word of the case."""
STARTS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen")
"""What the interpreter says when a process is started: nobody here waits for it, or learns what became of it."""


class Escape(NamedTuple):
    """A case that neither loaded nor was refused. seed: which. how: what happened, and where if that is known."""

    seed: int
    how: str


class Cost(NamedTuple):
    """What a case took: seconds of processor time, or bytes."""

    amount: float
    seed: int


@dataclass
class Tally:
    """How many cases loaded and how many were refused with a BestiaryError; all others one by one; and which took most
    time and most memory."""

    loaded: int = 0
    refused: int = 0
    escapes: list[Escape] = field(default_factory=list)
    slowest: Cost = Cost(0, 0)
    largest: Cost = Cost(0, 0)

    def __str__(self) -> str:
        counts = f"{self.loaded} loaded, {self.refused} refused, {len(self.escapes)} escaped"
        cost = (f"; slowest {self.slowest.amount:.2f} s ({self.slowest.seed}), "
                f"largest {self.largest.amount / 1e6:.0f} MB ({self.largest.seed})")
        return counts + (cost if self.slowest.amount else "")

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.loaded + other.loaded, self.refused + other.refused, [*self.escapes, *other.escapes],
                     max(self.slowest, other.slowest), max(self.largest, other.largest))


class Answer(NamedTuple):
    """What became of a case: "loaded", "refused", or "escaped" or "late", and then how; seconds and bytes it took."""

    kind: str
    how: str
    seconds: float = 0.0
    bytes: int = 0


def run_cases(case: Callable[[int], object], seeds: Sequence[int], *, memory: int = MEMORY, seconds: int = SECONDS,
              most: int = 20, tries: int = TRIES) -> Tally:
    """Calls the case with each seed, in a child process (a fork, so POSIX only).

    A case loads if it returns, and is refused if it raises a BestiaryError of one printable line. All else is an
    escape: another exception, also in a thread or in what nobody waits for; a crash; a word on stdout or stderr; a
    process that is started; more than USUAL of `memory` bytes and `seconds` of work; a long wait. At `memory` bytes
    beyond what the process had, and after `seconds`, it is ended. One child takes many cases; when it dies, the next
    one goes on behind the case it died of. After `most` escapes it is enough. What only took too long is done again,
    up to `tries` times: a machine may stand still, and it does so once.
    """
    tally, at = Tally(), 0
    late_ones: list[Escape] = []
    while at < len(seeds) and len(tally.escapes) + len(late_ones) < most:
        with tempfile.TemporaryFile("w+b") as said:
            pid, pipe = start(case, seeds[at:], memory, seconds, said)
            late = True
            try:
                for answer in answers(pipe, seconds * PATIENCE):
                    if answer.kind == "late":
                        late_ones.append(Escape(seeds[at], answer.how))
                    elif answer.kind == "escaped":
                        tally.escapes.append(Escape(seeds[at], answer.how))
                    else:
                        tally.loaded += answer.kind == "loaded"
                        tally.refused += answer.kind == "refused"
                        tally.slowest = max(tally.slowest, Cost(answer.seconds, seeds[at]))
                        tally.largest = max(tally.largest, Cost(answer.bytes, seeds[at]))
                    at += 1
                    if len(tally.escapes) >= most:
                        return tally
                late = False
            except TimeoutError:
                pass
            finally:
                os.close(pipe)
                if late:
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            if at < len(seeds):
                how = f"no answer in {seconds * PATIENCE} s by the clock" if late else death(status, seconds)
                slow = late or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
                (late_ones if slow else tally.escapes).append(Escape(seeds[at], f"{how}\n{words_of(said)}"))
                at += 1
            elif status:
                raise RuntimeError(f"a child that was done {death(status, seconds)}\n{words_of(said)}")
    if late_ones and tries > 1 and len(late_ones) < most:
        return tally + run_cases(case, [late.seed for late in late_ones], memory=memory, seconds=seconds, most=most,
                                 tries=tries - 1)
    tally.escapes += late_ones
    return tally


def death(status: int, seconds: int) -> str:
    """What a child died of."""
    if not os.WIFSIGNALED(status):
        return f"ended with status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return f"no answer in {seconds} s of work"
    if number == signal.SIGKILL:
        return "was killed by somebody else (SIGKILL): by the system, where its memory ends"
    return f"died of {signal.Signals(number).name}"


def words_of(said: IO[bytes]) -> str:
    """What a child said, or the beginning and the end of it."""
    said.seek(0)
    return both_ends(said.read().decode(errors="backslashreplace"))


def both_ends(text: str, size: int = 2000) -> str:
    """A trace of C says first where it happened, what a library prints says it last."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n...\n{text[-size:]}"


def answers(pipe: int, patience: float) -> Iterator[Answer]:
    """The child's answers until it has no more. Raises TimeoutError where it keeps us waiting."""
    buffer = b""
    while select.select([pipe], [], [], patience)[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            return
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            yield Answer(*json.loads(line))
    raise TimeoutError


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
        os._exit(0)
    except BaseException:
        with contextlib.suppress(BaseException):
            said.write(traceback.format_exc().encode(errors="backslashreplace"))
            said.flush()
    finally:
        os._exit(1)
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
    logging.getLogger().addHandler(logging.NullHandler())  # warnings have their place, and it is not stderr
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (now(resource) + memory,) * 2)
    lost = watch()
    for seed in seeds:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds + 1, most))
        os.write(pipe, json.dumps(watched(case, seed, memory, seconds, said, lost)).encode() + b"\n")


def watch() -> list[str]:
    """What goes wrong where no caller sees it is from now on written to the list: in threads, in what is thrown away;
    and processes that are started."""
    lost: list[str] = []

    def write(what: Any) -> None:
        kind, value, trace = what.exc_type, what.exc_value, what.exc_traceback
        lost.append("nobody caught: " + "".join(traceback.format_exception(kind, value, trace, limit=-6)))

    def hear(event: str, given: tuple[Any, ...]) -> None:
        if event in STARTS:
            lost.append(f"starts a process: {event} {given!r:.300}")

    threading.excepthook = sys.unraisablehook = write
    sys.addaudithook(hear)
    return lost


def watched(case: Callable[[int], object], seed: int, memory: int, seconds: int, said: IO[bytes],
            lost: list[str]) -> Answer:
    """What became of a case, and what it took."""
    lost.clear()
    begin = os.lseek(said.fileno(), 0, os.SEEK_END)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the most memory that was ever in use is forgotten
    held, most = memory_now()
    clock, worked, waited = time.monotonic(), time.process_time(), kept_waiting()
    kind, how = outcome(case, seed)
    took, worked = time.monotonic() - clock, time.process_time() - worked
    idle = took - worked - (kept_waiting() - waited)
    peak = memory_now()[1]
    size = peak - held if peak > most else 0
    sys.stdout.flush()
    if kind != "escaped":
        end = os.lseek(said.fileno(), 0, os.SEEK_END)
        wrong, slow = list(lost), list[str]()
        if end > begin and (words := DEEP.sub(b"", os.pread(said.fileno(), min(end - begin, 10_000), begin))):
            wrong.append(f"said {words[:1000]!r}")
        if worked > USUAL[1] * seconds:
            slow.append(f"took {worked:.1f} s of work; {USUAL[1] * seconds:g} are the most")
        if size > USUAL[0] * memory:
            wrong.append(f"took {size / 1e6:.0f} MB; {USUAL[0] * memory / 1e6:.0f} are the most")
        if idle > IDLE:
            slow.append(f"waited for {idle:.1f} s; {IDLE} are the most")
        if wrong or slow:
            kind, how = "escaped" if wrong else "late", f"it {kind}, but " + "; ".join(wrong + slow)
    return Answer(kind, how, worked, size)


def memory_now() -> tuple[int, int]:
    """Bytes of memory in use, and the most there were."""
    try:
        with open("/proc/self/status") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["VmRSS"].split()[0]) << 10, int(found["VmHWM"].split()[0]) << 10
    except (OSError, KeyError, ValueError):  # no Linux
        return 0, 0


def kept_waiting() -> float:
    """Seconds that this thread waited for a processor."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return float(time.monotonic())  # all of it, for all that is known


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
