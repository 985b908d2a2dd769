"""Two commands that write one file: a clear line, and one whole file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Halting, is_one_line, run


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_later_one_is_refused_and_the_earlier_one_ends_well(
        model: Path, tmp_path: Path, halted: Halting, quantized: bytes, force: tuple[str, ...]) -> None:
    out = tmp_path / "out.gguf"
    first = halted("middle", "quantize", model, out, "q4_0", *force)
    second = run("quantize", model, out, "q8_0", *force)
    assert is_one_line(second) and "out.gguf is being written by another run" in second.err
    assert first.go_on().status == 0
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == quantized


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_begun_in_one_moment_they_give_one_whole_file(model: Path, tmp_path: Path, quantized: bytes,
                                                      force: tuple[str, ...]) -> None:
    words = [sys.executable, "-m", "bestiary", "quantize", str(model), str(tmp_path / "out.gguf"), "q4_0", *force]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate(timeout=60)[1] for child in both]
    statuses = sorted(child.returncode for child in both)
    assert statuses[0] == 0 and statuses[1] in (0, 1), said
    assert all("is being written by another run" in line or "exists already" in line
               for child, line in zip(both, said, strict=True) if child.returncode), said
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == quantized


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_where_neither_saw_the_other_the_first_to_end_wins_and_with_force_the_last(
        model: Path, tmp_path: Path, halted: Halting, quantized: bytes, force: tuple[str, ...]) -> None:
    out = tmp_path / "out.gguf"
    looked = halted("create", "quantize", model, out, "q4_0", *force)
    assert run("quantize", model, out, "q8_0", *force).status == 0
    other = out.read_bytes()
    ended = looked.go_on()
    if force:
        assert ended.status == 0
    else:
        assert ended.status == 1 and "out.gguf exists already; --force replaces it" in ended.err
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == (quantized if force else other) != b""


def test_two_long_names_that_begin_alike_are_two_files(model: Path, tmp_path: Path, halted: Halting) -> None:
    """A temporary name holds only the beginning of a long one."""
    one, two = (tmp_path / ("x" * 205 + letter + ".gguf") for letter in "ab")
    first = halted("middle", "quantize", model, one, "q4_0")
    assert run("quantize", model, two, "q4_0").status == 0
    assert first.kill(signal.SIGKILL).status == -signal.SIGKILL
    assert run("quantize", model, two, "q4_0", "--force").status == 0
    assert len(list(tmp_path.iterdir())) == 2  # what is left of the other one is not this one's to remove
    assert run("quantize", model, one, "q4_0").status == 0
    assert sorted(tmp_path.iterdir()) == [one, two]
