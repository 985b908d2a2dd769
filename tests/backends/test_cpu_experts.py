"""The operation moe on the cpu backend: its numpy meaning, and the same bits whatever the batch, threads or isa."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from bestiary.backend import Batch
from bestiary.graph import Graph, Trace
from bestiary.quantizer import Quantizer
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.numpy import NumpyBackend

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
ISAS = kernels.isas()
QUANTIZERS = {quantizer.name: quantizer for quantizer in bestiary_quantizers()}
each_isa = pytest.mark.parametrize("isa", ISAS)
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def mixtral(experts: int = 5, top_k: int = 2, normalise: bool = True) -> Graph:
    g = Trace()
    x = g.embed("token_embd", 199, 96)
    for i in g.layers(2):
        h = g.rms_norm(x, f"{i}.attn_norm", 1e-5)
        q, k, v = (g.linear(h, f"{i}.{part}", 96) for part in "qkv")
        x = g.add(x, g.attention(q, k, v, 6, 6))
        x = g.add(x, g.moe(g.rms_norm(x, f"{i}.ffn_norm", 1e-5), f"{i}.router", f"{i}.gate", f"{i}.up", f"{i}.down",
                           experts=experts, width=160, top_k=top_k, normalise=normalise))
    x = g.rms_norm(x, "output_norm", 1e-5)
    return g.finish(g.linear(x, "output", 199), x)


@each_isa
@pytest.mark.parametrize(("experts", "top_k", "normalise"), [(5, 2, True), (5, 2, False), (3, 3, True), (8, 1, False)])
def test_experts_of_f32_agree_with_the_reference(lab: Lab, isa: str, experts: int, top_k: int, normalise: bool) -> None:
    graph = mixtral(experts, top_k, normalise)
    tensors, ids = lab.weights(graph, QUANTIZERS["f32"]), lab.ids(50)
    limits = lab.limits(cache_type_k="f32", cache_type_v="f32")
    expected, got = (lab.prefill(backend.compile(graph, tensors, limits), ids)
                     for backend in (NumpyBackend(), CpuBackend(isa)))
    assert np.abs(got - expected).max() <= 5e-6 * np.ptp(expected)


@each_quantizer
def test_one_by_one_in_pieces_beside_others_and_on_more_threads_the_bits_are_the_same(
        lab: Lab, quantizer: Quantizer) -> None:
    graph = mixtral()
    tensors, ids = lab.weights(graph, quantizer), lab.ids(43)
    plan = CpuBackend(ISAS[-1]).compile(graph, tensors, lab.limits())
    whole = lab.prefill(plan, ids)
    assert np.isfinite(whole).all()
    for sizes in ([1], [7, 1, 20, 2, 5]):
        np.testing.assert_array_equal(lab.in_pieces(plan, ids, sizes), whole)
    both = np.concatenate([ids, lab.ids(9, seed=3)])
    sequences = np.repeat(np.asarray([0, 1], np.int32), [43, 9])
    positions = np.concatenate([np.arange(43), np.arange(9)]).astype(np.int32)
    got = plan.forward(Batch(both, positions[None], sequences, np.arange(43, dtype=np.int32)), plan.new_cache())
    np.testing.assert_array_equal(got, whole)
    np.testing.assert_array_equal(plan.forward(lab.batch(ids, wanted=[40, 3]), plan.new_cache()), whole[[40, 3]])
    assert plan.forward(lab.batch(ids, wanted=[]), plan.new_cache()).shape == (0, 199)
    for threads in (2, 3):
        more = CpuBackend(ISAS[-1]).compile(graph, tensors, lab.limits(threads=threads))
        np.testing.assert_array_equal(lab.prefill(more, ids), whole)
        np.testing.assert_array_equal(lab.in_pieces(more, ids, [1]), whole)


@each_quantizer
@pytest.mark.parametrize("isa", ISAS[1:])
def test_every_isa_gives_the_bits_of_scalar_through_experts(lab: Lab, quantizer: Quantizer, isa: str) -> None:
    graph = mixtral()
    tensors, ids = lab.weights(graph, quantizer), lab.ids(41)
    expected, got = (lab.prefill(CpuBackend(name).compile(graph, tensors, lab.limits()), ids)
                     for name in ("scalar", isa))
    np.testing.assert_array_equal(got, expected)


def test_a_token_whose_experts_cannot_be_told_has_no_numbers_and_the_others_theirs(lab: Lab) -> None:
    g = Trace()
    x = g.embed("rows", 7, 64)
    y = g.moe(x, "router", "gate", "up", "down", experts=4, width=96, top_k=2)
    graph = g.finish(y, y)
    tensors = lab.weights(graph, QUANTIZERS["q8_0"])
    rows = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    from bestiary.tensor import ArrayTensor

    results = []
    for broken in (False, True):
        if broken:
            rows[2, 5], rows[4, 1] = np.nan, np.inf
        plan = CpuBackend().compile(graph, dict(tensors) | {"rows": ArrayTensor(rows.copy())}, lab.limits())
        results.append(lab.prefill(plan, np.arange(7, dtype=np.int32)))
    assert np.isnan(results[1][[2, 4]]).all()
    np.testing.assert_array_equal(np.delete(results[1], [2, 4], 0), np.delete(results[0], [2, 4], 0))


def test_stacked_experts_are_packed_once_and_shared(lab: Lab) -> None:
    graph = mixtral()
    tensors = lab.weights(graph, QUANTIZERS["q4_0"])
    plan = CpuBackend().compile(graph, tensors, lab.limits())
    again = CpuBackend().compile(graph, tensors, lab.limits(), share=plan)
    assert all(again.weights.stacks[name] is stack for name, stack in plan.weights.stacks.items())
    assert sum(matrix.nbytes for matrix in plan.weights.stacks["0.gate"]) == tensors["0.gate"].nbytes
    np.testing.assert_array_equal(lab.prefill(again, lab.ids(9)), lab.prefill(plan, lab.ids(9)))
