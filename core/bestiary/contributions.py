"""What a plugin's hooks give, checked item by item."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bestiary.architecture import Architecture, Key, KnownVocabulary, PreTokenizer, RankList, Rule
from bestiary.backend import Backend
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, printable
from bestiary.hookspecs import GROUP
from bestiary.layout_json import check_encoding
from bestiary.loader import Loader, Writer
from bestiary.quantizer import Quantizer
from bestiary.registry import Origin, Provided
from bestiary.template import Template

PREFIX = f"{GROUP}_"
MOST = 10_000
"""Items of one hook; one that never ends is found out."""


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
        "filed_as": str, "namings": Mapping, "ignorable": (tuple, list), "keys": (tuple, list),
        "pre_tokenizers": Mapping, "rank_lists": (tuple, list), "vocabularies": (tuple, list), "templates": Mapping,
        "prompts": Mapping}),
    "loaders": Kind("loader", Loader, {"encodings": (tuple, list)}),
    "writers": Kind("writer", Writer, {"suffix": str, "stem": str, "rank": int, "marks": (tuple, list)}),
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
        if inspect.iscoroutine(given):
            given.close()  # else Python itself says that nobody awaited it
            raise Refused(f"{PREFIX}{kind} is async; a hook is called and gives its items")
        if kind == "commands":
            if not isinstance(given, Mapping):
                raise Refused(f"{PREFIX}{kind} gave {shown(given)}, not a mapping")
            found += [_command(name, target, origin) for name, target in given.items()]
        else:
            if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
                raise Refused(f"{PREFIX}{kind} gave {shown(given)}, not an iterable of {kind}")
            found += [_item(kind, item, origin) for item in islice(given, MOST + 1)]
            if len(found) > MOST:
                raise Refused(f"{PREFIX}{kind} gave more than {MOST} items")
    names = [key for entry in found for key in {name.casefold() for name in (entry.name, *entry.aliases)}]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise Refused(f"{PREFIX}{kind} gave {twice[0]!r} twice")
    return tuple(found)


def _item(kind: str, given: Any, origin: Origin) -> Provided[Any]:
    rule: Kind = KINDS[kind]
    if not isinstance(given, rule.item):
        raise Refused(f"{PREFIX}{kind} gave {shown(given)}, not an instance of {rule.item.__name__}")
    item: Any = given
    name: Any = getattr(item, "name", None)
    if not _word(name):
        raise Refused(f"{rule.singular} {type(item).__name__} has the name {name!r}; a word is needed, "
                      "of letters, digits and . _ + -")
    for attribute, wanted in rule.attributes.items():
        value = getattr(item, attribute, None)
        if not isinstance(value, wanted):
            raise Refused(f"{rule.singular} {name}: its {attribute} is {shown(value)}")
    for attribute, value, fault in _faults(kind, item):
        raise Refused(f"{rule.singular} {name}: {shown(value)} among its {attribute} is no {fault}")
    return Provided(name, item, origin, tuple(item.aliases) if kind == "quantizers" else ())


def _unreadable(who: str, encodings: tuple[Any, ...]) -> Iterator[tuple[str, object, str]]:
    for encoding in encodings:
        if not isinstance(encoding, Encoding):
            yield "encodings", encoding, "encoding"
            continue
        sizes = (encoding.block_size, *encoding.block_bytes) if isinstance(encoding.block_bytes, tuple) else (None,)
        if not (_word(encoding.name) and len(sizes) > 1 and all(isinstance(n, int) and n > 0 for n in sizes)):
            yield "encodings", encoding, "encoding with a name and whole sizes"
            continue
        try:
            check_encoding(encoding)
        except BestiaryError as error:
            raise Refused(f"{who}: its encoding cannot be read: {error}") from None


def _faults(kind: str, item: Any) -> Iterator[tuple[str, object, str]]:
    """What an item's containers hold and should not: (attribute, value, what it is not)."""
    if kind in ("quantizers", "loaders"):
        yield from _unreadable(f"{kind[:-1]} {item.name}",
                               (item.encoding,) if kind == "quantizers" else item.encodings)
    if kind == "quantizers":
        yield from (("aliases", alias, "word") for alias in item.aliases if not _word(alias))
        yield from (("retired", words, "pair of texts") for words in item.retired.items() if not _texts(words))
        yield from (("keeps", pair, "pair of a pattern and a quantizer") for pair in item.keeps
                    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and _texts(pair) and _pattern(pair[0])))
    if kind == "architectures":
        for name, rules in item.namings.items():
            if not (isinstance(name, str) and isinstance(rules, (tuple, list)) and all(map(_rule, rules))):
                yield "namings", {name: rules}, "name and tuple of rules"
        yield from (("ignorable", pattern, "regular expression") for pattern in item.ignorable if not _pattern(pattern))
        yield from (("keys", key, "key") for key in item.keys if not (
            isinstance(key, Key) and _texts((key.config, key.file, key.kind))
            and _function(key.to_file) and _function(key.from_file)))
        for name, value in item.pre_tokenizers.items():
            if not (isinstance(name, str) and isinstance(value, PreTokenizer)
                    and isinstance(value.patterns, tuple) and _texts(value.patterns)):  # they are hashed
                yield "pre_tokenizers", {name: value}, "name and pre-tokenizer"
        yield from (("vocabularies", known, "known vocabulary") for known in item.vocabularies
                    if not isinstance(known, KnownVocabulary))
        yield from (("rank_lists", ranks, "rank list") for ranks in item.rank_lists if not (
            isinstance(ranks, RankList) and isinstance(ranks.size, int) and _texts(ranks.special) and _texts(ranks.ends)
            and _texts((ranks.pre_tokenizer, ranks.bos, ranks.eos))))
        for name, value in item.templates.items():
            if not (_word(name) and isinstance(value, Template) and isinstance(getattr(value, "name", None), str)
                    and _texts(value.stop) and _texts(value.tokens)):
                yield "templates", {name: value}, "name and template"
        yield from (("prompts", pair, "pair of texts") for pair in item.prompts.items() if not _texts(pair))


def _word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value) is not None


def _texts(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(text, str) for text in value)


def _function(value: object) -> bool:
    return value is None or callable(value)


def _rule(value: object) -> bool:
    return isinstance(value, Rule) and _function(value.transform) and all(
        isinstance(names, str) or names and _texts(names) for names in (value.sources, value.targets))


def _pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _command(name: Any, target: Any, origin: Origin) -> Provided[str]:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise Refused(f"{PREFIX}commands gave the name {name!r}; lower-case letters, digits and - are allowed")
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", target):
        raise Refused(f"{PREFIX}commands gave {target!r} for {name}, not \"module:function\"")
    return Provided(name, target, origin)


def shown(value: object) -> str:
    """The value in words, of a class whose __repr__ may be as bad as the rest of it."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        if hasattr(value, "dtype") and hasattr(value, "shape"):  # an array: its numbers say nothing
            return f"{type(value).__name__} of {value.dtype} and shape {value.shape}"
        return f"{type(value).__name__} {value!r:.60}"
    except Exception:
        return f"an object of {type(value).__name__}"


def one_line(error: BaseException) -> str:
    try:
        text = printable(" ".join(str(error).split()))
    except BaseException:  # an exception whose own __str__ raises
        text = ""
    kind = type(error).__name__
    text = text if isinstance(error, Refused) else f"{kind}: {text}" if text else kind
    return text if len(text) <= 300 else text[:299] + "…"
