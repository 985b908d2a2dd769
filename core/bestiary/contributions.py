"""What a plugin's hooks give, checked item by item."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bestiary.architecture import Architecture
from bestiary.backend import Backend
from bestiary.encoding import Encoding
from bestiary.hookspecs import GROUP
from bestiary.loader import Loader, Writer
from bestiary.quantizer import Quantizer
from bestiary.registry import Origin, Provided

PREFIX = f"{GROUP}_"


class Refused(Exception):
    """A plugin broke a rule; the message says which."""


@dataclass(frozen=True)
class Kind:
    """What a hook gives. attributes: what its items must have, beside a name."""

    singular: str
    item: type
    attributes: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, Kind] = {
    "architectures": Kind("architecture", Architecture, {
        "namings": Mapping, "ignorable": (tuple, list), "keys": (tuple, list), "pre_tokenizers": Mapping,
        "rank_lists": (tuple, list), "templates": Mapping, "prompts": Mapping}),
    "loaders": Kind("loader", Loader),
    "writers": Kind("writer", Writer, {"suffix": str, "stem": str, "rank": int}),
    "quantizers": Kind("quantizer", Quantizer, {
        "encoding": Encoding, "aliases": (tuple, list), "keeps": (tuple, list), "retired": Mapping}),
    "backends": Kind("backend", Backend, {"rank": int}),
    "commands": Kind("command", str),
}
"""The hooks, without their prefix."""


def call_hooks(functions: Sequence[Callable[[], Any]], kind: str, origin: Origin) -> tuple[Provided[Any], ...]:
    """What a plugin's hooks of one kind give, checked. Raises Refused for what is not of that kind, and whatever
    the plugin raises."""
    found: list[Provided[Any]] = []
    for function in functions:
        given = function()
        if kind == "commands":
            if not isinstance(given, Mapping):
                raise Refused(f"{PREFIX}{kind} gave {_what(given)}, not a mapping")
            found += [_command(name, target, origin) for name, target in given.items()]
        else:
            if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
                raise Refused(f"{PREFIX}{kind} gave {_what(given)}, not an iterable of {kind}")
            found += [_item(kind, item, origin) for item in given]
    names = [key for entry in found for key in {name.casefold() for name in (entry.name, *entry.aliases)}]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"{PREFIX}{kind} gave {twice[0]!r} twice")
    return tuple(found)


def _item(kind: str, given: Any, origin: Origin) -> Provided[Any]:
    rule: Kind = KINDS[kind]
    if not isinstance(given, rule.item):
        raise Refused(f"{PREFIX}{kind} gave {_what(given)}, not an instance of {rule.item.__name__}")
    item: Any = given
    name = getattr(item, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[^\s,]+", name):
        raise Refused(f"{rule.singular} {type(item).__name__} has the name {name!r}; a word is needed")
    for attribute, wanted in rule.attributes.items():
        value = getattr(item, attribute, None)
        if not isinstance(value, wanted):
            raise Refused(f"{rule.singular} {name}: its {attribute} is {_what(value)}")
    aliases = tuple(item.aliases) if kind == "quantizers" else ()
    words = (*aliases, *item.retired, *item.retired.values()) if kind == "quantizers" else ()
    for word in words:
        if not isinstance(word, str):
            raise Refused(f"{rule.singular} {name}: {word!r} among its names is no text")
    return Provided(name, item, origin, aliases)


def _command(name: Any, target: Any, origin: Origin) -> Provided[str]:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise Refused(f"{PREFIX}commands gave the name {name!r}; lower-case letters, digits and - are allowed")
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", target):
        raise Refused(f"{PREFIX}commands gave {target!r} for {name}, not \"module:function\"")
    return Provided(name, target, origin)


def _what(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.60}"


def one_line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception whose own __str__ raises
        text = ""
    kind = type(error).__name__
    text = text if isinstance(error, Refused) else f"{kind}: {text}" if text else kind
    return text if len(text) <= 300 else text[:299] + "…"
