"""`bestiary quantize`: a checkpoint into another type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.cli.convert import report
from bestiary.errors import BestiaryError
from bestiary.host import Host


def quantize(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint: a file or a folder.")],
    words: Annotated[list[str], typer.Argument(
        metavar="[OUT] TYPE", help="Output file, by default beside IN, named after TYPE; a type, by name or number.")],
    pure: options.Pure = False,
    requantize: options.Requantize = False,
    force: options.Force = False,
    tokenizer: options.TokenizerFile = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
) -> None:
    """Make a checkpoint smaller: its weights in another type."""
    from bestiary.saving import save_as

    host = options.host_of(context)
    out, kind = output_and_type(host, words)
    source = options.source_path(host, source)
    with terminal.progress_bar("quantizing") as progress:
        saved = save_as(source, out, kind, host, loader=loader, architecture=architecture, tokenizer=tokenizer,
                        pure=pure, requantize=requantize, force=force, progress=progress)
    report(saved)


def output_and_type(host: Host, words: list[str]) -> tuple[str | None, str]:
    """[OUT] TYPE [THREADS] of old command lines: the first word is the type where it can be one. Raises BestiaryError
    where there is no such type, saying which there are."""
    out = None if is_type(host, words[0]) or len(words) == 1 else words[0]
    kind, *rest = words if out is None else words[1:]
    if len(rest) > 1 or not all(word.isdigit() for word in rest):
        raise BestiaryError(f"cannot make sense of {' '.join(words)!r}: IN [OUT] TYPE is wanted; known types: "
                            + ", ".join(host.quantizers.names))
    return out, host.quantizers[kind].name


def is_type(host: Host, word: str) -> bool:
    """Whether the word names a type, one that is no more or not written yet included."""
    return word in host.quantizers or host.quantizers.why_not(word) is not None
