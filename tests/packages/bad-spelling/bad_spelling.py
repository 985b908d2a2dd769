"""A plugin whose hook is misspelt."""

from typing import Any

from bestiary.plugin import hookimpl


@hookimpl
def bestiary_loadrs() -> Any:
    return []
