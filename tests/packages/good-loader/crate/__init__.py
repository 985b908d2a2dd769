"""The checkpoint format crate, in and out; what needs numpy is imported when it is used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.plugin import Loader, Writer, hookimpl

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.checkpoint import Checkpoint
    from bestiary.host import Host

bestiary_api = 1  # the version of the hooks that this is written for


class Crate(Loader):
    """A .crate file."""

    name = "crate"

    def recognise(self, path: Path) -> int:
        from crate.container import is_crate

        return 100 if is_crate(path) else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        from crate.container import open_crate

        return open_crate(path, host)


class CrateWriter(Writer):
    """A .crate file."""

    name = "crate"
    suffix = ".crate"

    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        from crate.container import save_crate

        save_crate(checkpoint, path, force, progress)


@hookimpl
def bestiary_loaders() -> Iterable[Loader]:
    return [Crate()]


@hookimpl
def bestiary_writers() -> Iterable[Writer]:
    return [CrateWriter()]
