"""What goes wrong while a merge is written: one line, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.cli.conftest import Cli
from tests.faults.conftest import Halted, is_one_line, run
from tests.faults.test_disk_full import LIMITED, on_a_disk

from .conftest import KEY, Zoo, arrays

TARGETS = ("out.gguf", "out")
"""A file, and a folder."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [0, 5000, 200_000])
def test_a_file_that_may_not_grow_is_taken_back(zoo: Zoo, tmp_path: Path, target: str, size: int) -> None:
    out = tmp_path / "written" / target
    out.parent.mkdir()
    ended = run(str(size), "merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out, program=LIMITED)
    assert is_one_line(ended) and f"cannot write {out}" in ended.err, ended
    assert not list(out.parent.iterdir())


@pytest.mark.machine
@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_is_one_line_and_stays_empty(zoo: Zoo, tmp_path: Path, target: str) -> None:
    disk = tmp_path / "disk"
    if shutil.which("unshare") is None or on_a_disk(disk, "1m", "true").status:
        pytest.skip("this machine lets nobody mount a file system in a namespace of his own")
    script = '"$@" 2>err; status=$?; cat err >&2; test "$(ls -A)" = err || ls -lA >&2; exit $status'
    for words in (("--delta", zoo.delta()), ("--lora", zoo.adapter("lora"))):
        ended = on_a_disk(disk, "200k", script, sys.executable, "-m", "bestiary", "merge", "--base", zoo.base(), *words,
                          "--target", target)
        assert is_one_line(ended) and f"{target}: No space left on device" in ended.err, ended


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_merge_that_is_ended_leaves_nothing(zoo: Zoo, tmp_path: Path, target: str, number: int) -> None:
    out = tmp_path / "written" / target
    out.parent.mkdir()
    words = ("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out)
    ended = Halted("middle", *words).kill(number)
    assert ended.status and "Traceback" not in ended.err and not list(out.parent.iterdir()), ended


@pytest.mark.parametrize("target", TARGETS)
def test_a_base_that_changes_meanwhile_is_one_line(zoo: Zoo, tmp_path: Path, target: str) -> None:
    out = tmp_path / "written" / target
    out.parent.mkdir()
    writing = Halted("middle", "merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out)
    with open(zoo.base() / "model.safetensors", "r+b") as file:
        file.truncate(3000)
    ended = writing.go_on()
    assert is_one_line(ended) and "model.safetensors" in ended.err and not list(out.parent.iterdir()), ended


def test_a_type_that_overflows_leaves_no_folder(zoo: Zoo, cli: Cli) -> None:
    for path in (zoo.base(), zoo.delta()):
        weights = arrays(path)
        weights[KEY][0, 0] = 60000
        save_file(weights, path / "model.safetensors")
    before = sorted(path.name for path in zoo.folder.iterdir())
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "out")
    assert done.status == 1 and f"tensor {KEY}: a weight of the sum is 120000" in done.err
    assert sorted(path.name for path in zoo.folder.iterdir()) == before


def test_a_killed_merge_makes_room_for_the_next(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "written" / "out"
    out.parent.mkdir()
    words = ("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out)
    assert Halted("middle", *words).kill(signal.SIGKILL).status == -signal.SIGKILL
    assert list(out.parent.iterdir())
    done = subprocess.run([sys.executable, "-m", "bestiary", *map(str, words)], capture_output=True, text=True,
                          check=False, env={**os.environ, "BESTIARY_PLUGINS": ""})
    assert done.returncode == 0 and list(out.parent.iterdir()) == [out], done.stderr
