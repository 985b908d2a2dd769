"""The file under a temporary name that becomes an output: locked while its writer lives, which tells what a dead one
left from what a live one writes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat

from bestiary.errors import BestiaryError, printable

log = logging.getLogger("bestiary")


LONGEST = 200
"""Bytes of a name that stand in a temporary one; the system takes 255."""


def temporary_name(name: str) -> str:
    """Like `name`, as far as a name may be long."""
    return f".{beginning(name)}.{secrets.token_hex(8)}.part"


def beginning(name: str) -> str:
    """Of a long name the beginning and a hash of the whole: another long name may begin alike."""
    whole = os.fsencode(name)
    if len(whole) <= LONGEST:
        return name
    return f"{whole[:LONGEST - 17].decode('utf-8', 'ignore')}.{hashlib.sha256(whole).hexdigest()[:16]}"


def create(folder: int, name: str) -> int:
    """A new file in an open folder, locked until it is closed. Where the file system knows no locks there is none, and
    nobody takes the file for a dead one either."""
    while True:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder)
            return handle
        os.close(handle)  # another run came between the two and took it for a dead one


def remove_dead(folder: int, target: str) -> None:
    """Removes from an open folder what runs that were killed left of the file `target`, and says so. Raises
    BestiaryError where a live one is writing it."""
    part = re.compile(rf"\.{re.escape(beginning(target))}\.[0-9a-f]{{16}}\.part")
    for name in filter(part.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):  # another run was faster, or it is somebody else's, or a link
            handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                found = os.fstat(handle)
                if stat.S_ISREG(found.st_mode) and locked(handle, target):
                    os.unlink(name, dir_fd=folder)
                    log.warning("removed %s (%d bytes), which a run that was killed left behind", printable(name),
                                found.st_size)
            finally:
                os.close(handle)


def locked(handle: int, target: str) -> bool:
    """Locks an open file, if it can be: then its writer is dead. Raises BestiaryError where its writer lives."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BestiaryError(f"{target} is being written by another run; wait for it, end it, or name another "
                            "output") from None
    except OSError:  # no locks here
        return False
    return True
