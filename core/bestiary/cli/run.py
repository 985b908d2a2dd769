"""`bestiary run`: text out of a model, with the options of old command lines."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.cli.session import GIVEN, Session, Turns, reader
from bestiary.errors import BestiaryError
from bestiary.host import Host

if TYPE_CHECKING:
    from bestiary.model import Model

log = logging.getLogger("bestiary")

INSTRUCTION = Turns("\n\n### Instruction:\n\n", "\n\n### Response:\n\n", marker="> ", first=True, whole_lines=False)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def run(
    context: typer.Context,
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option(
        "-p", "--prompt", metavar="TEXT", help="What the text begins with.")] = None,
    file: Annotated[Path | None, typer.Option(
        "-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin, a name one built in.")] = None,
    predict: options.Predict = -1,
    ctx: options.Context = None,
    batch: options.BatchSize = 512,
    threads: options.Threads = None,
    threads_batch: options.ThreadsBatch = None,
    seed: options.Seed = None,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    presence_penalty: options.PresencePenalty = 0.0,
    repeat_last_n: options.RepeatLastN = 64,
    samplers: options.Samplers = None,
    reverse: Annotated[list[str] | None, typer.Option(
        "-r", "--reverse-prompt", metavar="TEXT", help="Stop here, or with -i let the user go on. Repeatable.")] = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Take turns with the user.")] = False,
    interactive_first: Annotated[bool, typer.Option(
        "-if", "--interactive-first", help="The same; the user begins.")] = False,
    instruct: Annotated[bool, typer.Option(
        "-ins", "--instruct", help='Take turns: "### Instruction:" and "### Response:".')] = False,
    in_prefix: Annotated[str, typer.Option("--in-prefix", metavar="TEXT", help="Put before what the user types.")] = "",
    in_suffix: Annotated[str, typer.Option("--in-suffix", metavar="TEXT", help="Put after it.")] = "",
    color: Annotated[bool, typer.Option("--color", help="On a terminal, colour what the model did not say.")] = False,
    ignore_eos: options.IgnoreEos = False,
    escape: Annotated[bool, typer.Option("-e", "--escape", help=r"Read \n, \t, \x41 in the texts given.")] = False,
    no_display_prompt: Annotated[bool, typer.Option("--no-display-prompt", help="Do not print the prompt.")] = False,
    verbose_prompt: Annotated[bool, typer.Option("--verbose-prompt", help="Show the prompt's tokens first.")] = False,
    type: options.Type = None,
    backend: options.Backend = None,
    cache_type_k: options.CacheTypeK = None,
    cache_type_v: options.CacheTypeV = None,
    memory_f32: Annotated[bool, typer.Option("--memory-f32", help="Both in f32.")] = False,
    tokenizer: options.TokenizerFile = None,
    add: options.Add = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    config: options.ConfigValues = None,
    rms_eps: options.RmsEps = None,
    rope_base: options.RopeBase = None,
    rope_scale: options.RopeScale = None,
    gpu: options.Gpu = None,
    gpus: Annotated[list[str] | None, typer.Option(
        "-mg", "--main-gpu", "-ts", "--tensor-split", "-sm", "--split-mode", hidden=True)] = None,
    memory: Annotated[bool, typer.Option("--mlock", "--mmap", "--no-mmap", "--numa", hidden=True)] = False,
    keep: Annotated[str | None, typer.Option("--keep", hidden=True)] = None,
    microbatch: Annotated[int | None, typer.Option("-ub", "--ubatch-size", hidden=True)] = None,
    cached: Annotated[str | None, typer.Option("--prompt-cache", hidden=True)] = None,
    cached_how: Annotated[bool, typer.Option("--prompt-cache-all", "--prompt-cache-ro", hidden=True)] = False,
    shapes: Annotated[int | None, typer.Option("-gqa", "--gqa", "--n-parts", hidden=True)] = None,
    quiet: Annotated[bool, typer.Option(
        "--simple-io", "--log-disable", "--no-warmup", "--no-penalize-nl", "--memory-f16", "-no-cnv",
        "--no-conversation", "--mtest", hidden=True)] = False,
) -> None:
    """Let a model continue a text, or talk with it."""
    from bestiary.model import load

    host = options.host_of(context)
    read: Callable[[str], str] = unescape if escape else str
    start = read(prompt_of(host, prompt, file))
    interactive = interactive or interactive_first or instruct
    reverse = [read(text) for text in reverse or () if text]
    most = options.max_tokens(predict)
    sampling = options.sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repeat_last_n=repeat_last_n,
        seed=seed, samplers=samplers)
    for given, line in (
            (memory, "no use for --mlock, --mmap, --no-mmap, --numa: weights are always read into memory"),
            (keep, "no use for --keep: the context is not shifted; where it is full, the text ends"),
            (cached or cached_how, "no use for --prompt-cache: a prompt is computed when it is given"),
            (shapes is not None, "no use for -gqa and --n-parts: both follow from the checkpoint itself"),
            (microbatch, "no use for -ub: -b is the number of tokens that are computed at once")):
        if given:
            log.warning("%s", line)
    options.no_gpu((gpu or []) + (gpus or []))
    f32 = "f32" if memory_f32 else None
    started = time.perf_counter()
    with terminal.progress_bar("loading") as progress:
        loaded = load(options.model_path(host, model), backend, options.usable(threads, "-t"), ctx or None, type, host,
                      tokenizer=tokenizer, batch=batch, threads_prefill=options.usable(threads_batch, "-tb"),
                      cache_type_k=cache_type_k or f32, cache_type_v=cache_type_v or f32, loader=loader,
                      architecture=architecture, add=add, progress=progress,
                      config={**options.overrides(rms_eps, rope_base, rope_scale), **options.config_values(config)})
    with loaded:
        seconds = time.perf_counter() - started
        if verbose_prompt:
            show_tokens(loaded, start)
        session = Session(loaded, sampling, most, reverse, ignore_eos, color and sys.stdout.isatty())
        turns = INSTRUCTION if instruct else Turns(read(in_prefix), read(in_suffix), first=interactive_first)
        with figures_after(session, seconds):
            speak(session, start, turns if interactive else None, show=not no_display_prompt)


def speak(session: Session, start: str, turns: Turns | None, show: bool) -> None:
    """The prompt and what the model makes of it; then, with `turns`, the conversation."""
    if turns is not None:
        print("Enter hands over to the model, a line's end of \\ continues it; Ctrl-C interrupts, Ctrl-D ends.",
              file=sys.stderr)
    if start or turns is None:
        session.give(start)
    if show:
        session.show(start, GIVEN)
        if turns is not None and turns.marker and start and not start.endswith("\n"):
            session.show("\n")
    if turns is None:
        try:
            reason = session.answer()
        finally:
            session.show("\n")
    else:
        reason = session.converse(turns, reader())
    if reason == "context":
        log.warning("the context of %d tokens is full; -c N makes it larger", session.model.plan.limits.context)


@contextlib.contextmanager
def figures_after(session: Session, load_seconds: float) -> Iterator[None]:
    """Prints the figures, unless it was an error that ended the text; Ctrl-C is the usual end of a long one."""
    try:
        yield
    except KeyboardInterrupt:
        figures(session, load_seconds)
        raise
    figures(session, load_seconds)


def figures(session: Session, load_seconds: float) -> None:
    """How long everything took, on stderr."""
    from bestiary.convert import types

    if not session.figures.prefill_tokens:
        return
    model, limits = session.model, session.model.plan.limits
    counts = types(model.held)
    held = sum(entry["bytes"] for entry in counts.values())
    cache = "/".join(dict.fromkeys((limits.cache_type_k, limits.cache_type_v)))
    how = model.facts()
    threads = "/".join(dict.fromkeys(how[key] for key in ("threads", "threads_prefill") if key in how))
    facts = [f"{model.backend.name} {how.get('isa', '')}".strip(), *([f"threads {threads}"] if threads else []),
             f"context {limits.context}", f"cache {cache}"]
    if session.figures.seed is not None and session.sampling.temperature:
        facts.append(f"seed {session.figures.seed}")
    print(f"\nload      {load_seconds:.2f} s, {terminal.size(held)}, {terminal.type_counts(counts)}",
          *session.figures.lines(), ", ".join(facts), sep="\n", file=sys.stderr)


def prompt_of(host: Host, prompt: str | None, file: Path | None) -> str:
    """The text of -p or -f. A file that is there is the user's own; else a name may be that of a built-in text."""
    if file is None:
        return options.clean(prompt or "")
    if prompt is not None:
        raise BestiaryError("two prompts: -p and -f")
    if str(file) != "-" and not file.exists():
        known = {name: text for family in host.architectures.values() for name, text in family.prompts.items()}
        if str(file) in known:
            return known[str(file)]
        instead = f"-f {file.stem} takes the built-in text of that name" if file.stem in known else \
            f"built in: {', '.join(sorted(known)) or 'none'}"
        raise BestiaryError(f"cannot read {file}: there is no such file; {instead}")
    return options.text_of(file).removesuffix("\n")


def unescape(text: str) -> str:
    r"""Reads \n, \r, \t, \', \", \\ and \xHH; any other backslash stays."""
    return re.sub(r"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))",
                  lambda m: chr(int(m[1], 16)) if m[1] else ESCAPES[m[2]], text)


def show_tokens(model: Model, text: str) -> None:
    for token in model.tokenizer.encode(text, bos=True):
        print(f"{token:>7}  {model.tokenizer.name(token)!r}", file=sys.stderr)
