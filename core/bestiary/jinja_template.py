"""A checkpoint's own chat template: Jinja, rendered in a sandbox that is bounded in work, text and memory.

A template is hostile input. Jinja's immutable sandbox keeps it from Python's objects; what it leaves open is how much
it may do. So everything a template can do is either metered or refused: the syntax tree is rewritten such that loops,
comparisons, slices, literals and output go through metered functions, operators and calls go through the environment,
and of attributes, filters and tests only those listed here exist.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from datetime import datetime
from functools import cached_property
from types import CodeType
from typing import Any, NoReturn

from jinja2 import Template as Compiled
from jinja2 import Undefined, ext, filters, nodes, pass_context, tests
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from bestiary import marked_text
from bestiary.errors import BestiaryError
from bestiary.marked_text import Marked, given, joined, marked, marks_of, runs
from bestiary.template import ROLES, Message, Segment, Template

MAX_SOURCE = 1 << 17
MAX_NODES = 20_000
"""Of a template: characters, and nodes of its syntax tree. The longest of 70 in use has 17,000 and 1,300."""
MAX_STEPS = 400_000
"""What one rendering may do: operations, 1024 characters read counting as one more."""
MAX_TEXT = 1 << 24
"""Characters that one rendering may make, beside 32 for each of the messages'."""
MAX_SHOWN = 1 << 20
"""Size of a list or object that is turned into text."""
MAX_DEPTH = 40
MAX_BITS = 1 << 12
MAX_WIDTH = 1000
"""Of nested values and calls; of an integer; of what pads or repeats."""


class Refused(BestiaryError):
    """The template does what none should."""


class Meter:
    """What is left of one rendering's allowance."""

    def __init__(self, size: int) -> None:
        """size: characters of the messages."""
        self.steps, self.text, self.depth = MAX_STEPS + (size >> 4), MAX_TEXT + 32 * size, 0

    def spend(self, steps: int, text: int = 0) -> None:
        self.steps -= steps
        self.text -= text
        if self.steps < 0:
            raise Refused("the chat template does too much work")
        if self.text < 0:
            raise Refused("the chat template makes too much text")

    def weigh(self, *values: Any) -> tuple[int, bool]:
        """The size of values, that of a list being those of its items even where they are one object, and whether text
        of a message is in them. Reading them is paid for."""
        size, found, todo = 0, False, [(value, 0) for value in values]
        while todo:
            value, depth = todo.pop()
            self.spend(1)
            size += 1
            if isinstance(value, str):
                size += len(value)
                found = found or isinstance(value, Marked)
                self.spend(len(value) >> 10)
            elif isinstance(value, int):
                if value.bit_length() > MAX_BITS:
                    raise Refused("the chat template makes a number that is too large")
                size += 8
            elif isinstance(value, (list, tuple, dict, KeysView, ValuesView, ItemsView)):
                self.spend(len(value))
                if depth > MAX_DEPTH:
                    raise Refused(f"the chat template nests values deeper than {MAX_DEPTH}")
                inside = value.items() if isinstance(value, dict) else value
                todo.extend((item, depth + 1) for item in inside)
            elif isinstance(value, range):
                self.spend(len(value))
        return size, found

    def made(self, value: Any) -> Any:
        """The value, just made and now paid for."""
        if value is not None and not isinstance(value, bool):
            self.spend(1, self.weigh(value)[0])
        return value

    def expect(self, size: int) -> None:
        """Refuses to make what would be this large, before it is made."""
        if size > self.text:
            raise Refused("the chat template makes too much text")

    def each(self, values: Any) -> list[Any]:
        """The items of a loop."""
        if isinstance(values, Undefined):
            return list(values)
        found = []
        for value in values:
            self.spend(1)
            found.append(value)
        return found

    def shown(self, value: Any) -> str:
        """The value as text; that of a list or object is the message's where a part of it is."""
        if isinstance(value, str):
            self.spend(1 + (len(value) >> 10))
            return value
        if value is None or isinstance(value, (bool, float, Undefined)):
            self.spend(1)
            return str(value)
        if not isinstance(value, (int, list, tuple, dict, KeysView, ValuesView, ItemsView, range)):
            raise Refused(f"the chat template prints a {type(value).__name__}")
        return self.whole(str, value)

    def whole(self, change: Callable[[Any], str], value: Any) -> str:
        """The text that `change` makes of a value, marked as a whole."""
        size, found = self.weigh(value)
        if size > MAX_SHOWN:
            raise Refused("the chat template prints a value that is too large")
        text = change(value)
        self.spend(1, len(text))
        return given(text) if found else text


# --- the environment ---

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


def _reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method or filter whose result is no larger than what it reads."""
    def call(sandbox: Sandbox, text: str, *args: Any, **kwargs: Any) -> Any:
        sandbox.meter.weigh(text, args, kwargs)
        # to strip or to search from the right takes the product of both lengths
        sandbox.meter.spend(1 + (sum(len(arg) * len(text) for arg in args if isinstance(arg, str)) >> 14))
        return function(text, *args, **kwargs)

    return call


def _replace(sandbox: Sandbox, text: str, old: Any, new: Any, count: int = -1) -> str:
    sandbox.meter.weigh(text, old, new)
    if not isinstance(old, str) or not isinstance(new, str):
        raise Refused(f"the chat template replaces {type(old).__name__} by {type(new).__name__}")
    sandbox.meter.expect(len(text) + (str.count(text, old)) * len(new))
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
    **{name: _reading(getattr(marked_text, name)) for name in (
        "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "split", "rsplit", "splitlines", "partition",
        "rpartition", "upper", "lower", "capitalize", "title", "swapcase")},
    **{name: _reading(getattr(str, name)) for name in (
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


# --- what templates call ---

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
    "trim": _as_method(METHODS["strip"]), "title": _as_method(_reading(marked_text.cased(filters.FILTERS["title"]))),
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


# --- the rewriting ---

KNOWN = tuple(getattr(nodes, name) for name in (
    "Template", "Output", "TemplateData", "For", "If", "Macro", "CallBlock", "FilterBlock", "With", "Assign",
    "AssignBlock", "Continue", "Break", "Scope", "Name", "NSRef", "Const", "Tuple", "List", "Dict", "Pair", "Keyword",
    "CondExpr", "Filter", "Test", "Call", "Getitem", "Getattr", "Slice", "Concat", "Compare", "Operand", "Add", "Sub",
    "Mul", "Div", "FloorDiv", "Mod", "Pow", "And", "Or", "Not", "Neg", "Pos"))


class Metering(NodeTransformer):
    """Leads through the meter what would run in plain Python. Raises BestiaryError for what no chat template needs:
    other templates, blocks, recursive loops."""

    def __init__(self) -> None:
        self.count = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise Refused(f"the chat template has more than {MAX_NODES} parts")
        if type(node) not in KNOWN:
            raise Refused(f"the chat template uses {type(node).__name__}, which chat templates may not")
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja finds them by these names
        if node.recursive:
            raise Refused("the chat template has a recursive loop")
        self.generic_visit(node)
        node.iter = through("(each)", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [through("(shown)", child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return through("(joined)", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = through("(read)", node.expr)
        for operand in node.ops:
            operand.expr = through("(read)", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return through("(cut)", node.node, *(bound or nodes.Const(None, lineno=node.lineno) for bound in bounds))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return through("(made)", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return through("(made)", node) if node.ctx == "load" else node


def through(name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class Generation(ext.Extension):
    """`{% generation %}`, which marks the assistant's text for training: what is in it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(meter: Meter) -> Sandbox:
    """The only place where an environment of Jinja is made; configured as transformers does it."""
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols],
                      optimized=False, autoescape=False, cache_size=0)
    sandbox.meter = meter
    sandbox.globals, sandbox.filters, sandbox.tests = dict(GLOBALS), dict(FILTERS), dict(TESTS)
    return sandbox


class JinjaTemplate(Template):
    """variables: what the template sees beside the messages: bos_token, eos_token ... Their text may be special tokens,
    and so may the template's own; that of messages never is.

    Raises BestiaryError, when it renders, for a template that is no Jinja, does what none should, or refuses the
    messages.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None, name: str = "chat_template") -> None:
        self.source, self.variables, self.name = source, dict(variables or {}), name

    def __reduce__(self) -> tuple[type[JinjaTemplate], tuple[Any, ...]]:
        return JinjaTemplate, (self.source, self.variables, self.name)

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        given_messages = [_from_message(message) for message in messages]
        meter = Meter(0)
        meter = Meter(meter.weigh(given_messages)[0])
        text = self._guarded(lambda: self._text(_environment(meter), given_messages))
        return [Segment(piece, not users) for piece, users in runs(text)]

    def _text(self, sandbox: Sandbox, messages: list[Any]) -> str:
        compiled = Compiled.from_code(sandbox, self._code, sandbox.globals)
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True,
                     **self.variables}
        return sandbox.joined(list(compiled.root_render_func(compiled.new_context(variables))))

    @cached_property
    def _code(self) -> CodeType:
        if len(self.source) > MAX_SOURCE:
            raise Refused(f"the chat template has {len(self.source)} characters; {MAX_SOURCE} are allowed")
        sandbox = _environment(Meter(0))
        return sandbox.compile(Metering().visit(sandbox.parse(self.source)))

    def _guarded(self, render: Callable[[], str]) -> str:
        try:
            return render()
        except BestiaryError:
            raise
        except RecursionError:
            raise Refused("the chat template nests too deep") from None
        except Exception as error:  # whatever a hostile template makes Jinja or Python raise
            line = getattr(error, "lineno", None)
            where = f", line {line}" if isinstance(line, int) else ""
            words = " ".join(str(error)[:300].split())
            raise BestiaryError(f"the chat template fails{where}: {type(error).__name__}: {words}") from None


def _from_message(value: Any, depth: int = 0) -> Any:
    """Plain data with every text marked as the message's. Raises BestiaryError for anything else in it."""
    if depth > MAX_DEPTH:
        raise BestiaryError(f"a message nests values deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        return given(str.__str__(value))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_from_message(key, depth + 1): str(item) if key == "role" and item in ROLES
                else _from_message(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_from_message(item, depth + 1) for item in value]
    raise BestiaryError(f"a message holds a {type(value).__name__}; texts, numbers, lists and objects are known")
