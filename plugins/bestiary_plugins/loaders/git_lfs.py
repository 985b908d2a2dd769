"""What stands in place of a weights file where Git LFS has not fetched it: a pointer of three lines of text."""

from __future__ import annotations

from bestiary.errors import BestiaryError
from bestiary.files import DataFile

POINTER = b"version https://git-lfs"


def is_pointer(file: DataFile) -> bool:
    return file.read(0, min(file.size, len(POINTER))) == POINTER


def refuse_pointer(file: DataFile) -> None:
    """Raises BestiaryError where the file is a pointer."""
    if is_pointer(file):
        raise BestiaryError(f"{file.path} is a Git LFS pointer, not the file itself; `git lfs pull` fetches it")
