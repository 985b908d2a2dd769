"""A disk that is full, or takes no files: one line, status 1, and what was there stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestiary_plugins.demo.command import model as demo_model

from .conftest import Ended, Halting, is_one_line, run

LIMITED = """
import resource, sys
from bestiary.cli.main import main
size = int(sys.argv.pop(1))
sys.dont_write_bytecode = True  # the interpreter keeps what it could write of a module's, and trips over it later
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("size", "words"), [(0, ("convert",)), (1000, ("quantize", "q8_0")),
                                             (100_000, ("quantize", "q4_0")), (1_200_000, ("convert",))])
def test_a_file_that_may_not_grow_is_taken_back(model: Path, tmp_path: Path, size: int, words: tuple[str, ...]) -> None:
    """Of the system's ways to refuse a write the one that every user may play. The threads that read ahead have more
    than they can hand over by then."""
    out = tmp_path / "out.gguf"
    out.write_bytes(b"")
    ended = run(str(size), words[0], model, out, *words[1:], "--force", program=LIMITED)
    assert is_one_line(ended) and f"cannot write {out}: File too large" in ended.err
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b""


@pytest.mark.parametrize(("size", "format"), [(0, "huggingface"), (100_000, "huggingface"), (100_000, "meta"),
                                              (1_200_000, "huggingface")])
def test_a_folder_that_may_not_grow_is_taken_back(model: Path, tmp_path: Path, size: int, format: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "params.json"):
        (out / name).write_text("a good one")
    ended = run(str(size), "convert", model, out, "--format", format, "--force", program=LIMITED)
    if format == "meta":
        assert is_one_line(ended) or ended.err.count("params.json does not say") == 1, ended
    else:
        assert is_one_line(ended), ended
    assert f"cannot write {out}: File too large" in ended.err and ended.status == 1
    assert list(tmp_path.iterdir()) == [out]
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "params.json"]
    assert (out / "config.json").read_text() == "a good one"


SMALL_DISK = 'mount -t tmpfs -o size="$1" none "$2" && cd "$2" && shift 2 && exec sh -c "$@"'


def on_a_disk(folder: Path, size: str, script: str, *words: str | Path) -> Ended:
    """Runs a shell script on a file system of its own, which goes with it."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", size, str(folder), script, "sh",
                           *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a small file system may be mounted."""
    if shutil.which("unshare") is None or on_a_disk(tmp_path / "disk", "1m", "true").status:
        pytest.skip("this machine lets nobody mount a file system in a namespace of his own")
    yield tmp_path / "disk"


@pytest.mark.machine
def test_a_full_disk_is_one_line_and_keeps_the_old_file(model: Path, disk: Path) -> None:
    script = ('echo a good file > out.gguf; "$@" 2>err; status=$?; cat err >&2; '
              'test "$(ls -A)" = "$(printf "err\\nout.gguf")" && test "$(cat out.gguf)" = "a good file" || ls -lA >&2; '
              "exit $status")
    ended = on_a_disk(disk, "700k", script, sys.executable, "-m", "bestiary", "quantize", model, "out.gguf", "q8_0",
                      "--force")
    assert is_one_line(ended) and "out.gguf: No space left on device" in ended.err, ended


@pytest.mark.machine
def test_a_full_disk_keeps_the_old_folder(model: Path, disk: Path) -> None:
    script = ('mkdir out; echo a good one > out/config.json; "$@" 2>err; status=$?; cat err >&2; '
              'test "$(ls -A)" = "$(printf "err\\nout")" && test "$(cat out/config.json)" = "a good one" '
              "|| ls -lAR >&2; "
              "exit $status")
    ended = on_a_disk(disk, "700k", script, sys.executable, "-m", "bestiary", "convert", model, "out", "--force",
                      "--format", "huggingface")
    assert is_one_line(ended) and "out: No space left on device" in ended.err, ended


@pytest.mark.machine
def test_a_disk_with_room_after_what_a_killed_run_left_is_removed_is_written(model: Path, disk: Path) -> None:
    """What a dead run left is removed before the new file takes its room."""
    script = ("head -c 600000 /dev/zero > .out.gguf.0123456789abcdef.part; "
              '"$@" || exit; test "$(ls -A)" = out.gguf')
    ended = on_a_disk(disk, "1400k", script, sys.executable, "-m", "bestiary", "quantize", model, "out.gguf", "q4_0")
    assert ended.status == 0, ended


@pytest.mark.machine
def test_a_disk_that_is_read_only_is_one_line(model: Path, disk: Path) -> None:
    script = 'mount -o remount,ro "$PWD" && "$@"'
    ended = on_a_disk(disk, "1m", script, sys.executable, "-m", "bestiary", "quantize", model, "out.gguf", "q4_0")
    assert is_one_line(ended) and "cannot write" in ended.err, ended


@pytest.mark.parametrize("moment", ["create", "middle", "rename"])
def test_a_folder_that_vanishes_is_one_line(model: Path, tmp_path: Path, halted: Halting, moment: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    writing = halted(moment, "quantize", model, folder / "out.gguf", "q4_0")
    shutil.rmtree(folder)
    ended = writing.go_on()
    assert ended.status == 1 and "Traceback" not in ended.err, ended
    assert len(ended.err.splitlines()) == 1 and f"cannot write {folder / 'out.gguf'}" in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["middle", "sync"])
def test_a_place_for_a_folder_that_vanishes_is_one_line(model: Path, tmp_path: Path, halted: Halting,
                                                        moment: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    writing = halted(moment, "convert", model, folder / "out", "--format", "huggingface")
    shutil.rmtree(folder)
    ended = writing.go_on()
    assert ended.status == 1 and "Traceback" not in ended.err, ended
    assert len(ended.err.splitlines()) == 1 and f"cannot write {folder / 'out'}" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_is_one_line_before_any_work(model: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # permissions do not bind root; nobody makes files there
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    ended = run("quantize", model, folder / "out.gguf", "q4_0")
    assert is_one_line(ended) and f"cannot write {os.path.realpath(folder)[:5]}" in ended.err


def without_tokenizer(folder: Path) -> Path:
    """A checkpoint about which there is something to say on the log."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo_model() / name, folder)
    return folder


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-"])
def test_a_log_that_cannot_be_written_stops_no_work(tmp_path: Path, closed: str) -> None:
    source, out = without_tokenizer(tmp_path / "source"), tmp_path / "out.gguf"
    words = f'exec "$0" -m bestiary convert "$1" "$2" {closed}'
    for status in (0, 1):  # the second time the file exists, which cannot be said either
        done = subprocess.run(["sh", "-c", words, sys.executable, source, out], capture_output=True, check=False)
        assert done.returncode == status and not done.stderr and out.exists()
    said = run("convert", source, tmp_path / "again.gguf")
    assert said.status == 0 and "has no tokenizer" in said.err
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()


def test_a_reader_of_the_output_that_leaves_costs_no_file(model: Path, tmp_path: Path, quantized: bytes) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "bestiary", "quantize", str(model), str(tmp_path / "o.gguf"), "q4_0"],
                          stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "o.gguf"] and (tmp_path / "o.gguf").read_bytes() == quantized


