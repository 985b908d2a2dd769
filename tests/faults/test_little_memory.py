"""Too little memory, at any point: in words, and nothing half-written."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.cli.main import main
from bestiary.files import FileTensor

from .conftest import run

LIMITED = """
import contextlib, ctypes, os, resource, sys
from pathlib import Path
from bestiary.cli.main import main
words = sys.argv[2:]
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    if main(words):
        sys.exit(99)
with contextlib.suppress(OSError):
    ctypes.CDLL("libgcc_s.so.1")  # the C library wants it as soon as a thread ends, and ends the process without
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
most = in_use + int(sys.argv[1]) * 1000
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(main(words))
"""
"""Runs the command twice, the second time with so many thousand bytes more than are in use: everything is imported."""


COMMANDS = (("convert", "IN", "OUT", "--outtype", "f32", "--force"), ("quantize", "IN", "OUT", "q4_0", "--force"),
            ("run", "-m", "IN", "-p", "Once", "-n", "3", "--temp", "0", "-t", "2"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.machine
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: str(words[0]))
def test_out_of_memory_is_said_and_nothing_hangs(model: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "out.gguf"
    called = [str({"IN": model, "OUT": out}.get(word, word)) for word in words]
    assert run(*called).status == 0
    before = out.read_bytes() if "OUT" in words else b""
    statuses = []
    for kilobytes in (0, 300, 3000, 2_000_000):
        ended = run(str(kilobytes), *called, program=LIMITED)
        statuses.append(ended.status)
        assert "Traceback" not in ended.err and ended.status in (0, 1), (kilobytes, ended)
        if ended.status:  # before that, the interpreter may name a thread that had no memory to begin
            assert "memory" in ended.err.splitlines()[-1], (kilobytes, ended)
        assert not before or list(tmp_path.iterdir()) == [out] and out.read_bytes() == before
    assert statuses[-1] == 0


@pytest.mark.parametrize("at", [0, 1, 20])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: str(words[0]))
def test_whatever_runs_out_of_memory_leaves_what_was_there(
        model: Path, tmp_path: Path, words: tuple[str, ...], at: int, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    out, reads, whole = tmp_path / "out.gguf", itertools.count(), FileTensor.read

    def read(self: FileTensor, start: int, stop: int) -> NDArray[np.uint8]:
        if next(reads) == at:
            raise MemoryError
        return whole(self, start, stop)

    out.write_bytes(b"a good file")
    monkeypatch.setattr(FileTensor, "read", read)
    assert main([str({"IN": model, "OUT": out}.get(word, word)) for word in words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("bestiary: error: out of memory") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"a good file"
