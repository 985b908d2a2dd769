"""The numpy backend: every operation against a formula written out number by number."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.errors import BestiaryError
from bestiary.graph import OPERATIONS, Trace, Value
from bestiary.tensor import ArrayTensor
from bestiary_plugins.backends.numpy import NumpyBackend

Floats = NDArray[np.float32]
RANDOM = np.random.default_rng(11)
TOKENS = 9


def normal(*shape: int) -> Floats:
    return RANDOM.standard_normal(shape).astype(np.float32)


def run(build: Callable[..., Value], inputs: Sequence[Floats], weights: Mapping[str, Floats] | None = None, *,
        positions: NDArray[np.int32] | None = None, prefixes: Mapping[int, int] | None = None,
        steps: tuple[int, ...] = (TOKENS,), sequences: NDArray[np.int32] | None = None) -> Floats:
    """The result of `build(trace, *inputs)`; row t of each input is what token t brings. steps: tokens a forward."""
    g = Trace()
    tensors = {f"input{i}": ArrayTensor(value) for i, value in enumerate(inputs)}
    tensors.update({name: ArrayTensor(value) for name, value in (weights or {}).items()})
    for _ in g.layers(1):
        values = [g.embed(f"input{i}", *value.shape) for i, value in enumerate(inputs)]
        result = build(g, *values)
    plan = NumpyBackend().compile(g.finish(result, result), tensors, Limits(64, 4, 64, cache_type_k="f32",
                                                                           cache_type_v="f32"))
    cache, rows, start = plan.new_cache(), [], 0
    positions = np.arange(TOKENS, dtype=np.int32)[None] if positions is None else positions
    sequences = np.zeros(TOKENS, np.int32) if sequences is None else sequences
    for step in steps:
        part = slice(start, start + step)
        rows.append(plan.forward(Batch(np.arange(start, start + step, dtype=np.int32), positions[:, part],
                                       sequences[part], np.arange(step, dtype=np.int32), prefixes=prefixes), cache))
        start += step
    result_rows = np.concatenate(rows)
    assert result_rows.dtype == np.float32
    return result_rows


def close(ours: Floats, wanted: Any) -> None:
    np.testing.assert_allclose(ours, np.asarray(wanted, np.float64), rtol=2e-5, atol=2e-5)


def test_embed_takes_the_row_of_the_token_or_of_its_position() -> None:
    x, table = normal(TOKENS, 4), normal(20, 4)
    places = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]], np.int32)
    close(run(lambda g, x: x, [x]), x)
    close(run(lambda g, x: g.embed("table", 20, 4, index="position"), [x], {"table": table}, positions=places),
          [table[i] for i in places[0]])


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool) -> None:
    x, w, b = normal(TOKENS, 5), normal(7, 5), normal(7)
    wanted = [[sum(float(w[o, i]) * float(x[t, i]) for i in range(5)) + (float(b[o]) if bias else 0.0)
               for o in range(7)] for t in range(TOKENS)]
    close(run(lambda g, x: g.linear(x, "w", 7, bias="b" if bias else None), [x], {"w": w, "b": b}), wanted)


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("weight", [False, True])
def test_rms_norm(group: int, weight: bool) -> None:
    x, size = normal(TOKENS, 12), group or 12
    w, eps = normal(size), 0.01
    wanted = np.zeros((TOKENS, 12))
    for t in range(TOKENS):
        for start in range(0, 12, size):
            part = [float(value) for value in x[t, start:start + size]]
            root = math.sqrt(sum(value * value for value in part) / size + eps)
            wanted[t, start:start + size] = [value / root * (float(w[i]) if weight else 1)
                                             for i, value in enumerate(part)]
    close(run(lambda g, x: g.rms_norm(x, "w" if weight else None, eps, group), [x], {"w": w}), wanted)


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (True, True)])
def test_layer_norm(group: int, weight: bool, bias: bool) -> None:
    x, size = normal(TOKENS, 12) + 3, group or 12
    w, b, eps = normal(size), normal(size), 0.01
    wanted = np.zeros((TOKENS, 12))
    for t in range(TOKENS):
        for start in range(0, 12, size):
            part = [float(value) for value in x[t, start:start + size]]
            mean = sum(part) / size
            root = math.sqrt(sum((value - mean) ** 2 for value in part) / size + eps)
            wanted[t, start:start + size] = [
                (value - mean) / root * (float(w[i]) if weight else 1) + (float(b[i]) if bias else 0)
                for i, value in enumerate(part)]
    close(run(lambda g, x: g.layer_norm(x, "w" if weight else None, "b" if bias else None, eps, group), [x],
              {"w": w, "b": b}), wanted)


ROPES: dict[str, dict[str, Any]] = {
    "adjacent": {},
    "halves": {"pairing": "halves"},
    "partial, adjacent": {"count": 4},
    "partial, halves": {"count": 4, "pairing": "halves"},
    "in the middle": {"start": 2, "count": 6, "pairing": "halves"},
    "from the middle to the end": {"start": 4},
    "factors": {"factors": "factors"},
    "factors, partial": {"factors": "factors", "start": 4, "pairing": "halves"},
    "factors as numbers": {"factors": (1.5, 2.0, 4.0, 7.0)},
    "scaled": {"scaling": 0.25},
    "magnitude": {"magnitude": 1.2, "pairing": "halves"},
    "second stream": {"stream": 1},
}


@pytest.mark.parametrize("name", ROPES)
def test_rope(name: str) -> None:
    options = ROPES[name]
    head_dim, heads, base = 8, 3, 100.0
    x = normal(TOKENS, heads * head_dim)
    positions = np.stack([np.arange(TOKENS), 3 * np.arange(TOKENS)[::-1]]).astype(np.int32)
    start, scaling = options.get("start", 0), options.get("scaling", 1.0)
    count = options.get("count", head_dim - start)
    given = options.get("factors")
    factors = np.array(given if isinstance(given, tuple) else RANDOM.uniform(1, 8, count // 2), np.float32)
    magnitude = options.get("magnitude", 1.0)
    wanted = x.astype(np.float64)
    for t in range(TOKENS):
        position = int(positions[options.get("stream", 0), t])
        for head in range(heads):
            for j in range(count // 2):
                factor = float(factors[j]) if "factors" in options else 1.0
                turn = np.exp(1j * position * scaling * base ** (-2 * j / count) / factor)
                first, second = (2 * j, 2 * j + 1) if options.get("pairing") != "halves" else (j, j + count // 2)
                first, second = (head * head_dim + start + i for i in (first, second))
                turned = complex(x[t, first], x[t, second]) * turn * magnitude
                wanted[t, first], wanted[t, second] = turned.real, turned.imag
    ours = run(lambda g, x: g.rope(x, head_dim, base, **options), [x], {"factors": factors}, positions=positions)
    close(ours, wanted)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "values of another width": {"value_dim": 3},
    "another scale": {"scale": 0.2},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "window wider than the text": {"window": 50},
    "slopes": {"slopes": (0.5, 0.25, 0.125, 0.0625)},
    "soft cap": {"soft_cap": 0.7},
    "prefix": {"mask": "prefix", "prefix": 4},
    "prefix of everything": {"mask": "prefix", "prefix": TOKENS},
    "prefix mask without a prefix": {"mask": "prefix", "prefix": 0},
    "everything at once": {"kv_heads": 2, "window": 4, "slopes": (1.0, 0.5, 0.25, 0.125), "soft_cap": 1.5,
                           "scale": 0.9},
}


def attended(q: Floats, k: Floats, v: Floats, options: Mapping[str, Any]) -> Floats:
    """Attention of one sequence, one number after the other."""
    heads, kv_heads, dim = 4, options.get("kv_heads", 4), 6
    value_dim = v.shape[1] // kv_heads
    scale, cap = options.get("scale", dim ** -0.5), options.get("soft_cap", 0.0)
    out = np.zeros((len(q), heads * value_dim))
    for t in range(len(q)):
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = {}
            for past in range(len(q)):
                prefix = options.get("prefix", 0)
                both_ways = options.get("mask") == "prefix" and t < prefix and past < prefix
                in_window = not options.get("window") or t - past < options["window"]
                if not both_ways and (past > t or not in_window):
                    continue
                score = scale * sum(float(q[t, head * dim + i]) * float(k[past, group * dim + i]) for i in range(dim))
                if cap:
                    score = cap * math.tanh(score / cap)
                if "slopes" in options:
                    score += options["slopes"][head] * (past - t)
                scores[past] = score
            total = sum(math.exp(score) for score in scores.values())
            for past, score in scores.items():
                out[t, head * value_dim:(head + 1) * value_dim] += math.exp(score) / total * v[
                    past, group * value_dim:(group + 1) * value_dim]
    return out.astype(np.float32)


def attention(options: Mapping[str, Any]) -> Callable[..., Value]:
    given = {key: value for key, value in options.items() if key not in ("kv_heads", "value_dim", "prefix")}
    return lambda g, q, k, v: g.attention(q, k, v, 4, options.get("kv_heads", 4), **given)


def queries_keys_values(options: Mapping[str, Any]) -> tuple[Floats, Floats, Floats]:
    kv_heads = options.get("kv_heads", 4)
    return normal(TOKENS, 24), normal(TOKENS, kv_heads * 6), normal(TOKENS, kv_heads * options.get("value_dim", 6))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    options = ATTENTIONS[name]
    inputs = queries_keys_values(options)
    prefixes = {0: options["prefix"]} if "prefix" in options else None
    wanted = attended(*inputs, options)
    close(run(attention(options), inputs, prefixes=prefixes), wanted)
    if not prefixes:  # a prefix takes one forward
        for steps in ((1,) * TOKENS, (4, 1, 4), (1, 8)):
            close(run(attention(options), inputs, steps=steps), wanted)


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if "prefix" not in ATTENTIONS[name]])
def test_attention_keeps_sequences_apart(name: str) -> None:
    options = ATTENTIONS[name]
    inputs = queries_keys_values(options)
    sequences = np.array([2, 0, 2, 2, 0, 3, 0, 2, 3], np.int32)
    wanted = np.zeros((TOKENS, inputs[2].shape[1] // options.get("kv_heads", 4) * 4), np.float32)
    for sequence in (0, 2, 3):
        own = sequences == sequence
        wanted[own] = attended(inputs[0][own], inputs[1][own], inputs[2][own], options)
    for steps in ((TOKENS,), (4, 5), (1,) * TOKENS):
        close(run(attention(options), inputs, sequences=sequences, steps=steps), wanted)


def test_a_prefix_goes_on_causally_after_its_forward() -> None:
    options: dict[str, Any] = {"mask": "prefix", "prefix": 4, "kv_heads": 2}
    inputs = queries_keys_values(options)
    for steps in ((4, 5), (6, 1, 2), (4, 1, 1, 1, 1, 1)):
        close(run(attention(options), inputs, prefixes={0: 4}, steps=steps), attended(*inputs, options))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_mixture_of_experts(normalise: bool, top_k: int) -> None:
    experts, width, hidden = 4, 6, 5
    x, router = normal(TOKENS, width), normal(experts, width)
    gate, up, down = normal(experts, hidden, width), normal(experts, hidden, width), normal(experts, width, hidden)
    wanted = np.zeros((TOKENS, width))
    for t in range(TOKENS):
        scores = [math.exp(sum(float(router[e, i]) * float(x[t, i]) for i in range(width))) for e in range(experts)]
        chances = [score / sum(scores) for score in scores]
        best = sorted(range(experts), key=lambda e: -chances[e])[:top_k]
        total = sum(chances[e] for e in best) if normalise else 1.0
        for e in best:
            inner = [sigmoid(value) * value * other
                     for value, other in zip((gate[e] @ x[t]).tolist(), (up[e] @ x[t]).tolist(), strict=True)]
            wanted[t] += chances[e] / total * (down[e].astype(np.float64) @ inner)
    close(run(lambda g, x: g.moe(x, "router", "gate", "up", "down", experts=experts, width=hidden, top_k=top_k,
                                 normalise=normalise), [x],
              {"router": router, "gate": gate, "up": up, "down": down}), wanted)


POINTWISE: dict[str, tuple[Callable[[Trace, Value], Value], Callable[[float], float]]] = {
    "silu": (lambda g, x: g.silu(x), lambda x: x * sigmoid(x)),
    "gelu": (lambda g, x: g.gelu(x), lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
    "gelu tanh": (lambda g, x: g.gelu(x, form="tanh"),
                  lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))),
    "scale": (lambda g, x: g.scale(x, -2.5), lambda x: -2.5 * x),
    "soft_cap": (lambda g, x: g.soft_cap(x, 3.0), lambda x: 3 * math.tanh(x / 3)),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_operations_number_by_number(name: str) -> None:
    build, formula = POINTWISE[name]
    x = np.linspace(-9, 9, TOKENS * 10, dtype=np.float32).reshape(TOKENS, 10)
    close(run(build, [x]), [[formula(float(value)) for value in row] for row in x])


def test_silu_of_very_negative_numbers_is_zero_without_a_warning() -> None:
    x = np.full((TOKENS, 2), -1000.0, np.float32)
    close(run(lambda g, x: g.silu(x), [x]), np.zeros((TOKENS, 2)))


def test_order_takes_column_i_from_columns_i() -> None:
    a = normal(TOKENS, 5)
    close(run(lambda g, a: g.order(a, (3, 0, 4, 2, 1)), [a]), [[row[i] for i in (3, 0, 4, 2, 1)] for row in a])


def test_add_mul_and_slice() -> None:
    a, b = normal(TOKENS, 6), normal(TOKENS, 6)
    close(run(lambda g, a, b: g.add(a, b), [a, b]), a + b)
    close(run(lambda g, a, b: g.mul(a, b), [a, b]), a * b)
    close(run(lambda g, a: g.slice(a, 2, 5), [a]), a[:, 2:5])


def body(x: Floats, y: Floats, *, table: Floats, power: int) -> Floats:
    """A plugin's operation."""
    return np.concatenate([x ** power, y * table], axis=1)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("operation_of_a_plugin")
    module.body = body  # type: ignore[attr-defined]
    module.narrow = lambda x: x[:, :1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_a_plugins_own_operation_gets_its_inputs_weights_and_parameters(plugin: str) -> None:
    x, y, table = normal(TOKENS, 3), normal(TOKENS, 2), normal(2)
    close(run(lambda g, x, y: g.call(f"{plugin}:body", x, y, weights={"table": ("own.weight", (2,))}, width=5, power=3),
              [x, y], {"own.weight": table}), np.concatenate([x ** 3, y * table], axis=1))


def test_a_plugins_operation_of_another_width_than_declared_is_an_error(plugin: str) -> None:
    with pytest.raises(BestiaryError, match=r"narrow returned shape \(9, 1\), not \(9, 3\)"):
        run(lambda g, x: g.call(f"{plugin}:narrow", x, width=3), [normal(TOKENS, 3)])


def test_every_operation_of_the_closed_set_has_its_numpy_meaning() -> None:
    from bestiary_plugins.backends.numpy import Forward

    assert [name for name in OPERATIONS if not callable(getattr(Forward, name, None))] == []
    traced = {name for name in vars(Trace) if not name.startswith("_")} - {"layers", "finish", "keep"}
    assert traced | {"input"} == set(OPERATIONS)
