"""The filters, tests and globals of chat templates, each metered: no others exist."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import filters, pass_context, tests
from jinja2.runtime import Context
from jinja2.utils import Cycler, Joiner, Namespace

from bestiary import marked_text
from bestiary.errors import BestiaryError
from bestiary.jinja_meter import MAX_WIDTH, Meter, Refused
from bestiary.jinja_sandbox import METHODS, Sandbox, reading
from bestiary.marked_text import joined


@pass_context
def _each(context: Context, values: Any) -> list[Any]:
    return _meter(context).each(values)


@pass_context
def _shown(context: Context, value: Any) -> str:
    return _meter(context).shown(value)


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    sandbox = _sandbox(context)
    return sandbox.joined([sandbox.meter.shown(value) for value in values])


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _meter(context).made(value)


@pass_context
def _read(context: Context, value: Any) -> Any:
    """An operand of a comparison."""
    _meter(context).weigh(value)
    return value


@pass_context
def _cut(context: Context, value: Any, *bounds: Any) -> Any:
    return _meter(context).made(value[slice(*bounds)])


REWRITTEN = {"(each)": _each, "(shown)": _shown, "(joined)": _joined, "(made)": _made, "(read)": _read, "(cut)": _cut}
"""Filters of the rewritten tree; no template can spell their names."""


def _sandbox(context: Context) -> Sandbox:
    sandbox = context.environment
    if not isinstance(sandbox, Sandbox):
        raise TypeError("not a chat template")
    return sandbox


def _meter(context: Context) -> Meter:
    return _sandbox(context).meter


def _metered(function: Any, work: int = 1) -> Callable[..., Any]:
    """One of Jinja's filters whose result consists of what it reads. work: how often it reads that."""
    wants = getattr(function, "jinja_pass_arg", None)
    first: Mapping[str, Callable[[Context], Any]] = {
        "context": lambda context: context, "environment": lambda context: context.environment,
        "eval_context": lambda context: context.eval_ctx}
    passed = None if wants is None else first[wants.name]

    @pass_context
    def call(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        size, _ = meter.weigh(args, kwargs)
        meter.spend(size * (work - 1) >> 4)
        made = function(*(() if passed is None else (passed(context),)), *args, **kwargs)
        return meter.made(meter.each(made) if inspect.isgenerator(made) else made)

    return call


def _as_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of a text from a method of it."""
    @pass_context
    def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        sandbox = _sandbox(context)
        return sandbox.meter.made(method(sandbox, sandbox.meter.shown(value), *args, **kwargs))

    return call


@pass_context
def _join_filter(context: Context, values: Any, d: str = "", attribute: Any = None) -> str:
    sandbox = _sandbox(context)
    if attribute is not None:
        values = map(filters.make_attrgetter(sandbox, attribute), sandbox.meter.each(values))
    return sandbox.joined([sandbox.meter.shown(value) for value in sandbox.meter.each(values)], sandbox.meter.shown(d))


@pass_context
def _indent(context: Context, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    sandbox = _sandbox(context)
    if isinstance(width, int) and width > MAX_WIDTH:
        raise Refused(f"the chat template indents by {str(width)[:40]}")
    margin = " " * width if isinstance(width, int) else sandbox.meter.shown(width)
    lines = marked_text.splitlines(joined([sandbox.meter.shown(value), "\n"]))
    sandbox.meter.spend(len(lines))
    indented = [sandbox.joined([margin, line]) if (blank or line) and (i or first) else line
                for i, line in enumerate(lines)]
    return sandbox.joined(indented, "\n")


@pass_context
def _tojson(context: Context, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    """As transformers configures it: characters stay as they are, and nothing is escaped for HTML."""
    for padding in (indent, *(separators or ())):
        if (len(padding) if isinstance(padding, str) else padding or 0) > 16:
            raise Refused("the chat template pads its JSON")
    return _meter(context).whole(lambda data: json.dumps(
        data, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys), value)


@pass_context
def _format(context: Context, text: Any, *args: Any, **kwargs: Any) -> str:
    sandbox = _sandbox(context)
    if args and kwargs:
        raise Refused("the chat template formats with positions and names at once")
    return sandbox.formatted(sandbox.meter.shown(text), kwargs or args)


@pass_context
def _sum(context: Context, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise Refused(f"the chat template sums a {type(start).__name__}")
    return _metered(filters.FILTERS["sum"])(context, values, attribute, start)


@pass_context
def _round(context: Context, value: Any, precision: int = 0, method: Any = "common") -> Any:
    if precision > 20:
        raise Refused(f"the chat template rounds to {str(precision)[:40]} digits")
    return filters.FILTERS["round"](value, precision, method)


FILTERS: Mapping[str, Callable[..., Any]] = {
    **REWRITTEN,
    **{name: _metered(filters.FILTERS[name]) for name in (
        "abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map", "max",
        "min", "reject", "rejectattr", "reverse", "select", "selectattr")},
    **{name: _metered(filters.FILTERS[name], 20) for name in ("dictsort", "groupby", "sort", "unique")},
    **{name: _as_method(METHODS[name]) for name in ("capitalize", "center", "lower", "replace", "upper")},
    "trim": _as_method(METHODS["strip"]), "title": _as_method(reading(marked_text.cased(filters.FILTERS["title"]))),
    "string": _shown, "safe": _shown, "join": _join_filter, "indent": _indent,
    "tojson": _tojson, "format": _format, "sum": _sum, "round": _round,
}

TESTS: Mapping[str, Callable[..., Any]] = {name: _metered(tests.TESTS[name]) for name in (
    "boolean", "callable", "defined", "divisibleby", "eq", "equalto", "==", "even", "false", "float", "ge", ">=", "gt",
    "greaterthan", ">", "in", "integer", "iterable", "le", "<=", "lessthan", "lower", "lt", "<", "mapping", "ne", "!=",
    "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper")}


class Variables(Namespace):
    """`namespace(...)` of a template."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        if any(str(name).startswith("_") for name in dict(*args[1:], **kwargs)):
            raise Refused("the chat template sets a name that begins with _")
        Namespace.__init__(*args, **kwargs)

    def __repr__(self) -> str:  # of what it holds it would be exponential
        return "<namespace>"


def raise_exception(message: Any = "") -> NoReturn:
    raise BestiaryError(f"the chat template says: {str(message)[:500]}" if isinstance(message, str) else
                        "the chat template refuses the messages")


def strftime_now(format: str) -> str:
    if len(format) > 200 or re.search(r"%(?!-?[a-zA-Z%])", format):
        raise Refused(f"the chat template asks for the time as {format[:80]!r}")
    return datetime.now().strftime(format)


GLOBALS: Mapping[str, Any] = {
    "cycler": Cycler, "dict": lambda *args, **kwargs: dict(*args, **kwargs), "joiner": Joiner, "namespace": Variables,
    "raise_exception": raise_exception, "range": lambda *args: range(*args), "strftime_now": strftime_now}
