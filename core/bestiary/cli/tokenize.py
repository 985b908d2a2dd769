"""`bestiary tokenize`: the ids of a text, or of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.errors import BestiaryError

if TYPE_CHECKING:
    from bestiary.template import Message


def tokenize(
    context: typer.Context,
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The text.")] = None,
    file: Annotated[Path | None, typer.Option(
        "-f", "--file", metavar="FILE", help="Read the text from a file; - is stdin.")] = None,
    special: Annotated[bool, typer.Option("--special", help="Spellings of special tokens are those tokens.")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Without what the model wants around a prompt.")] = False,
    chat: Annotated[bool, typer.Option(
        "--chat", help="The text is a user's message, or with -f a JSON list of messages: show the prompt.")] = False,
    chat_template: options.ChatTemplate = None,
    as_json: options.Json = False,
    loader: options.Loader = None,
) -> None:
    """Show how a text becomes tokens.

    PATH may be a checkpoint or a tokenizer file alone.
    """
    from bestiary.chat import rendered, template_of
    from bestiary.model import open_tokenizer

    if (prompt is None) == (file is None):
        raise BestiaryError("one text is wanted: -p TEXT or -f FILE")
    host = options.host_of(context)
    with terminal.aside(as_json):
        tokenizer, material, family = open_tokenizer(options.model_path(host, model), host, loader)
    text = options.clean(prompt or "") if file is None else options.text_of(file)
    if not chat:
        if chat_template is not None:
            raise BestiaryError("--chat-template goes with --chat")
        with terminal.aside(as_json):
            ids = tokenizer.encode(text, bos=not no_bos, special=special)
        print(json.dumps(ids) if as_json else "\n".join(f"{token:>7}  {tokenizer.name(token)!r}" for token in ids))
        return
    messages: list[Message] = [{"role": "user", "content": text}] if file is None else messages_of(text, file)
    with terminal.aside(as_json):
        template = template_of(material, tokenizer, host, family, chat_template)
        segments = rendered(template, messages, host.whose(template))
        ids = tokenizer.encode_segments(segments, bos=not no_bos)
    if as_json:
        print(json.dumps({"text": "".join(segment.text for segment in segments), "segments": [
            {"text": segment.text, "special": segment.special} for segment in segments], "ids": ids},
            ensure_ascii=False))
        return
    for segment in segments:
        print(f"{'template' if segment.special else 'message':>8}  {segment.text!r}")
    print("\n".join(f"{token:>8}  {tokenizer.name(token)!r}" for token in ids))


def messages_of(text: str, file: Path) -> list[Message]:
    """The messages of a JSON file. Raises BestiaryError for anything but a list of objects."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BestiaryError(f"{file} is no JSON: {str(error)[:200]}") from None
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise BestiaryError(f'{file}: a list of messages is wanted, [{{"role": "user", "content": "..."}}, ...]')
    return found
