"""A process that is killed or told to end: what was there stays, nothing is half-written, what is left is removed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestiary.cli.main import main
from bestiary_plugins.demo.command import model as demo_model

from .conftest import Halting


@pytest.fixture(autouse=True)
def _hangups_are_not_ignored() -> Iterator[None]:
    """As under nohup: what is started would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("moment", "old"), [("create", None), ("begin", b"a good file"), ("middle", None),
                                             ("sync", b"a good file"), ("rename", None), ("rename", b"a good file")])
def test_a_killed_command_leaves_one_hidden_file_that_the_next_run_removes(
        model: Path, tmp_path: Path, halted: Halting, quantized: bytes, moment: str, old: bytes | None,
        capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    words: list[str | Path] = ["quantize", model, out, "q4_0"]
    if old is not None:
        out.write_bytes(old)
        words.append("--force")
    assert halted(moment, *words).kill(signal.SIGKILL).status == -signal.SIGKILL
    assert (out.read_bytes() if out.exists() else None) == old
    left = [path for path in tmp_path.iterdir() if path != out]
    assert [path.name[:10] + path.name[-5:] for path in left] == ([] if moment == "create" else [".out.gguf..part"])
    capsys.readouterr()
    assert main(list(map(str, words))) == 0
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == quantized
    assert capsys.readouterr().err.count("which a run that was killed left behind") == len(left)


@pytest.mark.parametrize(("moment", "left"), [("unlink", 1), ("renamed", 0)])
def test_a_command_killed_after_the_file_took_its_name_has_written_all_of_it(
        model: Path, tmp_path: Path, halted: Halting, quantized: bytes, moment: str, left: int) -> None:
    out = tmp_path / "out.gguf"
    halted(moment, "quantize", model, out, "q4_0").kill(signal.SIGKILL)
    assert out.read_bytes() == quantized and len(list(tmp_path.iterdir())) == 1 + left
    assert main(["quantize", str(model), str(out), "q4_0", "--force"]) == 0
    assert list(tmp_path.iterdir()) == [out]


def test_killed_at_any_time_there_is_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    out, random_ = tmp_path / "out.gguf", random.Random(1)
    words = [sys.executable, "-m", "bestiary", "convert", str(demo_model()), str(out), "--outtype", "f32", "--force"]
    started = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    whole, seconds = out.read_bytes(), time.monotonic() - started
    out.write_bytes(b"old")
    for _ in range(5):
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random_.uniform(seconds / 2, seconds))
        child.kill()
        child.wait()
        assert out.read_bytes() in (b"old", whole)
        assert len(os.listdir(tmp_path)) <= 2
    subprocess.run(words, check=True, capture_output=True)
    assert os.listdir(tmp_path) == ["out.gguf"] and out.read_bytes() == whole


@pytest.mark.parametrize(("number", "status", "moment"), [
    (signal.SIGINT, 130, "middle"), (signal.SIGINT, 130, "rename"), (signal.SIGTERM, 143, "create"),
    (signal.SIGTERM, 143, "middle"), (signal.SIGHUP, 129, "sync")])
def test_a_command_told_to_end_takes_back_what_is_half_done(
        model: Path, tmp_path: Path, halted: Halting, number: signal.Signals, status: int, moment: str) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"a good file")
    ended = halted(moment, "quantize", model, out, "q4_0", "--force").kill(number)
    assert (ended.status, ended.out, ended.err) == (status, "", "")
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"a good file"


@pytest.mark.parametrize(("moment", "old"), [("middle", None), ("sync", "a good one"), ("middle", "a good one")])
def test_a_killed_command_leaves_one_hidden_folder_that_the_next_run_removes(
        model: Path, tmp_path: Path, halted: Halting, moment: str, old: str | None,
        capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words: list[str | Path] = ["convert", model, out, "--format", "huggingface"]
    if old is not None:
        out.mkdir()
        (out / "config.json").write_text(old)
        words.append("--force")
    writing = halted(moment, *words)
    assert main(list(map(str, words))) == 1
    assert "is being written by another run" in capsys.readouterr().err
    writing.kill(signal.SIGKILL)
    assert (out / "config.json").exists() == (old is not None)
    assert old is None or (out / "config.json").read_text() == old
    assert len(os.listdir(tmp_path)) == 1 + (old is not None)
    assert main(list(map(str, words))) == 0
    assert os.listdir(tmp_path) == ["out"] and (out / "model.safetensors").exists()
    assert capsys.readouterr().err.count("which a run that was killed left behind") == 1


@pytest.mark.parametrize(("number", "status", "moment"), [(signal.SIGINT, 130, "middle"),
                                                          (signal.SIGTERM, 143, "sync")])
def test_a_command_told_to_end_takes_back_a_half_written_folder(
        model: Path, tmp_path: Path, halted: Halting, number: signal.Signals, status: int, moment: str) -> None:
    ended = halted(moment, "convert", model, tmp_path / "out", "--format", "huggingface").kill(number)
    assert (ended.status, ended.out, ended.err) == (status, "", "")
    assert os.listdir(tmp_path) == []
