"""`bestiary chat`: a conversation in the model's own format."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.cli.run import figures_after
from bestiary.cli.session import Session, reader
from bestiary.errors import BestiaryError, ContextFull

if TYPE_CHECKING:
    from bestiary.model import Model
    from bestiary.template import Message, Template

log = logging.getLogger("bestiary")

MARKER, EXIT = "> ", "/exit"


def chat(
    context: typer.Context,
    model: options.Model = None,
    chat_template: options.ChatTemplate = None,
    system: Annotated[str | None, typer.Option(
        "--system", "-sys", "--system-prompt", metavar="TEXT", help="What the model is told first.")] = None,
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
    ignore_eos: options.IgnoreEos = False,
    type: options.Type = None,
    backend: options.Backend = None,
    cache_type_k: options.CacheTypeK = None,
    cache_type_v: options.CacheTypeV = None,
    tokenizer: options.TokenizerFile = None,
    add: options.Add = None,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    gpu: options.Gpu = None,
    quiet: Annotated[bool, typer.Option(
        "-cnv", "--conversation", "--jinja", "--color", "--simple-io", "--no-warmup", hidden=True)] = False,
) -> None:
    """Talk with a model.

    Each line is a message, one that ends in a backslash goes on. Ctrl-C interrupts an answer, Ctrl-D or /exit ends.
    """
    from bestiary.model import load

    host = options.host_of(context)
    most = options.max_tokens(predict)
    sampling = options.sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repeat_last_n=repeat_last_n,
        seed=seed, samplers=samplers)
    options.no_gpu(gpu)
    started = time.perf_counter()
    with terminal.progress_bar("loading") as progress:
        loaded = load(options.model_path(host, model), backend, options.usable(threads, "-t"), ctx or None, type, host,
                      tokenizer=tokenizer, batch=batch, threads_prefill=options.usable(threads_batch, "-tb"),
                      cache_type_k=cache_type_k, cache_type_v=cache_type_v, loader=loader, architecture=architecture,
                      add=add, progress=progress)
    with loaded:
        template = loaded.template(None if chat_template is None else options.clean(chat_template))
        seconds = time.perf_counter() - started
        session = Session(loaded, sampling, most, ignore_eos=ignore_eos)
        messages: list[Message] = []
        if system is not None:
            messages.append({"role": "system", "content": options.clean(system)})
            check_system(messages[0], template, loaded)
        with figures_after(session, seconds):
            converse(session, template, messages, reader())


def check_system(message: Message, template: Template, model: Model) -> None:
    """Raises BestiaryError where the template takes a message of the user, and none of a system before it."""
    from bestiary.chat import rendered

    user: Message = {"role": "user", "content": "Hello"}
    who = model.whose(template)
    rendered(template, [user], who)
    try:
        rendered(template, [message, user], who)
    except BestiaryError:
        raise BestiaryError(f"chat template {template.name} has no place for a system's message: leave --system out, "
                            "and say it in your first message") from None


def converse(session: Session, template: Template, messages: list[Message],
             read: Callable[[str], str | None]) -> None:
    """Messages and answers until the input ends; both are appended to `messages`."""
    while (text := typed(read)) is not None:
        if text.strip() == EXIT:
            return
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        while True:
            try:
                messages.append({"role": "assistant", "content": answer(session, template, messages)})
            except ContextFull as full:
                if forget(messages):
                    continue
                messages.pop()
                log.warning("%s: this message was not sent", full)
            break


def forget(messages: list[Message]) -> bool:
    """Drops the oldest message of the user and its answer, and says so; False where there is none but the last."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    if first >= len(messages) - 1:
        return False
    log.warning("the context is full: the oldest message and its answer are forgotten")
    del messages[first:first + 2]
    return True


def typed(read: Callable[[str], str | None]) -> str | None:
    """A message; None at the end of the input."""
    marker = MARKER if sys.stdin.isatty() else ""
    line, text = read(marker), ""
    if line is None:
        return None
    while line is not None and line.endswith("\\"):
        text += line[:-1] + "\n"
        line = read("")
    return text + (line or "")


def answer(session: Session, template: Template, messages: list[Message]) -> str:
    """Shows the answer as it comes, and gives what was shown: Ctrl-C keeps what was said so far."""
    said = ""
    stream = session.model.chat_from(messages, template, session.max_tokens, session.sampling,
                                     ignore_eos=session.ignore_eos)
    try:
        for piece in stream:
            piece = piece if said else piece.lstrip()
            said += piece
            session.show(piece)
    except KeyboardInterrupt:
        pass  # the user has something to say
    finally:
        stream.close()
        session.figures.add(stream.generation)
        session.show("\n")
    if stream.reason == "context":
        log.warning("the context of %d tokens is full; -c N makes it larger", session.model.plan.limits.context)
    if session.sampling.seed is not None:  # or every answer would draw the same numbers
        session.sampling = replace(session.sampling, seed=session.sampling.seed + 1)
    return said
