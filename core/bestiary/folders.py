"""Writing a folder so that it is never half-written: under a temporary name beside it, synced, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from bestiary.errors import BestiaryError, printable
from bestiary.files import same_folder
from bestiary.part_file import beginning, locked, temporary_name

log = logging.getLogger("bestiary")


class NewFolder:
    """A folder under its temporary name, open and locked."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """A new file in it, which is on the disk once it is closed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o666, dir_fd=self._handle), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, data: bytes) -> None:
        with self.file(name) as file:
            file.write(data)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], marks: Collection[str], force: bool = False) -> Iterator[NewFolder]:
    """A new folder that takes the name `path` only once it is complete and on the disk; a link is followed. What a
    killed run left of the same folder is removed first. With `force` it takes the place of a folder that holds one of
    the files `marks` and nothing but files. Raises BestiaryError where `path` cannot be written, is no such folder, is
    being written by another run, or exists, is not empty and `force` is not set."""
    target = Path(os.path.realpath(path))
    parent, handle, temporary = -1, -1, ""
    try:
        check_folder(target, marks, force)
        try:
            parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            remove_dead_folders(parent, target.name)
            temporary = temporary_name(target.name)  # before there is a folder: a signal may come between the two
            os.mkdir(temporary, dir_fd=parent)
        except FileNotFoundError:
            missing = "its folder takes no files" if target.parent.is_dir() else f"there is no folder {target.parent}"
            raise BestiaryError(f"cannot write {target}: {missing}") from None
        handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        with contextlib.suppress(OSError):  # here are no locks: nobody takes it for a dead one either
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield NewFolder(handle)
        os.fsync(handle)
        if not same_folder(parent, target.parent):
            raise BestiaryError(f"cannot write {target}: its folder was moved or removed meanwhile")
        check_folder(target, marks, force)  # it may be another one by now
        temporary = exchange(parent, temporary, target.name)
        with contextlib.suppress(OSError):
            os.fsync(parent)  # makes the rename survive a power cut, where the system can
    except OSError as error:
        raise BestiaryError(f"cannot write {target}: {error.strerror}") from None
    finally:
        if temporary and parent >= 0:
            remove_folder(parent, temporary)
        for opened in (handle, parent):
            if opened >= 0:
                os.close(opened)


def exchange(parent: int, new: str, target: str) -> str:
    """Gives the new folder the target's name; what stood there, if anything, gets a temporary one, which is told."""
    try:
        os.rename(new, target, src_dir_fd=parent, dst_dir_fd=parent)  # an empty folder gives way
        return ""
    except OSError:
        if not occupied(parent, target):
            raise
    old = temporary_name(target)
    os.rename(target, old, src_dir_fd=parent, dst_dir_fd=parent)
    try:
        os.rename(new, target, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.rename(old, target, src_dir_fd=parent, dst_dir_fd=parent)
        raise
    return old


def occupied(parent: int, name: str) -> bool:
    """Whether a folder of that name stands in the open folder."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def check_folder(target: Path, marks: Collection[str], force: bool) -> None:
    """Raises BestiaryError where a new folder may not take the place of what is there."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise BestiaryError(f"{target} is no folder; name one, or a new name")
    names = sorted(os.listdir(target))
    if not names:
        return
    if not force:
        raise BestiaryError(f"{target} exists already; --force replaces it")
    if not any(name in marks for name in names):
        raise BestiaryError(f"{target} is a folder of other things (it has no {' or '.join(marks)}), which is not "
                            "replaced; name another output")
    for name in names:
        if not (target / name).is_file() and not (target / name).is_symlink():
            raise BestiaryError(f"{target} holds the folder {name}, so it is not replaced; name another output")


def remove_dead_folders(parent: int, target: str) -> None:
    """Removes from an open folder what runs that were killed left of the folder `target`, and says so. Raises
    BestiaryError where a live one is writing it."""
    part = re.compile(rf"\.{re.escape(beginning(target))}\.[0-9a-f]{{16}}\.part")
    for name in filter(part.fullmatch, os.listdir(parent)):
        with contextlib.suppress(OSError):  # another run was faster, or it is somebody else's, a file or a link
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if locked(handle, target):
                    remove_folder(parent, name)
                    log.warning("removed the folder %s, which a run that was killed left behind", printable(name))
            finally:
                os.close(handle)


def remove_folder(parent: int, name: str) -> None:
    """The folder and its files, as far as they can be removed. What was put into it meanwhile and is none stays."""
    with contextlib.suppress(OSError):
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for inner in os.listdir(handle):
                with contextlib.suppress(OSError):
                    os.unlink(inner, dir_fd=handle)
        finally:
            os.close(handle)
        os.rmdir(name, dir_fd=parent)
