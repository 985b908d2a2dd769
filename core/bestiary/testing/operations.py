"""Every operation of the graph by itself, in small graphs that backends are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bestiary.graph import Graph, Trace, Value

Floats = NDArray[np.float32]
VOCABULARY, WIDTH, HEADS, KEY_HEADS = 37, 48, 4, 2
HEAD = WIDTH // HEADS
Operation = Callable[[Trace, Value], Value]


def softened(x: Floats, shift: Floats, power: float = 1.0) -> Floats:
    """An operation of a plugin's own: x / (1 + |x + shift|) ** power."""
    return np.asarray(x / (1 + np.abs(x + shift)) ** power, np.float32)


class Refusal(RuntimeError):
    """What `failing` raises."""


def failing(x: Floats) -> Floats:
    """An operation that fails for rows which begin with a number above 0."""
    if (x[:, 0] > 0).any():
        raise Refusal("a row begins with a number above 0")
    return x


def attention(**params: object) -> Operation:
    def apply(g: Trace, x: Value) -> Value:
        q = g.linear(x, "q.weight", WIDTH)
        k, v = (g.linear(x, f"{part}.weight", KEY_HEADS * HEAD) for part in "kv")
        return g.attention(q, k, v, HEADS, KEY_HEADS, **params)  # type: ignore[arg-type]

    return apply


def rope(**params: object) -> Operation:
    return lambda g, x: g.rope(x, HEAD, 100.0, **params)  # type: ignore[arg-type]


ROW_WISE: Mapping[str, Operation] = {
    "linear": lambda g, x: g.linear(x, "w.weight", 29),
    "linear with a bias": lambda g, x: g.linear(x, "w.weight", 29, bias="w.bias"),
    "rms_norm": lambda g, x: g.rms_norm(x, "n.weight", 1e-5),
    "rms_norm of groups": lambda g, x: g.rms_norm(x, "n.weight", 1e-5, group=HEAD),
    "rms_norm without a weight": lambda g, x: g.rms_norm(x, None, 1e-5),
    "layer_norm": lambda g, x: g.layer_norm(x, "n.weight", "n.bias", 1e-5),
    "layer_norm of groups": lambda g, x: g.layer_norm(x, "n.weight", None, 1e-5, group=HEAD),
    "rope": rope(),
    "rope of halves": rope(pairing="halves"),
    "rope of a part": rope(start=2, count=6, magnitude=1.2, scaling=0.5),
    "rope with factors": rope(factors="f.weight"),
    "moe": lambda g, x: g.moe(x, "r.weight", "g.weight", "u.weight", "d.weight", experts=5, width=16, top_k=2),
    "silu": lambda g, x: g.silu(x),
    "gelu": lambda g, x: g.gelu(x),
    "gelu by tanh": lambda g, x: g.gelu(x, "tanh"),
    "add": lambda g, x: g.add(x, g.silu(x)),
    "mul": lambda g, x: g.mul(x, g.silu(x)),
    "scale": lambda g, x: g.scale(x, -1.75),
    "slice": lambda g, x: g.slice(x, 5, 22),
    "order": lambda g, x: g.order(x, [*range(1, WIDTH, 2), *range(0, WIDTH, 2)]),
    "soft_cap": lambda g, x: g.soft_cap(x, 1.5),
    "embed by position": lambda g, x: g.add(x, g.embed("p.weight", 64, WIDTH, index="position")),
    "call": lambda g, x: g.call(f"{__name__}:softened", x, weights={"shift": ("s.weight", (WIDTH,))}, width=WIDTH,
                                power=0.5),
}
WITH_CACHE: Mapping[str, Operation] = {
    "attention": attention(),
    "attention with another scale": attention(scale=0.7),
    "attention with ALiBi": attention(slopes=(0.5, 0.25, 0.125, 0.0625)),
    "attention with a window": attention(window=5),
    "attention with a soft cap": attention(soft_cap=2.0),
    "attention with a prefix": attention(mask="prefix"),
}


def graphs() -> Iterator[tuple[str, Graph]]:
    """Each operation between an embedding and an output matrix, in a layer."""
    for name, operation in {**ROW_WISE, **WITH_CACHE}.items():
        yield name, graph_of(operation, prefix="prefix" in name)


def products(columns: int) -> Graph:
    """Matrices of that many columns and little else, for encodings whose blocks are wide."""
    g = Trace()
    x = g.embed("token_embd.weight", VOCABULARY, columns)
    for _ in g.layers(1):
        h = g.silu(g.linear(g.rms_norm(x, "norm.weight", 1e-5), "up.weight", columns))
        x = g.add(x, g.linear(h, "down.weight", columns))
    return g.finish(g.linear(x, "output.weight", 61), x)


def graph_of(operation: Operation, prefix: bool = False) -> Graph:
    g = Trace()
    x = g.embed("token_embd.weight", VOCABULARY, WIDTH)
    for _ in g.layers(1):
        x = operation(g, x)
    return g.finish(g.linear(x, "output.weight", 23), x, prefix_mask=prefix)
