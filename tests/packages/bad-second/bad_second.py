"""A plugin whose loaders end in an error after the first."""

from pathlib import Path
from typing import Any

from bestiary.plugin import Loader, hookimpl


class First(Loader):
    name = "first"

    def recognise(self, path: Path) -> int:
        return 100

    def open(self, path: Path, host: Any) -> Any:
        raise RuntimeError("a loader that was set aside is used")


@hookimpl
def bestiary_loaders() -> Any:
    yield First()
    raise OSError("the second one is missing")
