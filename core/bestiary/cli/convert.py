"""`bestiary convert`: a checkpoint of any format into a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.errors import BestiaryError, printable

if TYPE_CHECKING:
    from bestiary.host import Host
    from bestiary.saving import Saved


def convert(
    context: typer.Context,
    source: Annotated[Path | None, typer.Argument(
        metavar="SRC", help="Checkpoint: a file or a folder; with --base a delta or an adapter.")] = None,
    out: Annotated[str | None, typer.Argument(
        metavar="[OUT]", help="Output file, or folder; by default in SRC's folder, named after its type.")] = None,
    outfile: Annotated[str | None, typer.Option("--outfile", "--output", metavar="FILE",
                                                     help="The same as OUT.")] = None,
    infile: Annotated[Path | None, typer.Option("--input", hidden=True)] = None,
    outtype: Annotated[str | None, typer.Option(
        "--outtype", metavar="TYPE",
        help="Type of the weights; by default f16, or the types SRC was converted to before.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(
        "--tokenizer", "--vocab-dir", metavar="FILE",
        help="Take the tokenizer from this file, folder or checkpoint.")] = None,
    add: options.Add = None,
    base: options.Base = None,
    lora: options.Lora = None,
    check: Annotated[bool | None, typer.Option(
        "--check/--no-check",
        help="Run a merge and its base on a text; by default where the model is small.")] = None,
    output_format: Annotated[str | None, typer.Option(
        "--format", metavar="NAME", help="Output format; by default by OUT's name.")] = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    ctx: Annotated[int | None, typer.Option(
        "-c", "--ctx", "--context-length", metavar="N",
        help="Context that the output says the model was made for.")] = None,
    rms_eps: options.RmsEps = None,
    rope_base: options.RopeBase = None,
    rope_scale: options.RopeScale = None,
    config: options.ConfigValues = None,
    pure: options.Pure = False,
    requantize: options.Requantize = False,
    force: options.Force = False,
    vocabulary_type: Annotated[str | None, typer.Option("--vocabtype", "--vocab-type", hidden=True)] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", hidden=True)] = None,
    shapes: Annotated[int | None, typer.Option("-gqa", "--gqa", "--n-parts", hidden=True)] = None,
    quiet: Annotated[bool, typer.Option("--pad-vocab", "--no-lazy", "--use-temp-file", hidden=True)] = False,
) -> None:
    """Turn a checkpoint into one file that holds everything, or back into a folder as others publish them."""
    from bestiary.saving import save_as

    host, lora = options.host_of(context), options.adapters(lora)
    if out is not None and out.isdigit() and outtype is None and out in host.quantizers:
        out, outtype = None, out  # an old script's number of a type
    auto = outtype == "auto"
    if infile is not None:
        if source is not None:
            raise BestiaryError(f"two checkpoints: {source} and --input {infile}")
        if base is not None and lora:
            raise BestiaryError(f"two checkpoints: --base {base} and --input {infile}")
        source = infile
    if source is None and base is None:
        raise BestiaryError("no checkpoint is named: SRC, or --base with --lora")
    if base is not None and lora:  # the base is what is converted; a word beside it is the output
        check_lone_word(source, out or outfile)
        out, source, base = None if source is None else str(source), base, None
    elif check is not None and base is None and not lora:
        raise BestiaryError("--check and --no-check are for a merge, with --base or --lora")
    if source is None:
        raise BestiaryError(f"--base {base} wants SRC, a delta or an adapter, or --lora")
    for given, line in ((vocabulary_type, "no use for --vocabtype: what a tokenizer is stands in its file"),
                        (concurrency, "no use for --concurrency: the file is written as it is read"),
                        (shapes, "no use for -gqa and --n-parts: both follow from the checkpoint itself")):
        if given is not None:
            options.log.warning("%s", line)
    if out is not None and outfile is not None:
        raise BestiaryError(f"two outputs: {out} and --outfile {outfile}")
    values = {**options.overrides(rms_eps, rope_base, rope_scale), **options.config_values(config)}
    with terminal.progress_bar("converting") as progress:
        saved = save_as(source, outfile if out is None else out, None if auto else outtype, host, auto=auto,
                        format=output_format, loader=loader, architecture=architecture,
                        tokenizer=options.vocabulary_path(tokenizer), add=add, base=base, adapters=lora or (),
                        context=ctx, config=values, pure=pure, requantize=requantize, force=force,
                        progress=progress)
    report(saved)
    if base is not None or lora:
        look(saved, source if base is None else base, check if add is None else False, architecture, host,
             loader if base is None else None)


def look(saved: Saved, base: Path, check: bool | None, architecture: str | None, host: Host,
         loader: str | None) -> None:
    """Says what a merge makes of a plain text, and its base."""
    from bestiary.merging import heard, small

    if small(saved) if check is None else check:
        line = heard(saved, base, architecture, host, loader)
        print(line or "not checked: there is no tokenizer")


def check_lone_word(word: Path | None, output: str | None) -> None:
    """Raises BestiaryError where the word beside --base and --lora, an output, may be meant as SRC."""
    if word is None:
        return
    said = "with --base and --lora there is no SRC (of a delta and adapters, the delta is merged first)"
    if output is not None:
        raise BestiaryError(f"{said}; {word} and {output} are two outputs")
    if os.path.lexists(word):
        raise BestiaryError(f"{said}, and {word} exists: --outfile {word} says that it is the output")


def report(saved: Saved) -> None:
    """One line: what was written."""
    print(f"{printable(str(saved.path))}: {terminal.size(saved.bytes)}, "
          f"{terminal.bits_per_weight(saved.types):.2f} bits per weight, "
          f"{terminal.type_counts(saved.types)}; {saved.seconds:.1f} s")
