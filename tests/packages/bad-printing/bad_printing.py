"""A plugin that prints whenever it can."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bestiary.plugin import Loader, hookimpl


def noise(what: str) -> None:
    print(what, "by print")
    print(what, "by stderr", file=sys.stderr)
    os.write(1, f"{what} by write\n".encode())
    subprocess.run(["echo", what, "by a child"], check=True)


noise("import")


class Noisy(Loader):
    name = "noisy"

    def recognise(self, path: Path) -> int:
        noise("recognise")
        return 0

    def open(self, path: Path, host: Any) -> Any:
        raise NotImplementedError


@hookimpl
def bestiary_loaders() -> Any:
    noise("hook")
    return [Noisy()]


@hookimpl
def bestiary_commands() -> Any:
    noise("commands")
    return {}
