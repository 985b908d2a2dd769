"""`bestiary merge`: a base and a delta, or a base and adapters, into one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.cli.convert import report
from bestiary.errors import BestiaryError

if TYPE_CHECKING:
    from bestiary.host import Host
    from bestiary.loader import Writer


def merge(
    context: typer.Context,
    base: Annotated[Path, typer.Option(
        "--base", "--base-model-path", "--base-model", metavar="PATH", help="The model as it was published.")],
    target: Annotated[Path, typer.Option(
        "--target", "--target-model-path", "--output-dir", metavar="PATH", help="Output, a folder or a file.")],
    delta: Annotated[Path | None, typer.Option(
        "--delta", "--delta-path", metavar="PATH", help="A delta: what is added to every weight of the base.")] = None,
    lora: Annotated[list[str] | None, typer.Option(
        "--lora", "--lora-model", metavar="PATH", help="An adapter; several are put on in the order given.")] = None,
    output_format: Annotated[str | None, typer.Option(
        "--format", "--output-type", metavar="NAME", help="Output format; by default by the target's name.")] = None,
    kind: Annotated[str | None, typer.Option(
        "--type", metavar="TYPE", help="Type of the weights; by default that of the delta, or of the base.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(
        "--tokenizer", metavar="FILE", help="Take the tokenizer from this file, folder or checkpoint.")] = None,
    check: Annotated[bool | None, typer.Option(
        "--check/--no-check", help="Run what was written and compare; by default where the model is small.")] = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    force: options.Force = False,
) -> None:
    """Merge a base with a delta, or with adapters, into one model."""
    from bestiary.merging import merge_as

    host = options.host_of(context)
    adapters = options.adapters(lora)
    if (delta is None) == (not adapters):
        raise BestiaryError("--delta or --lora: one of the two is merged with the base")
    writer = writer_of(host, target, output_format)
    if writer.suffix and target.is_dir():
        target = target / f"{writer.stem}{writer.suffix}"
    with terminal.progress_bar("merging") as progress:
        saved, found = merge_as(base, delta, adapters, target, host, writer=writer.name, type=kind,
                                tokenizer=options.vocabulary_path(tokenizer), check=check, loader=loader,
                                architecture=architecture, force=force, progress=progress)
    report(saved)
    print(found)


def writer_of(host: Host, target: Path, name: str | None) -> Writer:
    """The writer named, or that of the target's suffix; else the highest in rank of those that write folders."""
    if name is not None:
        return host.writers[name]
    ranked = sorted((entry.item for entry in host.writers.entries()),
                    key=lambda writer: (bool(writer.suffix), -writer.rank))
    if not ranked:
        raise BestiaryError("no plugin writes checkpoints")
    named = (writer for writer in ranked if writer.suffix and target.name.lower().endswith(writer.suffix))
    return next(named, ranked[0])
