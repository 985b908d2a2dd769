"""A checkpoint's own chat template: Jinja, rendered in a sandbox that is bounded in work, text and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import CodeType
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from bestiary.errors import BestiaryError
from bestiary.jinja_filters import FILTERS, GLOBALS, TESTS
from bestiary.jinja_meter import MAX_DEPTH, MAX_NODES, MAX_SOURCE, Meter, Refused
from bestiary.jinja_sandbox import Sandbox
from bestiary.marked_text import given, runs
from bestiary.template import ROLES, Message, Segment, Template

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

    A template is hostile input. Jinja's immutable sandbox keeps it from Python's objects; what it leaves open is how
    much it may do. So everything a template can do is either metered or refused: the syntax tree is rewritten such that
    loops, comparisons, slices, literals and output go through metered functions, operators and calls go through the
    environment, and of attributes, filters and tests only those listed exist.

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
