"""Reading a file by checked ranges, and writing one so that nothing is ever half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.tensor import Tensor

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without hard links answers (FAT, some of the network and of containers)."""


class DataFile:
    """A file that is read by ranges, each compared with the file's size first; never mapped, so that a file truncated
    meanwhile is an error and no crash. Safe to use from several threads; pickles as its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - it lives as long as the object
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise BestiaryError(f"cannot read {self.path}: {error.strerror}") from None

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

    def _fill(self, view: memoryview, offset: int, what: str) -> None:
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise BestiaryError(f"cannot read {self.path}: {error.strerror}") from None
            if not got:
                raise BestiaryError(f"{self.path}: {what} ends early; the file was truncated while it was read")
            done += got


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
    beside it, synced, renamed; a link is followed. Raises BestiaryError where `path` cannot be written, is no regular
    file, or exists and `force` is not set."""
    target = Path(os.path.realpath(path))
    check_replaceable(target, force)
    temporary = ""
    try:
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        except FileNotFoundError:
            missing = "its folder takes no files" if target.parent.is_dir() else f"there is no folder {target.parent}"
            raise BestiaryError(f"cannot write {target}: {missing}") from None
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only their owner may read
        if force:
            os.replace(temporary, target)
        else:
            rename_new(temporary, target)
        temporary = ""
        sync_folder(target.parent)
    except FileExistsError:
        raise BestiaryError(f"{target} exists already; --force replaces it") from None
    except OSError as error:
        raise BestiaryError(f"cannot write {target}: {error.strerror}") from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def check_replaceable(target: Path, force: bool) -> None:
    """Raises BestiaryError where a file may not take the place of what is there."""
    if target.is_dir():
        raise BestiaryError(f"{target} is a folder; name a file")
    if target.exists() and not target.is_file():
        raise BestiaryError(f"{target} is no regular file; a model file would take its place")
    if target.exists() and not force:
        raise BestiaryError(f"{target} exists already; --force replaces it")


def rename_new(source: str | os.PathLike[str], target: Path) -> None:
    """Renames a file; raises FileExistsError where the new name is taken, by whoever was faster."""
    try:
        os.link(source, target)  # unlike a rename it fails where the name is taken
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(target) from None
        os.replace(source, target)
    else:
        os.unlink(source)


def sync_folder(path: Path) -> None:
    """Makes a rename inside the folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
