"""The command census; its code is imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.plugin import hookimpl

bestiary_api = 1  # the version of the hooks that this is written for


@hookimpl
def bestiary_commands() -> Mapping[str, str]:
    return {"census": "census_command:census"}
