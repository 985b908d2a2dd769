"""Reading a file by checked ranges, and writing one so that nothing is ever half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.part_file import create, remove_dead, temporary_name
from bestiary.tensor import Tensor

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without hard links answers (FAT, some of the network and of containers)."""


class DataFile:
    """A file that is read by ranges, each compared with the file's size first; never mapped, so that a file truncated
    or overwritten meanwhile is an error and no crash. A file that loses its name to another is read to its end. Safe to
    use from several threads; pickles as its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0, opener=_at_once)  # noqa: SIM115 - it lives as long as this
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise BestiaryError(f"cannot read {self.path}: {error.strerror}") from None
        except ValueError:
            raise BestiaryError(f"cannot read {self.path}: that is no name of a file") from None
        if not stat.S_ISREG(found.st_mode):
            raise BestiaryError(f"{self.path} is no regular file")
        self.size, self._changed = found.st_size, found.st_mtime_ns

    def __reduce__(self) -> tuple[type[DataFile], tuple[Path]]:
        return DataFile, (self.path,)

    def check(self, offset: int, count: int, what: str) -> None:
        """Raises BestiaryError unless `count` bytes from `offset` are in the file."""
        if offset < 0 or count < 0 or offset > self.size or count > self.size - offset:
            raise BestiaryError(f"{self.path}: {what} ({count} bytes at {offset}) lies outside the file "
                                f"of {self.size} bytes; it is truncated or damaged")

    def read(self, offset: int, count: int, what: str = "data") -> bytes:
        """`count` bytes from `offset`; `what` names them in the error."""
        self.check(offset, count, what)
        data = bytearray(count)
        self._fill(memoryview(data), offset, what)
        return bytes(data)

    def read_array(self, offset: int, count: int, what: str = "data") -> NDArray[np.uint8]:
        """As `read`, into a new array of uint8."""
        self.check(offset, count, what)
        data = np.empty(count, np.uint8)
        self._fill(data.data, offset, what)
        return data

    def read_columns(self, offset: int, rows: int, row_bytes: int, first: int, count: int, what: str = "data",
                     ) -> NDArray[np.uint8]:
        """Bytes first..first+count-1 of every row of a matrix that begins at `offset`, (rows, count) uint8."""
        if not 0 <= first <= first + count <= row_bytes:
            raise IndexError(f"bytes {first}..{first + count} of rows of {row_bytes}")
        self.check(offset, rows * row_bytes, what)
        if count == row_bytes:
            return self.read_array(offset, rows * row_bytes, what).reshape(rows, row_bytes)
        data = np.empty((rows, count), np.uint8)
        view = data.data.cast("B") if data.size else memoryview(b"")
        for row in range(rows if count else 0):
            self._fill(view[row * count:(row + 1) * count], offset + row * row_bytes + first, what, row == rows - 1)
        return data

    def _fill(self, view: memoryview, offset: int, what: str, last: bool = True) -> None:
        """last: nothing more is read of what belongs together, and whether the file changed meanwhile is looked at."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise BestiaryError(f"cannot read {self.path}: {error.strerror}") from None
            if not got:
                raise BestiaryError(f"{self.path}: {what} ends early; the file was truncated while it was read")
            done += got
        if not last:
            return
        found = os.fstat(self._file.fileno())
        if (found.st_size, found.st_mtime_ns) != (self.size, self._changed):  # some of it may be old and some new
            raise BestiaryError(f"{self.path} was written to while it was read; begin again when it is complete")


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting: a pipe would otherwise wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class FileTensor(Tensor):
    """A weight that lies in one piece in a file."""

    def __init__(self, file: DataFile, offset: int, shape: tuple[int, ...], encoding: Encoding, name: str) -> None:
        self.file, self.offset, self.shape, self.encoding, self.name = file, offset, shape, encoding, name
        file.check(offset, self.nbytes, f"tensor {name}")

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} of tensor {self.name}, which has {self.rows}")
        size = self.row_bytes
        data = self.file.read_array(self.offset + start * size, (stop - start) * size, f"tensor {self.name}")
        return data.reshape(stop - start, size)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], force: bool = False) -> Iterator[IO[bytes]]:
    """A new file that takes the name `path` only once it is complete and on the disk: written under a temporary name
    beside it, synced, renamed; a link is followed. What a killed run left of the same file is removed first. Raises
    BestiaryError where `path` cannot be written, is no regular file, is being written by another run, or exists and
    `force` is not set. Of two runs that begin in the same moment both write: without `force` the first to end wins,
    with it the last.

    The folder stays open, and names are looked up in it: it may itself be renamed meanwhile."""
    target = Path(os.path.realpath(path))
    folder, temporary = -1, ""
    try:
        check_replaceable(target, force)
        try:
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            remove_dead(folder, target.name)
            temporary = temporary_name(target.name)  # before there is a file: a signal may come between the two
            handle = create(folder, temporary)
        except FileNotFoundError:
            missing = "its folder takes no files" if target.parent.is_dir() else f"there is no folder {target.parent}"
            raise BestiaryError(f"cannot write {target}: {missing}") from None
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not same_folder(folder, target.parent):
                raise BestiaryError(f"cannot write {target}: its folder was moved or removed meanwhile")
            if force:
                os.replace(temporary, target.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                rename_new(temporary, target.name, folder)
            temporary = ""  # before the file is closed, which ends its lock
        with contextlib.suppress(OSError):
            os.fsync(folder)  # makes the rename survive a power cut, where the system can
    except FileExistsError:
        raise BestiaryError(f"{target} exists already; --force replaces it") from None
    except OSError as error:
        raise BestiaryError(f"cannot write {target}: {error.strerror}") from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        if folder >= 0:
            os.close(folder)


def same_folder(folder: int, path: Path) -> bool:
    """Whether the open folder is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        return False


def check_replaceable(target: Path, force: bool) -> None:
    """Raises BestiaryError where a file may not take the place of what is there."""
    if target.is_dir():
        raise BestiaryError(f"{target} is a folder; name a file")
    if target.exists() and not target.is_file():
        raise BestiaryError(f"{target} is no regular file; a model file would take its place")
    if target.exists() and not force:
        raise BestiaryError(f"{target} exists already; --force replaces it")


def rename_new(source: str, target: str, folder: int) -> None:
    """Renames a file in an open folder; raises FileExistsError where the new name is taken, by whoever was faster."""
    try:
        # unlike a rename it fails where the name is taken
        os.link(source, target, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(target, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(target) from None
        os.replace(source, target, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(source, dir_fd=folder)
