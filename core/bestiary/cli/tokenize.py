"""`bestiary tokenize`: the ids of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bestiary.cli import options
from bestiary.errors import BestiaryError


def tokenize(
    context: typer.Context,
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The text.")] = None,
    file: Annotated[Path | None, typer.Option(
        "-f", "--file", metavar="FILE", help="Read the text from a file; - is stdin.")] = None,
    special: Annotated[bool, typer.Option("--special", help="Spellings of special tokens are those tokens.")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Without what the model wants around a prompt.")] = False,
    as_json: options.Json = False,
    loader: options.Loader = None,
) -> None:
    """Show how a text becomes tokens.

    PATH may be a checkpoint or a tokenizer file alone.
    """
    from bestiary.model import load_tokenizer

    if (prompt is None) == (file is None):
        raise BestiaryError("one text is wanted: -p TEXT or -f FILE")
    host = options.host_of(context)
    tokenizer = load_tokenizer(options.model_path(host, model), host, loader)
    ids = tokenizer.encode(options.clean(prompt or "") if file is None else options.text_of(file), bos=not no_bos,
                           special=special)
    print(json.dumps(ids) if as_json else "\n".join(f"{token:>7}  {tokenizer.name(token)!r}" for token in ids))
