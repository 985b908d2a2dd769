"""Files: reads are checked ranges, and nothing is ever half-written under its final name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.encoding import BF16, F32
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor, replacing


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(60, dtype=np.float32).tobytes())
    return path


def test_a_range_is_read_as_it_stands(numbers: Path) -> None:
    file = DataFile(numbers)
    assert file.size == 240
    assert file.read(4, 8) == np.array([1, 2], np.float32).tobytes()
    np.testing.assert_array_equal(file.read_array(236, 4).view(np.float32), [59])
    assert file.read(240, 0) == b""


@pytest.mark.parametrize(("offset", "count"), [(0, 241), (240, 1), (241, 0), (-1, 1), (0, -1), (1 << 62, 1),
                                               (4, 1 << 62), (1 << 70, 1 << 70)])
def test_a_range_outside_of_the_file_is_refused_before_memory_is_taken(numbers: Path, offset: int, count: int) -> None:
    file = DataFile(numbers)
    for read in (file.read, file.read_array):
        with pytest.raises(BestiaryError, match="the header .* lies outside the file of 240 bytes"):
            read(offset, count, "the header")


@pytest.mark.parametrize("path", ["missing", "", "missing/deeper"])
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(BestiaryError, match="cannot read") as caught:
        DataFile(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_a_file_truncated_while_it_is_read_is_an_error(numbers: Path) -> None:
    file = DataFile(numbers)
    os.truncate(numbers, 100)
    with pytest.raises(BestiaryError, match="ends early"):
        file.read(0, 240)


def test_a_data_file_pickles_as_its_path_and_reads_from_threads(numbers: Path) -> None:
    file: DataFile = pickle.loads(pickle.dumps(DataFile(numbers)))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: file.read(4 * i, 4), range(60)))
    assert b"".join(parts) == numbers.read_bytes()


def test_a_tensor_of_a_file_reads_its_rows(numbers: Path) -> None:
    tensor = FileTensor(DataFile(numbers), 8, (2, 3, 4), F32, "blk.0.weight")
    assert tensor.rows == 6
    np.testing.assert_array_equal(tensor.array(), np.arange(2, 26, dtype=np.float32).reshape(2, 3, 4))
    np.testing.assert_array_equal(tensor.decode(5), [[22, 23, 24, 25]])
    assert tensor.read(3, 3).shape == (0, 16)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 7), (4, 3), (7, 7)])
def test_rows_that_a_tensor_does_not_have_are_refused(numbers: Path, start: int, stop: int) -> None:
    tensor = FileTensor(DataFile(numbers), 8, (2, 3, 4), F32, "blk.0.weight")
    with pytest.raises(IndexError, match="blk.0.weight, which has 6"):
        tensor.read(start, stop)


@pytest.mark.parametrize(("offset", "shape"), [(200, (5, 4)), (-4, (2, 2)), (0, (1 << 40, 1 << 40)), (241, (0, 4))])
def test_a_tensor_that_lies_outside_of_its_file_is_refused_when_it_is_made(
        numbers: Path, offset: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(BestiaryError, match="tensor wq .* lies outside the file"):
        FileTensor(DataFile(numbers), offset, shape, F32, "wq")


def test_a_file_that_shrank_after_its_tensor_was_made_is_an_error(numbers: Path) -> None:
    tensor = FileTensor(DataFile(numbers), 0, (10, 12), BF16, "wq")
    assert tensor.read(0, 1).shape == (1, 24)
    os.truncate(numbers, 30)
    with pytest.raises(BestiaryError, match="tensor wq ends early"):
        tensor.read(0, 10)
    with pytest.raises(BestiaryError, match="was written to while it was read"):
        tensor.read(0, 1)


def test_a_file_overwritten_while_it_is_read_is_an_error(numbers: Path) -> None:
    file = DataFile(numbers)
    with open(numbers, "r+b") as other:
        other.write(b"new!")
    os.utime(numbers, ns=(0, 1))  # the clock of the file system may not have moved on
    with pytest.raises(BestiaryError, match="was written to while it was read"):
        file.read(100, 8)


def test_a_file_whose_name_another_takes_is_read_to_its_end(numbers: Path) -> None:
    file, old = DataFile(numbers), numbers.read_bytes()
    (numbers.parent / "other").write_bytes(b"other")
    (numbers.parent / "other").replace(numbers)
    assert file.read(0, 240) == old


def write(path: Path, text: bytes, **options: Any) -> None:
    with replacing(path, **options) as file:
        file.write(text)


def test_a_file_appears_complete_and_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new"
    mask = os.umask(0o022)
    try:
        with replacing(path) as file:
            file.write(b"first ")
            assert not path.exists()
            file.write(b"words")
    finally:
        os.umask(mask)
    assert path.read_bytes() == b"first words"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, BestiaryError])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_exception_on_the_way_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException],
                                                            old: bytes | None) -> None:
    path = tmp_path / "new"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises((error, BestiaryError)), replacing(path, force=True) as file:
        file.write(b"half")
        raise error("in the middle")
    assert os.listdir(tmp_path) == (["new"] if old is not None else [])
    if old is not None:
        assert path.read_bytes() == old


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "new"
    path.write_bytes(b"old")
    with pytest.raises(BestiaryError, match="exists already; --force replaces it"):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    write(path, b"new", force=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["new"]


def test_a_file_that_somebody_else_made_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(BestiaryError, match="exists already"), replacing(path) as file:
        file.write(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["new"]


def test_folders_missing_folders_and_files_in_the_way_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in (("", "is a folder"), ("missing/new", "there is no folder"), ("file/new", "cannot write")):
        with pytest.raises(BestiaryError, match=words):
            write(tmp_path / path, b"x", force=True)
    assert os.listdir(tmp_path) == ["file"]


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Permissions do not bind root; then the system's refusal is played."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    made = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return made(path, flags, *arguments, **options)

    os.open = refuse
    try:
        yield
    finally:
        os.open = made


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    with unwritable(folder), pytest.raises(BestiaryError, match="cannot write .*: Permission denied"):
        write(folder / "new", b"x")
    assert not os.listdir(folder)


def full(*arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_disk_that_fails_at_any_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     call: str) -> None:
    monkeypatch.setattr(os, call, full)
    with pytest.raises(BestiaryError, match="cannot write .*: No space left on device"):
        write(tmp_path / "new", b"x")
    monkeypatch.undo()
    assert not os.listdir(tmp_path)


def without_links(source: Any, target: Any, **folders: int) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and many network and container file systems have none."""
    link: Callable[..., None] = without_links
    monkeypatch.setattr(os, "link", link)
    write(tmp_path / "new", b"x")
    assert (tmp_path / "new").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["new"]


def test_a_folder_that_is_renamed_meanwhile_keeps_no_half_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    with pytest.raises(BestiaryError, match="its folder was moved or removed meanwhile"), \
            replacing(folder / "new") as file:
        file.write(b"x")
        folder.rename(tmp_path / "after")
    assert not os.listdir(tmp_path / "after")
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt), replacing(folder / "new") as file:
        (tmp_path / "after").rmdir()
        folder.rename(tmp_path / "after")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path / "after")


@pytest.mark.parametrize("name", ["n" * 255, "\u00fc" * 127, "\U0001f999" * 63, "n" * 251 + ".bin"])
def test_a_name_as_long_as_the_system_takes_is_written(tmp_path: Path, name: str) -> None:
    for force in (False, True):
        write(tmp_path / name, b"x", force=force)
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="File name too long"):
        write(tmp_path / ("n" * 256), b"x")
    assert not os.listdir(tmp_path)


def test_pipes_devices_and_names_that_are_none_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "is no regular file"), ("/dev/zero", "is no regular file"),
                        (tmp_path / "a\0b", "that is no name of a file"), (tmp_path, "cannot read")):
        with pytest.raises(BestiaryError, match=words):
            DataFile(path)


def leftover(target: Path) -> Path:
    """What a killed writer of the file leaves."""
    part = target.with_name(f".{target.name}.0123456789abcdef.part")
    part.write_bytes(b"half")
    return part


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leftover(tmp_path / "new")
    kept = {leftover(tmp_path / "other"), leftover(tmp_path / "new.gguf"), tmp_path / ".new.part",
            tmp_path / ".new.0123.part", tmp_path / ".new.0123456789abcdef.part.part"}
    for path in kept:
        path.write_bytes(b"kept")
    write(tmp_path / "new", b"x")
    assert set(tmp_path.iterdir()) == kept | {tmp_path / "new"}
    assert [record.getMessage() for record in caplog.records] == [
        "removed .new.0123456789abcdef.part (4 bytes), which a run that was killed left behind"]


def test_what_is_no_file_is_not_removed_as_one(tmp_path: Path) -> None:
    part, elsewhere = leftover(tmp_path / "new"), tmp_path / "elsewhere"
    part.rename(elsewhere)
    part.symlink_to(elsewhere)
    fifo = tmp_path / ".new.fedcba9876543210.part"
    os.mkfifo(fifo)
    write(tmp_path / "new", b"x")
    assert elsewhere.read_bytes() == b"half" and part.is_symlink() and fifo.exists()


@pytest.mark.parametrize("force", [False, True])
def test_of_two_runs_to_one_file_the_later_is_refused(tmp_path: Path, force: bool) -> None:
    with replacing(tmp_path / "new", force) as file:
        with pytest.raises(BestiaryError, match="is being written by another run"):
            write(tmp_path / "new", b"later", force=force)
        write(tmp_path / "other", b"other")
        file.write(b"earlier")
    assert (tmp_path / "new").read_bytes() == b"earlier"
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]


def test_a_file_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another run could take what is complete for dead."""
    replace, refused = os.replace, []

    def watched(source: str, target: str, **folders: int) -> None:
        with pytest.raises(BestiaryError, match="is being written by another run") as caught:
            write(tmp_path / "new", b"later", force=True)
        refused.append(caught)
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", watched)
    write(tmp_path / "new", b"x", force=True)
    assert refused and os.listdir(tmp_path) == ["new"]


def test_a_file_taken_for_dead_before_it_is_locked_is_made_again(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock
    taken: list[Path] = []

    def late(handle: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write(tmp_path / "new", b"x")
    assert len(taken) == 1 and os.listdir(tmp_path) == ["new"] and (tmp_path / "new").read_bytes() == b"x"


def test_a_file_system_without_locks_is_written_too_and_nothing_is_taken_for_dead(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    part = leftover(tmp_path / "new")
    write(tmp_path / "new", b"x")
    assert set(tmp_path.iterdir()) == {tmp_path / "new", part}
