"""The chat format of a model: the checkpoint's own, one of the known by name, or a file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.checkpoint import TokenizerMaterial
from bestiary.contributions import shown
from bestiary.errors import BestiaryError
from bestiary.guard import calling, printing_to_stderr
from bestiary.template import Message, Segment, Template
from bestiary.tokenizer import Tokenizer
from bestiary.tokenizer_settings import named_token

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.host import Host

log = logging.getLogger("bestiary")

ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")


def template_of(material: TokenizerMaterial, tokenizer: Tokenizer, host: Host | None = None,
                family: Architecture | None = None, chosen: Template | str | None = None) -> Template:
    """The chat format: `chosen`, a template, the name of one, or a file of Jinja; without it the checkpoint's own.
    Raises BestiaryError, naming those there are, where it has none: a wrong format gives bad answers and no error."""
    if isinstance(chosen, Template):
        return chosen
    own = {} if family is None else {name.casefold(): template for name, template in family.templates.items()}
    if chosen is None:
        if material.chat_template is None:
            raise BestiaryError("the model has no chat template of its own; name the one it was taught with "
                                f"--chat-template: {known(own, host) or 'a file of Jinja'}")
        return jinja(material.chat_template, material, tokenizer)
    if chosen.casefold() in own:
        return with_tokens(own[chosen.casefold()], tokenizer, host)
    if host is not None and chosen in host.templates:
        return with_tokens(host.templates[chosen], tokenizer, host)
    if (path := Path(chosen)).is_file():
        return jinja(read(path), material, tokenizer, path.name)
    raise BestiaryError(f"unknown chat template {chosen!r}, and no file of that name; "
                        f"known: {known(own, host) or 'none'}")


def known(own: Iterable[str], host: Host | None) -> str:
    """The names of the templates there are, the family's own first."""
    first = sorted(own)
    others = sorted({*(host.templates.names if host else ())} - {*first})
    if not first or not others:
        return ", ".join(first or others)
    return f"{', '.join(first)} (this family's); others: {', '.join(others)}"


def with_tokens(template: Template, tokenizer: Tokenizer, host: Host | None) -> Template:
    """The template, after a line on the log where the vocabulary lacks a token of it: such a mark would be spelled out
    as text, and the answers be bad without an error."""
    if missing := next((text for text in template.tokens if tokenizer.find(text) is None), None):
        line = (f"chat template {template.name}: the vocabulary has no token {missing!r}: is it another model's "
                "template?")
        log.warning("%s", line) if host is None else host.say(line)
    return template


def rendered(template: Template, messages: Sequence[Message], who: str) -> list[Segment]:
    """The template's prompt. Raises BestiaryError, naming whose template it is, where it gives no segments of text."""
    with calling(who, "render messages"), printing_to_stderr():
        found: object = template.render(messages)
        if isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
            found = list(found)
            if all(isinstance(piece, Segment) and isinstance(piece.text, str) and isinstance(piece.special, bool)
                   for piece in found):
                return found
    raise BestiaryError(f"{who} rendered messages and gave {shown(found)}, not a list of Segments of text")


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise BestiaryError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BestiaryError(f"{path} is no UTF-8 text") from None


def jinja(source: str, material: TokenizerMaterial, tokenizer: Tokenizer, name: str = "chat_template") -> Template:
    """A Jinja template, which sees the spellings of the tokenizer's special tokens."""
    from bestiary.jinja_template import JinjaTemplate

    keys = [f"{role}_token" for role in ROLES]
    spelled: Mapping[str, str | None] = {key: named_token(material.files, key) for key in keys}
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    found = {key: text or (None if (token := ids.get(key)) is None else tokenizer.name(token))
             for key, text in spelled.items()}
    return JinjaTemplate(source, {key: text for key, text in found.items() if text is not None}, name)


def end_ids(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens that the template says end an answer; in the text of an answer they do not show."""
    found = (tokenizer.find(text) for text in template.stop)
    return frozenset(token for token in found if token is not None and tokenizer.special(token))
