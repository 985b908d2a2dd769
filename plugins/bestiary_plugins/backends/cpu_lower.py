"""From a graph to the kernels' steps: which slots hold what, what is fused, what runs for wanted tokens only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.graph import OPERATIONS, Graph, Node
from bestiary.named_function import operation
from bestiary_kernels import Program
from bestiary_plugins.backends.cpu_pack import Weights

Key = tuple[int, bool]
"""A value: the node, and whether it is of the wanted tokens only."""


@dataclass(frozen=True)
class Call:
    """A plugin's own operation: numpy in, numpy out."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[int, ...]  # slots
    widths: tuple[int, ...]
    out: int
    width: int
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Emission:
    """A step or a few, before they have slots."""

    reads: tuple[Key, ...]
    writes: tuple[Key, ...]
    emit: Callable[[Callable[[Key], int]], Call | None]


@dataclass
class Lowered:
    """parts: (first step, last step + 1) ranges and calls, in order. end: result -> (part to stop before, slot)."""

    parts: list[tuple[int, int] | Call] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    ends: dict[str, tuple[int, int]] = field(default_factory=dict)


def refuse(graph: Graph) -> None:
    """Raises BestiaryError for what the backend cannot run, before anything is read."""
    for node in graph.nodes:
        if node.op not in OPERATIONS:
            raise BestiaryError(f"unknown operation {node.op!r}; known: {', '.join(OPERATIONS)}")
    masks = {node.params["mask"] for node in graph.nodes if node.op == "attention"}
    if len(masks) > 1 or masks - {"causal", "prefix"}:
        raise BestiaryError(f"masks {', '.join(sorted(masks))} in one graph; possible: causal or prefix")


def tails(graph: Graph) -> list[bool]:
    """Of each node, whether its rows are needed of the wanted tokens only. All operations work row by row, but for
    attention: it needs the keys and values of all tokens, and the queries of those whose results are needed."""
    everywhere = [node.op in ("input", "embed") for node in graph.nodes]
    for i in reversed(range(len(graph.nodes))):
        node = graph.nodes[i]
        for j in node.inputs if everywhere[i] else node.inputs[1:] if node.op == "attention" else ():
            everywhere[j] = True
    return [not all_rows for all_rows in everywhere]


def lower(graph: Graph, weights: Weights, program: Program, cache_types: tuple[str, str]) -> Lowered:
    """Adds the graph's steps to the program."""
    return _Lowering(graph, weights, program, cache_types).run()


class _Lowering:
    def __init__(self, graph: Graph, weights: Weights, program: Program, cache_types: tuple[str, str]) -> None:
        self.graph, self.weights, self.program, self.cache_types = graph, weights, program, cache_types
        self.nodes = graph.nodes
        self.tails = tails(graph)
        self.uses = Counter(i for node in self.nodes for i in node.inputs)
        self.uses.update((graph.output, graph.hidden))
        self.emissions: list[Emission] = []
        self.done: set[Key] = set()
        self.tables: dict[tuple[Any, ...], int] = {}
        self.input_keys: list[Key] = []
        self.spare: dict[tuple[str, int, bool], int] = {}

    def run(self) -> Lowered:
        for i, node in enumerate(self.nodes):
            key = (i, self.tails[i])
            if key in self.done or self._fused(i):
                continue
            getattr(self, "_" + node.op)(key, node)
            self.done.add(key)
        for result in (self.graph.hidden, self.graph.output):
            self._value(result, True)
        return self._allocate()

    def _fused(self, i: int) -> bool:
        """A silu whose only use is a product that takes it in."""
        return self.nodes[i].op == "silu" and any(
            self._gate(self.nodes[j]) == i for j in range(i + 1, len(self.nodes)) if i in self.nodes[j].inputs)

    def _gate(self, node: Node) -> int | None:
        if node.op != "mul":
            return None
        i = node.inputs[0]
        return i if self.nodes[i].op == "silu" and self.uses[i] == 1 else None

    def _value(self, i: int, tail: bool) -> Key:
        """The value as the tail or the rest needs it; rows of wanted tokens are gathered once."""
        if not tail or self.tails[i]:
            return i, self.tails[i]
        if (i, True) not in self.done:
            self._emit([(i, False)], [(i, True)], lambda slot: self.program.gather(slot((i, False)), slot((i, True))))
            self.done.add((i, True))
        return i, True

    def _emit(self, reads: list[Key], writes: list[Key], emit: Callable[[Callable[[Key], int]], Call | None]) -> None:
        self.emissions.append(Emission(tuple(reads), tuple(writes), emit))

    # ---------------------------------------------------------------- operations

    def _input(self, key: Key, node: Node) -> None:
        self.input_keys.append(key)
        self._emit([], [key], lambda slot: None)

    def _embed(self, key: Key, node: Node) -> None:
        name, by_position = node.weights["weight"], node.params["index"] == "position"
        if name in self.weights.matrices:
            self._emit([], [key], lambda slot: self.program.embed_matrix(slot(key), self.weights.matrices[name],
                                                                        by_position))
        else:
            table = self.weights.tables[name]
            self._emit([], [key], lambda slot: self.program.embed_rows(slot(key), table.layout, table.rows,
                                                                       by_position))

    def _linear(self, key: Key, node: Node) -> None:
        """All products with the same input are one step: q, k and v, or gate and up."""
        tail = key[1]
        source = self._value(node.inputs[0], tail)
        members = [i for i, other in enumerate(self.nodes) if other.op == "linear" and self.tails[i] == tail
                   and other.inputs == node.inputs]
        parts = [(self.weights.matrices[self.nodes[i].weights["weight"]], self._array(self.nodes[i], "bias"), (i, tail))
                 for i in members]
        self._emit([source], [part[2] for part in parts], lambda slot: self.program.linear(
            slot(source), [(matrix, bias, slot(out)) for matrix, bias, out in parts], tail))
        self.done.update((i, tail) for i in members)

    def _moe(self, key: Key, node: Node) -> None:
        """The router's product, then the experts, whose slots all layers share."""
        tail, weights, width = key[1], node.weights, node.width
        source = self._value(node.inputs[0], tail)
        router = self.weights.matrices[weights["router"]]
        experts = list(zip(*(self.weights.stacks[weights[part]] for part in ("gate", "up", "down")), strict=True))
        sizes = {"logits": node.params["experts"], "input": width, "gate": node.params["hidden"],
                 "up": node.params["hidden"], "down": width}

        def emit(slot: Callable[[Key], int]) -> None:
            for part, size in sizes.items():
                if (part, size, tail) not in self.spare:
                    self.spare[part, size, tail] = self.program.slot(size, tail)
            logits, *rest = (self.spare[part, size, tail] for part, size in sizes.items())
            self.program.linear(slot(source), [(router, None, logits)], tail)
            self.program.experts(slot(source), logits, slot(key), experts, (rest[0], rest[1], rest[2], rest[3]),
                                 node.params["top_k"], node.params["normalise"], tail)

        self._emit([source], [key], emit)

    def _array(self, node: Node, part: str) -> NDArray[np.float32] | None:
        return self.weights.arrays[node.weights[part]].reshape(-1) if part in node.weights else None

    def _norm(self, key: Key, node: Node) -> None:
        x = self._value(node.inputs[0], key[1])
        self._emit([x], [key], lambda slot: self.program.norm(
            node.op, slot(x), slot(key), self._array(node, "weight"), self._array(node, "bias"), node.params["eps"],
            node.params["group"], key[1]))

    _rms_norm = _layer_norm = _norm

    def _rope(self, key: Key, node: Node) -> None:
        p = node.params
        x, halves = self._value(node.inputs[0], key[1]), p["pairing"] == "halves"
        if p["pairing"] not in ("halves", "adjacent"):
            raise BestiaryError(f"unknown rope pairing {p['pairing']!r}; known: adjacent, halves")
        which = (p["base"], p["count"], p["scaling"], node.weights.get("factors"), p["numbers"], p["magnitude"],
                 p["stream"], halves)
        if which not in self.tables:
            self.tables[which] = table = len(self.tables)
            turns = p["scaling"] * p["base"] ** (-2.0 * np.arange(p["count"] // 2) / p["count"])
            factors = p["numbers"] or self._array(node, "factors")
            if factors is not None:
                turns = turns / np.asarray(factors, np.float64)
            frequencies = [float(turn) for turn in turns]
            self._emit([], [], lambda slot: self.program.rope_table(table, frequencies, halves, p["magnitude"],
                                                                   p["stream"]))
        table = self.tables[which]
        self._emit([x], [key], lambda slot: self.program.rope(slot(x), slot(key), table, p["head_dim"], p["start"],
                                                              key[1]))

    def _attention(self, key: Key, node: Node) -> None:
        p = node.params
        q, k, v = self._value(node.inputs[0], key[1]), (node.inputs[1], False), (node.inputs[2], False)

        def emit(slot: Callable[[Key], int]) -> None:
            self.program.attention(slot(q), slot(k), slot(v), slot(key), p["heads"], p["kv_heads"], p["scale"],
                                   p["soft_cap"], p["window"], p["slopes"], *self.cache_types, key[1])

        self._emit([q, k, v], [key], emit)

    def _each(self, key: Key, kind: str, inputs: tuple[int, ...], number: float = 0.0) -> None:
        a, b = self._value(inputs[0], key[1]), self._value(inputs[-1], key[1])
        self._emit([a, b], [key], lambda slot: self.program.each(kind, slot(a), slot(b), slot(key), number, key[1]))

    def _silu(self, key: Key, node: Node) -> None:
        self._each(key, "silu", node.inputs)

    def _gelu(self, key: Key, node: Node) -> None:
        if node.params["form"] not in ("erf", "tanh"):
            raise BestiaryError(f"unknown form of gelu {node.params['form']!r}; known: erf, tanh")
        self._each(key, "gelu_" + node.params["form"], node.inputs)

    def _add(self, key: Key, node: Node) -> None:
        self._each(key, "add", node.inputs)

    def _mul(self, key: Key, node: Node) -> None:
        gate = self._gate(node)
        if gate is None:
            self._each(key, "mul", node.inputs)
        else:
            self._each(key, "silu_mul", (self.nodes[gate].inputs[0], node.inputs[1]))

    def _scale(self, key: Key, node: Node) -> None:
        self._each(key, "scale", node.inputs, node.params["factor"])

    def _soft_cap(self, key: Key, node: Node) -> None:
        self._each(key, "soft_cap", node.inputs, node.params["cap"])

    def _slice(self, key: Key, node: Node) -> None:
        x = self._value(node.inputs[0], key[1])
        self._emit([x], [key], lambda slot: self.program.slice(slot(x), slot(key), node.params["start"], key[1]))

    def _order(self, key: Key, node: Node) -> None:
        x, columns = self._value(node.inputs[0], key[1]), np.asarray(node.params["columns"], np.int32)
        self._emit([x], [key], lambda slot: self.program.order(slot(x), slot(key), columns, key[1]))

    def _call(self, key: Key, node: Node) -> None:
        params = dict(node.params)
        name = params.pop("function")
        function = operation(name)
        keywords = params | {part: self.weights.arrays[weight] for part, weight in node.weights.items()}
        inputs = [self._value(i, key[1]) for i in node.inputs]
        widths = tuple(self.nodes[i].width for i in node.inputs)
        self._emit(inputs, [key], lambda slot: Call(name, function, tuple(slot(i) for i in inputs), widths, slot(key),
                                                 node.width, keywords))

    # ---------------------------------------------------------------- slots

    def _allocate(self) -> Lowered:
        """Emits the steps; a slot is used again once nothing reads it any more."""
        results = {"hidden": (self.graph.hidden, True), "logits": (self.graph.output, True)}
        last_use: dict[Key, int] = {}
        written: dict[Key, int] = {}
        for at, emission in enumerate(self.emissions):
            for value in (*emission.reads, *emission.writes):
                last_use[value] = at
            for value in emission.writes:
                written[value] = at
        for value in (*results.values(), *self.input_keys):
            last_use[value] = len(self.emissions)
        slots: dict[Key, int] = {}
        free: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
        lowered, begin = Lowered(), self.program.steps

        def slot(value: Key) -> int:
            if value not in slots:
                kind = (self.nodes[value[0]].width, value[1])
                slots[value] = free[kind].pop() if free[kind] else self.program.slot(*kind)
            return slots[value]

        def finish_range() -> None:
            nonlocal begin
            if self.program.steps > begin:
                lowered.parts.append((begin, self.program.steps))
            begin = self.program.steps

        for at, emission in enumerate(self.emissions):
            for value in emission.writes:
                slot(value)
            call = emission.emit(slot)
            if call is not None:
                finish_range()
                lowered.parts.append(call)
            for name, value in results.items():
                if written[value] == at:
                    finish_range()
                    lowered.ends[name] = (len(lowered.parts), slots[value])
            for value in {*emission.reads, *emission.writes}:
                if last_use[value] == at:
                    free[self.nodes[value[0]].width, value[1]].append(slots.pop(value))
        lowered.inputs = [slots[key] for key in self.input_keys]
        self.emissions.clear()  # they know this object: the weights would stay until somebody collects garbage
        return lowered
