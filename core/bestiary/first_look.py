"""What stands at a path, before any loader looks at it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bestiary.errors import BestiaryError

_LFS = b"version https://git-lfs.github.com/spec/"


def first_look(path: Path) -> bytes | None:
    """The first bytes of a file; None of a folder. Raises BestiaryError where the path is missing, no file and no
    folder, an empty file, or a Git LFS pointer."""
    try:
        start = _start(path)
    except FileNotFoundError:
        raise BestiaryError(f"{path} does not exist") from None
    except OSError as error:
        raise BestiaryError(f"cannot read {path}: {error.strerror}") from None
    if start == b"":
        raise BestiaryError(f"{path} is an empty file")
    if start is not None and start.startswith(_LFS):
        raise BestiaryError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    return start


def _start(path: Path) -> bytes | None:
    """The first bytes of a file; None of a folder. Raises BestiaryError for what is neither, before it is opened: a
    pipe would wait for somebody to write into it."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise BestiaryError(f"{str(path)!r} is no name of a file") from None
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        raise BestiaryError(f"{path} is no regular file, and no folder")
    with open(path, "rb") as file:
        return file.read(64)


def described(path: Path, start: bytes | None) -> str:
    if start is not None:
        return f"it starts with {start[:16]!r}"
    names = sorted(os.listdir(path))
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return f"a folder that holds {shown}" if names else "an empty folder"
