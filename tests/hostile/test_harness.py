"""The harness of the hostile files: it notices whatever is not a clean refusal, and damages mostly headers."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bestiary.errors import BestiaryError
from bestiary.testing import children
from bestiary.testing.children import Tally, run_cases
from bestiary.testing.damage import VALUES, damaged


def fails(how: Callable[[], object]) -> Tally:
    """The second of three cases does it; the first loads, the third is refused."""
    def case(seed: int) -> None:
        if seed == 1:
            how()
        if seed == 2:
            raise BestiaryError("no")

    tally = run_cases(case, range(3), seconds=1, tries=1)
    assert (tally.loaded, tally.refused) == (1, 1)
    return tally


def raises(error: BaseException) -> Callable[[], object]:
    def how() -> None:
        raise error

    return how


def loops() -> None:
    while True:
        pass


def in_a_thread() -> None:
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()


class Lost:
    def __del__(self) -> None:
        raise ValueError("lost")


def prints() -> None:
    print("\x1b[2J")


def works(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def starts_another() -> None:
    if not os.fork():
        os.abort()
    os.wait()


def lied(error: BestiaryError, text: object) -> BestiaryError:
    error.args = (text,)
    return error


@pytest.mark.parametrize(("how", "said"), [
    (raises(ValueError("a bad value")), "ValueError: a bad value"), (raises(SystemExit(0)), "SystemExit"),
    (raises(RecursionError()), "RecursionError"), (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    (lambda: bytearray(8 << 30), "MemoryError"), (loops, "no answer in 1 s"),
    (lambda: ctypes.string_at(0), "SIGSEGV"), (os.abort, "SIGABRT"), (lambda: os._exit(0), "ended with status 0"),
    (raises(lied(BestiaryError(), "two\nlines")), "no printable line"),
    (raises(lied(BestiaryError(), "x" * 1001)), "no printable line"), (raises(BestiaryError()), "no printable line")],
    ids=["ValueError", "SystemExit", "RecursionError", "KeyboardInterrupt", "memory", "time", "SIGSEGV", "SIGABRT",
         "exit", "two lines", "a long line", "no words"])
def test_an_escape_is_noticed_and_the_others_are_run(how: Callable[[], object], said: str) -> None:
    tally = fails(how)
    assert [escape.seed for escape in tally.escapes] == [1]
    assert said in tally.escapes[0].how


def test_a_child_that_waits_for_nothing_is_ended() -> None:
    assert "no answer in 6 s by the clock" in fails(lambda: time.sleep(3600)).escapes[0].how


@pytest.mark.parametrize(("how", "said"), [
    (in_a_thread, "it loaded, but nobody caught"), (Lost, "ValueError: lost"), (prints, r"said b'\x1b[2J"),
    (lambda: os.write(2, b"oops"), "said b'oops'"), (lambda: works(0.5), "s of work; 0.25 are the most"),
    (lambda: b"x" * (300 << 20), "MB; 215 are the most"), (starts_another, "starts a process: os.fork"),
    (lambda: subprocess.run(["true"], check=True), "starts a process: subprocess.Popen"),
    (lambda: time.sleep(5.5), "s; 5 are the most"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by somebody else")],
    ids=["thread", "thrown away", "stdout", "stderr", "work", "memory", "fork", "process", "wait", "killed"])
def test_what_loads_but_does_something_else_too_is_noticed(how: Callable[[], object], said: str) -> None:
    tally = fails(how)
    assert [escape.seed for escape in tally.escapes] == [1]
    assert said in tally.escapes[0].how


@pytest.mark.parametrize("how", [lambda: works(0.5), loops], ids=["a little", "for ever"])
def test_what_took_too_long_is_done_again(how: Callable[[], object], tmp_path: Path) -> None:
    """A busy machine may stand still for a case, but not for the same one again."""
    def case(seed: int) -> None:
        if seed == 1 and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            how()

    tally = run_cases(case, range(3), seconds=1)
    assert (tally.loaded, tally.escapes) == (3, [])


def test_a_child_that_cannot_begin_is_an_error_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("cannot begin")

    monkeypatch.setattr(children, "watch", broken)
    (escape,) = run_cases(lambda seed: None, [7]).escapes
    assert escape.seed == 7 and "ended with status 1" in escape.how and "ValueError: cannot begin" in escape.how


def test_the_slowest_and_the_largest_case_are_named() -> None:
    def case(seed: int) -> None:
        if seed == 3:
            works(0.3)
        if seed == 5:
            b"x" * (100 << 20)

    tally = run_cases(case, range(8))
    assert tally.loaded == 8 and tally.slowest.seed == 3 and tally.largest.seed == 5
    assert tally.slowest.amount >= 0.3 and 100e6 < tally.largest.amount < 150e6
    assert str(tally).endswith(f"({3}), largest {tally.largest.amount / 1e6:.0f} MB (5)")


def test_a_crash_says_where() -> None:
    assert "in string_at" in fails(lambda: ctypes.string_at(0)).escapes[0].how


def test_what_a_case_needs_in_memory_it_gets() -> None:
    assert run_cases(lambda seed: bytearray(64 << 20), range(20)).loaded == 20


def test_after_many_escapes_it_is_enough() -> None:
    tally = run_cases(lambda seed: 1 // 0, range(1000), most=5)
    assert len(tally.escapes) == 5 and tally.loaded == 0


def test_tallies_are_added_and_say_what_they_count() -> None:
    assert str(Tally(1, 2) + Tally(3, 4)) == "4 loaded, 6 refused, 0 escaped"


DATA = bytes(range(256)) * 40


def test_damage_is_the_same_for_a_number_and_another_for_the_next() -> None:
    made = [damaged(DATA, seed) for seed in range(300)]
    assert made == [damaged(DATA, seed) for seed in range(300)]
    assert len({data for _, data in made}) > 270


def test_at_least_half_of_the_damage_is_in_the_header() -> None:
    made = [damaged(DATA, seed, 256)[1] for seed in range(2000)]
    assert sum(data[:256] != DATA[:256] for data in made) >= 1000


def test_every_value_is_put_into_fields_of_every_width_and_into_pairs() -> None:
    for size in (4, 8):
        fields = [(16, size), (32, size)]
        made = [damaged(bytes(64), seed, None, fields)[1] for seed in range(4000)]
        found = {tuple(int.from_bytes(data[at:at + size], "little") for at, _ in fields) for data in made}
        wanted = {value for value in VALUES if value < 1 << 8 * size}
        assert wanted <= {pair[0] for pair in found}
        assert any(set(pair) <= wanted - {0} for pair in found)


def test_files_shrink_and_grow_and_the_damage_is_named() -> None:
    made = [damaged(DATA, seed) for seed in range(500)]
    assert any(len(data) < len(DATA) for _, data in made) and any(len(data) > len(DATA) for _, data in made)
    assert all(words for words, _ in made)


def test_damaged_json_often_still_is_json() -> None:
    text = json.dumps({"a": [1, 2.5, "x", None], "b": {"c": True}}).encode()
    valid = 0
    for seed in range(500):
        try:
            json.loads(damaged(text, seed)[1])
        except (ValueError, RecursionError):
            continue
        valid += 1
    assert 50 < valid < 450


@pytest.mark.parametrize("data", [b"", b"x", b"{", b"[]"])
def test_the_smallest_files_are_damaged_too(data: bytes) -> None:
    for seed in range(500):
        damaged(data, seed, None, [(0, 1)] if data else [], [(0, 1)])
