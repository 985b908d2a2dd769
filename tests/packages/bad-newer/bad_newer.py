"""A plugin for a later version of the interface."""

from typing import Any

from bestiary.plugin import hookimpl

bestiary_api = 99


@hookimpl
def bestiary_loaders() -> Any:
    return []
