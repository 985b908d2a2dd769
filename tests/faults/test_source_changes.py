"""A source that is cut, overwritten, replaced or removed while it is read or run: said in words, and never a crash,
since nothing of it is mapped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bestiary
from bestiary.host import Host
from bestiary_plugins.demo.command import model as demo_model

from .conftest import Halting, run


@pytest.fixture(params=["file", "folder"])
def source(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and the file of it that holds the weights."""
    if request.param == "file":
        copy = Path(shutil.copy(model, tmp_path / "source.gguf"))
        return copy, copy
    folder = Path(shutil.copytree(demo_model(), tmp_path / "source"))
    return folder, folder / "model.safetensors"


def cut_short(weights: Path) -> None:
    os.truncate(weights, weights.stat().st_size // 2)


def emptied(weights: Path) -> None:
    os.truncate(weights, 0)


def overwritten(weights: Path) -> None:
    """As `cp` does it: the file stays, its bytes are others."""
    size = weights.stat().st_size
    with open(weights, "r+b") as file:
        file.write(os.urandom(size))


def lengthened(weights: Path) -> None:
    with open(weights, "ab") as file:
        file.write(bytes(10_000))


CHANGES = (cut_short, emptied, overwritten, lengthened)


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_converted_is_one_line(
        source: tuple[Path, Path], tmp_path: Path, halted: Halting, change: Callable[[Path], None]) -> None:
    converting = halted("middle", "quantize", source[0], tmp_path / "out.gguf", "q4_0")
    change(source[1])
    ended = converting.go_on()
    assert ended.status == 1 and len(ended.err.splitlines()) == 1
    assert "while it was read" in ended.err and str(source[1]) in ended.err
    assert list(tmp_path.iterdir()) == [source[0]]


@pytest.mark.parametrize("change", [cut_short, overwritten])
def test_a_source_that_changes_while_it_is_loaded_is_one_line(
        source: tuple[Path, Path], halted: Halting, change: Callable[[Path], None]) -> None:
    loading = halted("read", "run", "-m", source[0], "-p", "Once", "-n", "2", "--temp", "0")
    change(source[1])
    ended = loading.go_on()
    assert ended.status == 1 and len(ended.err.splitlines()) == 1
    assert "while it was read" in ended.err and str(source[1]) in ended.err


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_source_whose_name_another_takes_is_converted_as_it_was(
        source: tuple[Path, Path], tmp_path: Path, halted: Halting, change: str) -> None:
    """An open file is the same file to its end."""
    weights = source[1]
    assert run("convert", source[0], tmp_path / "before.gguf", "--outtype", "f16").status == 0
    converting = halted("middle", "convert", source[0], tmp_path / "out.gguf", "--outtype", "f16")
    if change == "replaced":
        (tmp_path / "other").write_bytes(b"another model")
        (tmp_path / "other").replace(weights)
    else:
        weights.unlink()
    assert converting.go_on().status == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "before.gguf").read_bytes()


@pytest.mark.parametrize("change", [*CHANGES, Path.unlink])
def test_a_model_runs_on_when_its_file_changes(source: tuple[Path, Path], host: Host,
                                               change: Callable[[Path], None]) -> None:
    for backend in host.backends:
        copy = Path(shutil.copy(source[1], source[1].with_name("kept")))
        with bestiary.load(source[0], backend, host=host) as model:
            before = model.logits([1, 2, 3])
            maps = Path("/proc/self/maps")
            if maps.exists():
                assert str(source[1]) not in maps.read_text()
            change(source[1])
            assert (model.logits([1, 2, 3]) == before).all()
        copy.replace(source[1])
