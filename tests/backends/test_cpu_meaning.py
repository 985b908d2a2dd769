"""The cpu backend agrees with the meaning of every operation, as the numpy backend and plain formulas have it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch
from bestiary.graph import Graph, Trace
from bestiary.quantizer import Quantizer
from bestiary.tensor import ArrayTensor
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.numpy import NumpyBackend

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
ISAS = kernels.isas()
QUANTIZERS = {quantizer.name: quantizer for quantizer in bestiary_quantizers()}
each_isa = pytest.mark.parametrize("isa", ISAS)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "one key head": {"heads": 7, "kv_heads": 1, "head_dim": 20},
    "alibi": {"attention": {"slopes": (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)}},
    "window": {"attention": {"window": 9}},
    "cap and scale": {"attention": {"soft_cap": 3.0, "scale": 0.4}},
    "halves": {"rope": {"pairing": "halves"}},
    "part of the head": {"rope": {"start": 2, "count": 10, "scaling": 0.5, "magnitude": 1.2}},
    "factors": {"rope": {"factors": "factors"}},
    "factors as numbers": {"rope": {"factors": [1.0, 1.5, 1.2, 2.0, 4.0, 5.0, 8.0, 8.0], "magnitude": 1.1}},
}


@each_isa
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_f32_weights_agree_with_the_reference(lab: Lab, isa: str, variant: dict[str, Any]) -> None:
    graph = lab.llama(**variant)
    tensors = lab.weights(graph, QUANTIZERS["f32"])
    limits = lab.limits(cache_type_k="f32", cache_type_v="f32")
    ids = lab.ids(50)
    expected, got = (lab.prefill(backend.compile(graph, tensors, limits), ids)
                     for backend in (NumpyBackend(), CpuBackend(isa)))
    assert np.abs(got - expected).max() <= 5e-6 * np.ptp(expected)


@each_isa
@pytest.mark.parametrize("types", [("q8_0", "q8_0"), ("q8_0", "f32"), ("f32", "q8_0"), ("f16", "q8_0")], ids="-".join)
@pytest.mark.parametrize("variant", [
    {}, {"head_dim": 64}, {"heads": 7, "kv_heads": 1, "head_dim": 20}, {"head_dim": 40, "attention": {"window": 9}},
    {"attention": {"slopes": (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)}}, {"attention": {"soft_cap": 3.0, "scale": 0.4}},
    {"attention": {"mask": "prefix"}}], ids=str)
def test_a_cache_of_bytes_is_the_reference_s(lab: Lab, isa: str, types: tuple[str, str],
                                             variant: dict[str, Any]) -> None:
    """The same blocks, but where what is rounded differs in its last bits. And near what an f32 cache gives."""
    graph = lab.llama(**({"layers": 1} | variant))
    tensors, ids = lab.weights(graph, QUANTIZERS["f32"]), lab.ids(90)
    exact = lab.limits(cache_type_k="f32", cache_type_v="f32")
    limits = lab.limits(cache_type_k=types[0], cache_type_v=types[1])
    prefixes = {0: 70} if variant.get("attention", {}).get("mask") else None
    wanted, reference, got = (
        plan.forward(lab.batch(ids, prefixes=prefixes), plan.new_cache()) for plan in (
            NumpyBackend().compile(graph, tensors, exact), NumpyBackend().compile(graph, tensors, limits),
            CpuBackend(isa).compile(graph, tensors, limits)))
    spread = np.ptp(wanted)
    assert np.abs(got - reference).max() <= 1e-3 * spread
    assert 1e-5 * spread < np.sqrt(np.mean((got - wanted) ** 2)) <= 4e-3 * spread


@each_isa
def test_keys_and_values_of_a_cache_of_bytes_are_the_quantizer_s_to_the_bit(lab: Lab, isa: str) -> None:
    """One token attends to itself: its value comes back as q8_0 holds it."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((30, 3 * 70)).astype(np.float32) * np.float32(10) ** random.integers(-9, 4, (30, 1))
    rows[3], rows[4, :50] = 0, 0

    def attention(g: Any, x: Any) -> Any:
        return g.attention(g.slice(x, 0, 70), g.slice(x, 70, 140), g.slice(x, 140, 210), 1, 1)

    def layer(g: Any, x: Any) -> Any:
        for _ in g.layers(1):
            y = attention(g, x)
        return y

    graph, tensors = lab.function(layer, rows)
    limits = lab.limits(cache_type_k="q8_0", cache_type_v="q8_0")
    plan = CpuBackend(isa).compile(graph, tensors, limits)
    got = np.concatenate([plan.forward(lab.batch([i]), plan.new_cache()) for i in range(30)])
    values = np.pad(rows[:, 140:], ((0, 0), (0, 26)))
    encoding = QUANTIZERS["q8_0"].encoding
    np.testing.assert_array_equal(got, encoding.decode(QUANTIZERS["q8_0"].quantize(values), 96)[:, :70])


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_every_encoding_agrees_with_the_reference(lab: Lab, quantizer: Quantizer) -> None:
    """Quantized weights meet activations of 8 bits, in tiny rows: 3 % of the spread (test_products.py has the exact
    formula); others nothing but rounding."""
    graph = lab.llama(bias=False)
    tensors, ids = lab.weights(graph, quantizer), lab.ids(50)
    expected, got = (lab.prefill(backend.compile(graph, tensors, lab.limits()), ids)
                     for backend in (NumpyBackend(), CpuBackend()))
    bound = 0.03 if quantizer.encoding.quantized else 1e-3  # the f16 cache rounds values that differ in the last bit
    assert np.abs(got - expected).max() <= bound * np.ptp(expected)


def other_operations() -> Graph:
    g = Trace()
    x = g.add(g.embed("token", 50, 36), g.embed("position", 64, 36, index="position"))
    for i in g.layers(1):
        h = g.layer_norm(x, "norm", "norm_bias", 1e-5)
        qkv = g.linear(h, "qkv", 84, bias="qkv_bias")
        q, k, v = g.slice(qkv, 0, 36), g.slice(qkv, 36, 60), g.slice(qkv, 60, 84)
        q = g.rms_norm(q, "q_norm", 1e-6, group=12)
        k = g.layer_norm(k, None, None, 1e-6, group=12)
        q = g.rope(g.rope(q, 12, 100.0, count=4, stream=1), 12, 50.0, start=4, count=8, stream=0, pairing="halves")
        a = g.attention(q, g.slice(k, 0, 12), g.slice(v, 4, 24), 3, 1)  # keys of 12, values of 20
        a = g.linear(a, f"{i}.o", 36)
        x = g.scale(g.add(x, a), 0.5)
        x = g.add(x, g.linear(g.gelu(g.linear(h, "up", 70), "tanh"), "down", 36))
        x = g.add(x, g.linear(g.gelu(g.linear(h, "up2", 70), "erf"), "down2", 36))
        x = g.mul(x, g.silu(x))
    x = g.call("tests_cpu_plugin:twice", x, weights={"w": ("w", (36,))}, width=36, plus=1.5)
    y = g.soft_cap(g.linear(g.layer_norm(x, None, None, 1e-5), "output", 50), 2.0)
    return g.finish(y, x)


def twice(x: NDArray[np.float32], w: NDArray[np.float32], plus: float) -> NDArray[np.float32]:
    return 2 * x * w + np.float32(plus)


@each_isa
def test_the_operations_that_llama_lacks_agree_too(lab: Lab, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("tests_cpu_plugin")
    module.twice = twice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_cpu_plugin", module)
    graph = other_operations()
    tensors = lab.weights(graph, QUANTIZERS["f32"])
    limits = lab.limits(cache_type_k="f32", cache_type_v="f32", threads=2)
    n = 47
    positions = np.stack([np.arange(n), np.arange(n)[::-1]]).astype(np.int32)
    batch = Batch(lab.ids(n, 50), positions, np.zeros(n, np.int32), np.array([3, 46, 20], np.int32))
    for output in ("logits", "hidden"):
        results = []
        for backend in (NumpyBackend(), CpuBackend(isa)):
            plan = backend.compile(graph, tensors, limits)
            results.append(plan.forward(batch, plan.new_cache(), output))
        assert np.abs(results[1] - results[0]).max() <= 1e-5 * np.ptp(results[0])


@each_isa
def test_a_prefix_sees_itself_in_both_directions(lab: Lab, isa: str) -> None:
    graph = lab.llama(attention={"mask": "prefix"})
    tensors = lab.weights(graph, QUANTIZERS["f32"])
    limits = lab.limits(cache_type_k="f32", cache_type_v="f32")
    results = []
    for backend in (NumpyBackend(), CpuBackend(isa)):
        plan = backend.compile(graph, tensors, limits)
        cache = plan.new_cache()
        first = plan.forward(lab.batch(lab.ids(45), prefixes={0: 31}), cache)
        results.append(np.concatenate([first, plan.forward(lab.batch([9], 45, prefixes={0: 31}), cache)]))
    assert np.abs(results[1] - results[0]).max() <= 5e-6 * np.ptp(results[0])


def two_streams(prefix: bool) -> Graph:
    """Keys and values of different widths, and each half of a head turned by a position stream of its own."""
    g = Trace()
    x = g.add(g.embed("token", 50, 64), g.embed("position", 64, 64, index="position"))
    for i in g.layers(2):
        h = g.rms_norm(x, f"{i}.norm", 1e-5)
        q, k, v = (g.linear(h, f"{i}.{name}", width, bias=f"{i}.{name}_bias")
                   for name, width in (("q", 4 * 24), ("k", 2 * 24), ("v", 2 * 16)))
        q, k = (g.rope(g.rope(part, 24, 100.0, count=12, pairing="halves"), 24, 100.0, start=12, count=12,
                       pairing="halves", stream=1) for part in (q, k))
        a = g.attention(q, k, v, 4, 2, mask="prefix" if prefix else "causal")
        x = g.add(x, g.linear(a, f"{i}.o", 64))
    return g.finish(g.linear(x, "output", 50), x, prefix_mask=prefix)


@each_isa
@pytest.mark.parametrize("name", ["f32", "q4_0"])
@pytest.mark.parametrize("prefix", [False, True], ids=["causal", "prefix"])
def test_two_position_streams_and_prefixes_beside_one_another(lab: Lab, isa: str, name: str, prefix: bool) -> None:
    """Three sequences in one batch: as the reference has it, and to the bit as each has it alone."""
    graph = two_streams(prefix)
    tensors = lab.weights(graph, QUANTIZERS[name])
    limits = lab.limits(cache_type_k="f32", cache_type_v="f32", threads=2)
    lengths, prefixes = (21, 40, 9), {0: 20, 1: 33} if prefix else {}
    ids = [lab.ids(n, 50, seed=n) for n in lengths]
    streams = [np.stack([np.minimum(np.arange(n), n - 4), np.maximum(np.arange(n) - n + 4, 0)]) for n in lengths]
    results = []
    for backend in (NumpyBackend(), CpuBackend(isa)):
        plan = backend.compile(graph, tensors, limits)
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(3), lengths)).astype(np.int32)
        places = np.stack([order == s for s in range(3)]).cumsum(axis=1)[order, np.arange(len(order))] - 1
        batch = Batch(np.array([ids[s][i] for s, i in zip(order, places, strict=True)], np.int32),
                      np.stack([streams[s][:, i] for s, i in zip(order, places, strict=True)], 1).astype(np.int32),
                      order, np.arange(len(order), dtype=np.int32), prefixes=prefixes)
        results.append(plan.forward(batch, plan.new_cache()))
    expected, got = results
    assert np.abs(got - expected).max() <= (5e-6 if name == "f32" else 0.03) * np.ptp(expected)
    for s in range(3):
        alone = Batch(ids[s], streams[s].astype(np.int32), np.zeros(lengths[s], np.int32),
                      np.arange(lengths[s], dtype=np.int32), prefixes={0: prefixes[s]} if s in prefixes else {})
        np.testing.assert_array_equal(got[order == s], plan.forward(alone, plan.new_cache()))


FUNCTIONS: dict[str, tuple[Any, Any, float]] = {
    "silu": (lambda g, x: g.silu(x), lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0, 3e-7),
    "gelu erf": (lambda g, x: g.gelu(x), lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)), 2e-7),
    "gelu tanh": (lambda g, x: g.gelu(x, "tanh"),
                  lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), 2e-7),
    "soft cap": (lambda g, x: g.soft_cap(x, 30.0), lambda x: 30 * math.tanh(x / 30), 3e-7),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_exact_to_a_few_units_of_the_last_place(lab: Lab, function: tuple[Any, Any, float]) -> None:
    apply, formula, bound = function
    values = np.concatenate([np.linspace(-12, 12, 2000), np.geomspace(1e-6, 80, 400), -np.geomspace(1e-6, 80, 401)])
    rows = np.resize(values, (70, 40)).astype(np.float32)
    expected = np.vectorize(formula)(rows.astype(np.float64))
    graph, tensors = lab.function(apply, rows)
    for isa in ISAS:
        plan = CpuBackend(isa).compile(graph, tensors, lab.limits())
        got = lab.prefill(plan, np.arange(70, dtype=np.int32))
        error = np.abs(got - expected) / np.abs(rows)  # of what x is multiplied with
        assert error.max() <= bound, (isa, error.max(), rows.flat[error.argmax()])


def test_bias_and_embedding_of_every_plain_encoding_are_exact(lab: Lab) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 37)).astype(np.float16).astype(np.float32)
    for isa in ISAS:
        graph, tensors = lab.function(lambda g, x: g.scale(x, 1.0), rows)
        plan = CpuBackend(isa).compile(graph, tensors | {"rows": ArrayTensor(rows.astype(np.float16))}, lab.limits())
        np.testing.assert_array_equal(lab.prefill(plan, np.arange(20, dtype=np.int32)), rows)
