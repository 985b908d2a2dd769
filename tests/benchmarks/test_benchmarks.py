"""What the benchmarks say about their figures, and that they leave nothing behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import sys, time
from temporary import temporary
with temporary() as outer, temporary() as inner:
    (inner / "file").write_text("x")
    print(inner, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("floors")


def row(test: str, ours: list[float], theirs: list[float], type: str = "q4_0", threads: int = 2,
        shape: str = "1.1b", **more: list[float]) -> dict[str, Any]:
    return {"shape": shape, "type": type, "threads": threads, "test": test, "ours": ours, "theirs": theirs, **more}


def begun(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """A benchmark at work, and its folder."""
    child = subprocess.Popen([sys.executable, "-c", WORKER], cwd=FOLDER, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(temporary)})
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_run_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    child, folder = begun(tmp_path)
    assert folder.is_dir() and folder.parent == tmp_path
    child.send_signal(number)
    child.send_signal(number)
    status = child.wait(30)
    assert status == (128 + number if number != signal.SIGINT else -number)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else_is(tmp_path: Path) -> None:
    dead, left = begun(tmp_path)
    dead.kill()
    dead.wait()
    assert left.is_dir()
    kept = [tmp_path / name for name in ("bestiary-bench-models", f"bestiary-bench-{os.getpid()}-x", "other-1-x")]
    for folder in kept:
        folder.mkdir()
    child, folder = begun(tmp_path)
    assert folder.is_dir() and not left.exists()
    child.terminate()
    child.wait(30)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_floor_is_compared_with_the_median_of_neighbouring_runs(floors: ModuleType) -> None:
    rows = [row("decode", [10.0, 30.0, 11.0], [10.0, 20.0, 12.0], limit=[20.0, 30.0, 11.0])]
    found = {(one.floor.beside, one.floor.least): (one.reached, one.met) for one in floors.verdicts(rows, "avx2")}
    assert found == {(floors.PEER, 1.0): (1.0, True), (floors.LIMIT, 0.85): (1.0, True)}
    assert [one.floor.least for one in floors.verdicts(rows, "avx512vnni")] == [0.97, 0.85]


def test_less_is_better_for_time_and_memory(floors: ModuleType) -> None:
    rows = [row("load", [0.9], [1.0]), row("peak memory", [700.0], [1.0], limit=[600.0], allowed=[742.0])]
    assert [(one.floor.beside, one.met) for one in floors.verdicts(rows, "avx2")] == [
        (floors.LOAD, False), (floors.ALLOWED, True)]


def test_ours_is_compared_with_ours(floors: ModuleType) -> None:
    rows = [row("decode, busy pinned", [8.0, 9.0], [1.0, 1.0], own=[10.0, 10.0]),
            row("clamped8 decode", [10.0], [1.0], own=[10.0]), row("clamped8 decode", [5.0], [1.0], threads=1)]
    assert [(round(one.reached, 2), one.met) for one in floors.verdicts(rows, "avx2")] == [(0.85, False), (1.0, True)]
    rows = [row("prefill512", [100.0], [50.0]), row("prefill512", [85.0], [20.0], "q8_0")]
    assert [(one.row["type"], one.floor.beside, one.met) for one in floors.verdicts(rows, "avx512vnni")] == [
        ("q4_0", floors.PEER, False), ("q8_0", floors.PEER, True), ("q8_0", floors.Q4_0, False)]


def test_a_row_that_has_no_floor_has_no_verdict(floors: ModuleType) -> None:
    rows = [row("decode4", [1.0], [2.0]), row("check", [], []), row("decode", [1.0], [2.0], shape="7b")]
    assert floors.verdicts(rows, "avx2") == []


def test_the_signals_are_heard_again_after_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    temporary = importlib.import_module("temporary")
    before = signal.getsignal(signal.SIGTERM)
    with temporary.temporary(tmp_path) as folder:
        assert folder.is_dir() and signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before and not list(tmp_path.iterdir())
