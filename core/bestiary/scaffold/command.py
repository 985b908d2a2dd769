"""The command ibis: the largest weights of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from bestiary.plugin import hookimpl

bestiary_api = 1  # the version of the hooks that this is written for


def main(context: typer.Context, model: Path, count: int = 5) -> None:
    """Print the largest weights of a model."""
    from bestiary.host import Host

    host = context.find_object(Host) or Host()  # with the plugins of this command line
    tensors = host.open(model).tensors
    for name in sorted(tensors, key=lambda name: -tensors[name].nbytes)[:count]:
        print(f"{tensors[name].nbytes:>12}  {tensors[name].encoding.name:<6}  {name}")


@hookimpl
def bestiary_commands() -> Mapping[str, str]:
    return {"ibis": "bestiary_ibis:main"}  # "module:function"
