"""The forward pass of a model as data: nodes of a closed set of operations, traced once from straight code."""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from bestiary.config import LARGEST
from bestiary.errors import BestiaryError, short

# The numpy meaning of every operation is backends/numpy's method of the same name; x is (tokens, width) throughout.
OPERATIONS = ("input", "embed", "linear", "rms_norm", "layer_norm", "rope", "attention", "moe", "silu", "gelu", "add",
              "mul", "scale", "slice", "order", "soft_cap", "call")
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Node:
    """One operation. inputs: indices of earlier nodes. weights: canonical names by the part they play. width: columns
    of the result. layer: which layer it belongs to; None before the first and after the last."""

    op: str
    inputs: tuple[int, ...]
    width: int
    weights: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    layer: int | None = None


@dataclass(frozen=True)
class Past:
    """Learned keys and values before position 0: a graph of `tokens` tokens, numbered by their positions, whose
    attentions put them in the cache. Its weights are among those of the graph it belongs to."""

    graph: Graph
    tokens: int


@dataclass(frozen=True)
class Graph:
    """nodes in the order of execution. weights: canonical name -> the shape its use declares. output: the node of the
    logits (or of the hidden state, in a graph that was cut). hidden: the node of the last hidden state."""

    nodes: tuple[Node, ...]
    weights: Mapping[str, tuple[int, ...]]
    output: int
    hidden: int
    prefix_mask: bool = False
    """A prompt's prefix attends to itself in both directions: it takes one forward, and is not reused across turns."""
    past: Past | None = None
    """What stands before the first token of every sequence."""

    @property
    def layers(self) -> int:
        return 1 + max((node.layer for node in self.nodes if node.layer is not None), default=-1)

    @property
    def vocabulary(self) -> int:
        """Columns of the output."""
        return self.nodes[self.output].width

    def cut(self, layer: int) -> tuple[Graph, Graph]:
        """Two graphs joined by a hidden state: the layers before `layer`, and the rest, which starts with `input`.
        Raises BestiaryError where more than one value crosses the cut."""
        if self.past is not None:
            raise BestiaryError("a graph with learned keys and values before its first token cannot be cut")
        first = [i for i, node in enumerate(self.nodes) if node.layer is not None and node.layer < layer]
        if not first or layer > self.layers or len(self.nodes) - 1 == first[-1]:
            raise BestiaryError(f"a graph of {self.layers} layers cannot be cut before layer {layer}")
        end = first[-1] + 1
        crossing = {i for node in self.nodes[end:] for i in node.inputs if i < end}
        if crossing != {end - 1}:
            raise BestiaryError(f"{len(crossing)} values cross the cut before layer {layer}; one may")
        head = Graph(self.nodes[:end], _used(self.weights, self.nodes[:end]), end - 1, end - 1, self.prefix_mask)
        tail_nodes = [Node("input", (), self.nodes[end - 1].width)]
        for node in self.nodes[end:]:
            moved = tuple(i - end + 1 for i in node.inputs)  # node end-1 becomes 0, node end becomes 1
            tail_nodes.append(Node(node.op, moved, node.width, node.weights, node.params, node.layer))
        tail = Graph(tuple(tail_nodes), _used(self.weights, tail_nodes), self.output - end + 1,
                     self.hidden - end + 1, self.prefix_mask)
        return head, tail


def _used(weights: Mapping[str, tuple[int, ...]], nodes: Sequence[Node]) -> dict[str, tuple[int, ...]]:
    names = {name for node in nodes for name in node.weights.values()}
    return {name: shape for name, shape in weights.items() if name in names}


@dataclass(frozen=True)
class Value:
    """A node's result while a graph is traced."""

    index: int
    width: int


class Trace:
    """Records the operations that an architecture's `graph` calls. Every use of a weight declares its shape. Raises
    BestiaryError for a size, a number or a name that cannot be one: many come from a file."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._weights: dict[str, tuple[int, ...]] = {}
        self._layer: int | None = None

    def layers(self, count: int) -> Iterator[int]:
        """Iterates over the layers; nodes recorded meanwhile know theirs."""
        _whole("a graph", high=MOST_LAYERS, layers=count)
        for layer in range(count):
            self._layer = layer
            yield layer
        self._layer = None

    def finish(self, output: Value, hidden: Value, prefix_mask: bool = False, past: Past | None = None) -> Graph:
        """output: the logits. hidden: the last hidden state, what the output matrix is applied to."""
        weights = {**self._weights, **(past.graph.weights if past else {})}
        return Graph(tuple(self._nodes), weights, output.index, hidden.index, prefix_mask, past)

    def _weight(self, name: str, *shape: int) -> str:
        if not isinstance(name, str) or not name:
            raise BestiaryError(f"a weight is called {short(name)}; a text is wanted")
        for size in shape:
            _whole(f"weight {name}", size=size)
        if self._weights.setdefault(name, shape) != shape:
            raise BestiaryError(f"weight {name} is used as {self._weights[name]} and as {shape}")
        return name

    def _node(self, op: str, inputs: Sequence[Value], width: int, weights: Mapping[str, str | None] | None = None,
              **params: Any) -> Value:
        kept = {part: name for part, name in (weights or {}).items() if name is not None}
        self._nodes.append(Node(op, tuple(value.index for value in inputs), width, kept, params, self._layer))
        return Value(len(self._nodes) - 1, width)

    def _same(self, op: str, a: Value, b: Value) -> int:
        if a.width != b.width:
            raise BestiaryError(f"{op} of values that are {a.width} and {b.width} wide")
        return a.width

    def _word(self, what: str, given: str, known: tuple[str, ...]) -> str:
        if given not in known:
            raise BestiaryError(f"unknown {what} {given!r}; known: {', '.join(known)}")
        return given

    def _group(self, x: Value, group: int) -> int:
        _whole("a norm", 0, group=group)
        size = group or x.width
        if x.width % size:
            raise BestiaryError(f"a norm over groups of {size} in {x.width} columns")
        return size

    def keep(self, weight: str, *shape: int) -> None:
        """Declares a weight that only the graph of another context uses."""
        self._weight(weight, *shape)

    def embed(self, weight: str, rows: int, width: int, index: str = "token") -> Value:
        """Row `index` of the weight (rows, width) for each token. index: "token" (its id) or "position"."""
        _whole("embed", rows=rows, width=width)
        return self._node("embed", (), width, {"weight": self._weight(weight, rows, width)},
                          index=self._word("index", index, ("token", "position")))

    def linear(self, x: Value, weight: str, width: int, bias: str | None = None) -> Value:
        """x @ weight.T + bias; weight (width, x.width), bias (width,)."""
        _whole("linear", width=width)
        return self._node("linear", (x,), width, {
            "weight": self._weight(weight, width, x.width), "bias": bias and self._weight(bias, width)})

    def rms_norm(self, x: Value, weight: str | None, eps: float, group: int = 0) -> Value:
        """x / sqrt(mean(x ** 2) + eps) * weight, over the whole row, or over groups of `group` columns, which then
        share the weight (group,)."""
        _real("rms_norm", 0, eps=eps)
        size = self._group(x, group)
        return self._node("rms_norm", (x,), x.width, {"weight": weight and self._weight(weight, size)},
                          eps=eps, group=size)

    def layer_norm(self, x: Value, weight: str | None, bias: str | None, eps: float, group: int = 0) -> Value:
        """(x - mean) / sqrt(variance + eps) * weight + bias; groups as in rms_norm."""
        _real("layer_norm", 0, eps=eps)
        size = self._group(x, group)
        return self._node("layer_norm", (x,), x.width, {
            "weight": weight and self._weight(weight, size), "bias": bias and self._weight(bias, size)},
            eps=eps, group=size)

    def rope(self, x: Value, head_dim: int, base: float, *, start: int = 0, count: int | None = None,
             pairing: str = "adjacent", factors: str | Sequence[float] | None = None, scaling: float = 1.0,
             magnitude: float = 1.0, stream: int = 0) -> Value:
        """Rotates `count` columns from `start` of every head by the token's position in a position stream.

        Pair j turns by position * scaling * base ** (-2j / count) / factors[j]; its columns are (2j, 2j + 1) for
        pairing "adjacent", (j, j + count / 2) for "halves". factors: a weight (count / 2,), or the numbers themselves.
        The result is multiplied by `magnitude`.
        """
        _whole("rope", head_dim=head_dim)
        _whole("rope", 0, start=start, stream=stream, **({} if count is None else {"count": count}))
        _real("rope", base=base, scaling=scaling, magnitude=magnitude)
        count = head_dim - start if count is None else count
        if x.width % head_dim or count % 2 or count < 2 or start + count > head_dim:
            raise BestiaryError(f"rope over columns {start}..{start + count} of heads of {head_dim} in {x.width}")
        numbers = () if factors is None or isinstance(factors, str) else tuple(map(float, factors))
        if len(numbers) not in (0, count // 2) or not all(number and _finite(number) for number in numbers):
            raise BestiaryError(f"{len(numbers)} factors for {count // 2} pairs; none of them may be 0 or infinite")
        weight = self._weight(factors, count // 2) if isinstance(factors, str) else None
        return self._node("rope", (x,), x.width, {"factors": weight}, numbers=numbers,
                          head_dim=head_dim, base=base, start=start, count=count, scaling=scaling, stream=stream,
                          pairing=self._word("pairing", pairing, ("adjacent", "halves")), magnitude=magnitude)

    def attention(self, q: Value, k: Value, v: Value, heads: int, kv_heads: int, scale: float | None = None, *,
                  mask: str = "causal", slopes: tuple[float, ...] = (), window: int = 0,
                  soft_cap: float = 0.0) -> Value:
        """softmax(cap(q k' * scale) + slopes * distance + mask) v, with the keys and values of the sequence so far.

        Query head h uses key head h // (heads // kv_heads). mask: "causal" or "prefix" (tokens of the prefix see all of
        it). slopes: ALiBi, one a head; the bias is slope * (key position - query position). window: how many of the
        last positions are seen, the token's own included; 0 for all. soft_cap: cap(s) = soft_cap * tanh(s / soft_cap).
        """
        _whole("attention", heads=heads, kv_heads=kv_heads)
        _whole("attention", 0, window=window)
        scale = 1 / math.sqrt(max(q.width // heads, 1)) if scale is None else scale
        _real("attention", scale=scale)
        _real("attention", 0, soft_cap=soft_cap)
        if heads % kv_heads or q.width % heads or k.width % kv_heads or v.width % kv_heads \
                or k.width // kv_heads != q.width // heads or len(slopes) not in (0, heads):
            raise BestiaryError(f"attention of {heads} heads in {q.width} columns with {kv_heads} key heads in "
                                f"{k.width} and values in {v.width}")
        if not all(map(_finite, slopes)):
            raise BestiaryError(f"attention: slopes = {short(slopes)}; they must be numbers")
        if self._layer is None:
            raise BestiaryError("attention stands outside of the layers; its keys would have no place in the cache")
        return self._node("attention", (q, k, v), heads * (v.width // kv_heads), heads=heads, kv_heads=kv_heads,
                          scale=scale, mask=self._word("mask", mask, ("causal", "prefix")), slopes=slopes,
                          window=window, soft_cap=soft_cap)

    def moe(self, x: Value, router: str, gate: str, up: str, down: str, *, experts: int, width: int, top_k: int,
            normalise: bool = True) -> Value:
        """The `top_k` experts of each token by softmax(x @ router.T), each down(silu(gate x) * up x), summed with their
        probabilities, which are divided by their sum where `normalise`. gate, up: (experts, width, x.width);
        down: (experts, x.width, width); router: (experts, x.width)."""
        _whole("moe", experts=experts, width=width, top_k=top_k)
        if top_k > experts:
            raise BestiaryError(f"{top_k} of {experts} experts a token")
        return self._node("moe", (x,), x.width, {
            "router": self._weight(router, experts, x.width), "gate": self._weight(gate, experts, width, x.width),
            "up": self._weight(up, experts, width, x.width), "down": self._weight(down, experts, x.width, width)},
            experts=experts, hidden=width, top_k=top_k, normalise=normalise)

    def silu(self, x: Value) -> Value:
        """x * sigmoid(x)."""
        return self._node("silu", (x,), x.width)

    def gelu(self, x: Value, form: str = "erf") -> Value:
        """x * Phi(x): exact with form "erf", approximated with form "tanh"."""
        return self._node("gelu", (x,), x.width, form=self._word("form", form, ("erf", "tanh")))

    def add(self, a: Value, b: Value) -> Value:
        """a + b."""
        return self._node("add", (a, b), self._same("add", a, b))

    def mul(self, a: Value, b: Value) -> Value:
        """a * b, entry by entry."""
        return self._node("mul", (a, b), self._same("mul", a, b))

    def scale(self, x: Value, factor: float) -> Value:
        """x * factor."""
        if not _finite(factor):
            raise BestiaryError(f"scale: factor = {short(factor)}; it must be a number")
        return self._node("scale", (x,), x.width, factor=factor)

    def slice(self, x: Value, start: int, stop: int) -> Value:
        """Columns start..stop-1."""
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= x.width:
            raise BestiaryError(f"slice {short(start)}..{short(stop)} of {x.width} columns")
        return self._node("slice", (x,), stop - start, start=start, stop=stop)

    def order(self, x: Value, columns: Sequence[int]) -> Value:
        """The columns of x in another order: column i of the result is column columns[i] of x."""
        try:
            given = array("i", columns)
        except (TypeError, ValueError, OverflowError):
            raise BestiaryError(f"order {short(columns)}; it must be a list of columns") from None
        if sorted(given) != list(range(x.width)):
            raise BestiaryError(f"an order of {len(given)} columns that is no permutation of {x.width}")
        return self._node("order", (x,), x.width, columns=given)

    def soft_cap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)."""
        _real("soft_cap", cap=cap)
        return self._node("soft_cap", (x,), x.width, cap=cap)

    def call(self, function: str, *inputs: Value, weights: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
             width: int, **params: Any) -> Value:
        """A plugin's own operation "package.module:function", row-wise and without state: called with its inputs as
        (tokens, width) float32 arrays, its weights and params by keyword, it returns (tokens, width) float32.
        weights: part -> (canonical name, shape)."""
        if not isinstance(function, str) or not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", function):
            raise BestiaryError(f"call of {short(function)}; \"package.module:function\" is wanted")
        _whole("call", width=width)
        named = {part: self._weight(name, *shape) for part, (name, shape) in (weights or {}).items()}
        return self._node("call", inputs, width, dict(named), function=function, **params)


def _whole(what: str, low: int = 1, high: int = LARGEST, **sizes: int) -> None:
    for name, size in sizes.items():
        if type(size) is not int or not low <= size <= high:
            raise BestiaryError(f"{what}: {name} = {short(size)}; it must be an integer from {low} to {high}")


def _finite(number: object) -> bool:
    most = sys.float_info.max  # a Python integer may be beyond it
    return isinstance(number, Real) and not isinstance(number, bool) and bool(number <= most and not number < -most)


def _real(what: str, low: float | None = None, **numbers: float) -> None:
    """low: the least, itself included; None for anything above 0."""
    for name, number in numbers.items():
        if not _finite(number) or (number <= 0 if low is None else number < low):
            raise BestiaryError(f"{what}: {name} = {short(number)}; it must be a number "
                                f"{'above 0' if low is None else f'from {low:g}'}")
