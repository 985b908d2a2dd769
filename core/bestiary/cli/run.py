"""`bestiary run`: text out of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from bestiary.cli import options


def run(context: typer.Context, model: options.Model = None,
        prompt: Annotated[str, typer.Option("-p", "--prompt")] = "",
        n: Annotated[int, typer.Option("-n")] = -1,
        temp: Annotated[float, typer.Option("--temp")] = 0.8, backend: options.Backend = None) -> None:
    """Let a model continue a text."""
    from bestiary.model import load

    host = options.host_of(context)
    with load(options.model_path(host, model), host=host, backend=backend) as loaded:
        print(prompt, end="", flush=True)
        for piece in loaded.generate(prompt, max_tokens=n, temperature=temp):
            print(piece, end="", flush=True)
        print()
