"""The environment that operators and calls of a chat template go through, and the attributes and methods it may use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace

from bestiary import marked_text
from bestiary.jinja_meter import MAX_BITS, MAX_DEPTH, MAX_SHOWN, MAX_WIDTH, Meter, Refused
from bestiary.marked_text import Marked, given, joined, marked, marks_of


class Sandbox(ImmutableSandboxedEnvironment):
    """Everything here that can make a large value from small ones looks at the sizes first."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    meter: Meter

    def concat(self, pieces: Iterable[str]) -> str:
        return self.joined(list(pieces))

    def joined(self, pieces: list[str], between: str = "") -> str:
        size = sum(map(len, pieces)) + len(between) * len(pieces)
        self.meter.expect(size)
        self.meter.spend(1 + len(pieces) + (size >> 10), size)
        return joined(pieces, between)

    def getattr(self, obj: Any, attribute: str) -> Any:
        names = next((names for kind, names in ATTRIBUTES.items() if isinstance(obj, kind)), frozenset[str]())
        if isinstance(obj, dict) and attribute in obj and attribute not in names:
            return obj[attribute]
        if attribute.startswith("_"):
            return self.none(obj, attribute)
        if isinstance(obj, str) and attribute in METHODS:
            return Method(self, obj, attribute)
        if attribute in names or isinstance(obj, Undefined):
            return getattr(obj, attribute)
        if isinstance(obj, Namespace):
            return getattr(obj, attribute, self.undefined(obj=obj, name=attribute))
        return self.none(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.spend(1)
        if isinstance(obj, (str, list, tuple, dict, range)):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                if isinstance(obj, dict) and argument not in ATTRIBUTES[dict]:
                    return self.undefined(obj=obj, name=argument)
        return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=argument)

    def none(self, obj: Any, attribute: str) -> Any:
        """Undefined where nothing has that name; an error where something may, and it is not for templates."""
        if attribute.startswith("_") or hasattr(type(obj), attribute):
            raise Refused(f"the chat template wants {attribute[:80]!r} of a {type(obj).__name__}; "
                          "templates may not use that")
        return self.undefined(obj=obj, name=attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja's
        meter = __self.meter
        meter.depth += 1
        if meter.depth > MAX_DEPTH:
            raise Refused(f"the chat template nests calls deeper than {MAX_DEPTH}")
        try:
            meter.spend(1)
            return meter.made(super().call(__context, __obj, *args, **kwargs))
        finally:
            meter.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.spend(1)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.joined([left, right])
        if operator == "%" and isinstance(left, str):
            return self.formatted(left, right)
        if operator == "*":
            for many, count in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(count, int):
                    self.meter.expect(self.meter.weigh(many)[0] * count)
                    return self.meter.made(
                        marked(str.__mul__(many, count), marks_of(many) * count) if isinstance(many, str)
                        else many * count)
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
            if left.bit_length() * right > MAX_BITS:
                raise Refused("the chat template makes a number that is too large")
        elif operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            self.meter.expect(len(left) + len(right))
        return self.meter.made(self.binop_table[operator](left, right))

    def formatted(self, text: str, values: Any) -> str:
        """`text % values`, of a size that is known before."""
        if re.search(r"%[^a-zA-Z%]*(?:\*|[0-9]{3})", text):
            raise Refused("the chat template formats with a width")
        size, _ = self.meter.weigh(text, values)
        self.meter.expect(len(text) + text.count("%") * (size + 100))
        if text.count("%") * size > MAX_SHOWN:
            raise Refused("the chat template formats a value that is too large")
        return self.meter.whole(lambda both: str.__str__(both[0]) % both[1], (text, values))


class Method:
    """A method of a text. Nothing but a call can be done with it."""

    __slots__ = ("_call",)

    def __init__(self, sandbox: Sandbox, text: str, name: str) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            return METHODS[name](sandbox, text, *args, **kwargs)

        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method or filter whose result is no larger than what it reads."""
    def call(sandbox: Sandbox, text: str, *args: Any, **kwargs: Any) -> Any:
        sandbox.meter.weigh(text, args, kwargs)
        # to strip or to search from the right takes the product of both lengths
        sandbox.meter.spend(1 + (sum(len(arg) * len(text) for arg in args if isinstance(arg, str)) >> 14))
        return function(text, *args, **kwargs)

    return call


def _splitting(name: str) -> Callable[..., Any]:
    """A method that cuts a text up. Each part of a marked one takes microseconds, so all are paid for beforehand."""
    plain, cut = getattr(str, name), reading(getattr(marked_text, name))

    def call(sandbox: Sandbox, text: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text, Marked):
            sandbox.meter.spend(2 * len(plain(str.__str__(text), *args, **kwargs)))
        return cut(sandbox, text, *args, **kwargs)

    return call


def _replace(sandbox: Sandbox, text: str, old: Any, new: Any, count: int = -1) -> str:
    sandbox.meter.weigh(text, old, new)
    if not isinstance(old, str) or not isinstance(new, str):
        raise Refused(f"the chat template replaces {type(old).__name__} by {type(new).__name__}")
    found = str.count(text, old)
    sandbox.meter.expect(len(text) + found * len(new))
    if isinstance(text, Marked) or isinstance(new, Marked):
        sandbox.meter.spend(2 * found)
    return marked_text.replace(text, old, new, -1 if count is None else count)


def _join(sandbox: Sandbox, between: str, values: Any) -> str:
    pieces = sandbox.meter.each(values)
    if not all(isinstance(piece, str) for piece in pieces):
        raise Refused("the chat template joins what is no text")
    return sandbox.joined(pieces, between)


def _padded(change: Callable[..., str]) -> Callable[..., str]:
    def call(sandbox: Sandbox, text: str, width: int = 80, *fill: str) -> str:
        if width > MAX_WIDTH:
            raise Refused(f"the chat template pads to {str(width)[:40]} characters")
        made = change(text, width, *fill)
        return given(made) if isinstance(text, Marked) or any(isinstance(char, Marked) for char in fill) else made

    return call


def _braces(sandbox: Sandbox, text: str, *args: Any, **kwargs: Any) -> str:
    """`text.format(...)` for fields that are but a place or a name: Python's own walks attributes, and pads."""
    sandbox.meter.spend(len(text) >> 4)
    values: dict[str, Any] = {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    pieces: list[str] = []
    automatic = 0
    for i, part in enumerate(re.split(r"(\{\{|\}\}|\{\w*\}|[{}])", text)):
        if i % 2 == 0 or part in ("{{", "}}"):
            pieces.append(part[:1] if i % 2 else part)
            continue
        field = str(automatic) if part == "{}" else part[1:-1]
        automatic += part == "{}"
        if field not in values:
            raise Refused(f"the chat template formats {text[:80]!r}; only places and names may stand in it")
        pieces.append(sandbox.meter.shown(values[field]))
    return sandbox.joined(pieces)


METHODS: Mapping[str, Callable[..., Any]] = {
    **{name: reading(getattr(marked_text, name)) for name in (
        "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "partition", "rpartition", "upper", "lower",
        "capitalize", "title", "swapcase")},
    **{name: _splitting(name) for name in ("split", "rsplit", "splitlines")},
    **{name: reading(getattr(str, name)) for name in (
        "startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isalpha", "isdigit", "isnumeric",
        "isdecimal", "isalnum", "isspace", "isupper", "islower", "istitle", "isascii")},
    **{name: _padded(getattr(str, name)) for name in ("center", "ljust", "rjust", "zfill")},
    "replace": _replace, "join": _join, "format": _braces,
}
"""Methods of texts."""

ATTRIBUTES: Mapping[type, frozenset[str]] = {
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("index", "count")), tuple: frozenset(("index", "count")),
    LoopContext: frozenset(("index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0",
                            "previtem", "nextitem", "cycle", "changed")),
    Macro: frozenset(("name", "arguments", "catch_kwargs", "catch_varargs", "caller")),
    Cycler: frozenset(("next", "current", "reset")),
}
