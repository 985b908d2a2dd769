"""`bestiary perplexity`: how surprised a model is by a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.errors import BestiaryError

CHUNK = 512


def perplexity(
    context: typer.Context,
    model: options.Model = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="The text; - is stdin.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The text itself.")] = None,
    ctx: Annotated[int, typer.Option(
        "-c", "--ctx-size", "--context", metavar="N", help="Tokens of a chunk; the second half is scored.")] = CHUNK,
    chunks: Annotated[int, typer.Option("--chunks", metavar="N", help="Only the first N chunks; -1 all.")] = -1,
    batch: options.BatchSize = 512,
    threads: options.Threads = None,
    type: options.Type = None,
    backend: options.Backend = None,
    cache_type_k: options.CacheTypeK = None,
    cache_type_v: options.CacheTypeV = None,
    as_json: options.Json = False,
    tokenizer: options.TokenizerFile = None,
    add: options.Add = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    gpu: options.Gpu = None,
) -> None:
    """Score a text: the perplexity of its chunks' second halves.

    Figures can be compared with those of other programs that cut the text in the same way.
    """
    from bestiary import perplexity as scoring
    from bestiary.model import load

    host = options.host_of(context)
    if (file is None) == (prompt is None):
        raise BestiaryError("one text is wanted: -f FILE or -p TEXT")
    text = options.text_of(file, as_it_is=True).removesuffix("\n") if file is not None else options.clean(prompt or "")
    if chunks < -1 or chunks == 0:
        raise BestiaryError(f"--chunks {chunks}; a number of chunks or -1 is wanted")
    options.no_gpu(gpu)
    with terminal.aside(as_json):
        path = options.model_path(host, model)
        with terminal.progress_bar("loading") as progress:
            loaded = load(path, backend, options.usable(threads, "-t"), ctx, type, host, tokenizer=tokenizer,
                          batch=batch, cache_type_k=cache_type_k, cache_type_v=cache_type_v, loader=loader,
                          architecture=architecture, add=add, progress=progress)
        with loaded, terminal.progress_bar("scoring", "chunks") as progress:
            found = scoring.perplexity(loaded, text, ctx, progress or say, None if chunks < 0 else chunks)
    print(json.dumps(asdict(found)) if as_json else
          f"Final estimate: PPL = {found.perplexity:.4f} +/- {found.error:.5f}, {found.tokens} tokens")


def say(chunk: int, chunks: int, value: str) -> None:
    """The estimate after each chunk, in a row on stderr."""
    print(f"[{chunk}]{value}", end="," if chunk < chunks else ",\n", file=sys.stderr, flush=True)
