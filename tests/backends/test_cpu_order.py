"""Products whose weights hold their columns in another order, by the compiled kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from bestiary.backend import Batch, Limits
from bestiary.graph import Graph, Trace
from bestiary.past import compiled, needed
from bestiary.quantizer import Quantizer
from bestiary.tensor import Tensor
from bestiary.testing.tiny import shuffled
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CpuBackend, CpuPlan
from bestiary_plugins.backends.numpy import NumpyBackend

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
ISAS = kernels.isas()
QUANTIZERS = {quantizer.name: quantizer for quantizer in bestiary_quantizers()}
each_quantizer = pytest.mark.parametrize("quantizer", [QUANTIZERS[name] for name in ("q4_0", "q4_1", "q8_0", "f16")],
                                         ids=lambda quantizer: str(quantizer.name))


def mixed(lab: Lab, graph: Graph, quantizer: Quantizer) -> dict[str, Tensor]:
    """An order for each width, and keys and every second layer's gate in others."""
    plain = lab.weights(graph, quantizer)
    tensors = shuffled(plain)
    for seed, name in enumerate(name for name in plain if name.endswith(".k") or name == "1.gate"):
        tensors[name] = shuffled({name: plain[name]}, seed + 5)[name]
    return tensors


@pytest.mark.parametrize("isa", ISAS)
def test_columns_are_moved_exactly(lab: Lab, isa: str) -> None:
    random = np.random.default_rng(0)
    for width in (1, 2, 15, 16, 17, 70, 1000):
        rows, columns = random.standard_normal((40, width)).astype(np.float32), random.permutation(width)
        rows[3, 0], rows[4, -1] = np.nan, -np.inf
        graph, tensors = lab.function(lambda g, x, columns=columns: g.order(g.order(x, columns.tolist()),
                                                                            columns.tolist()), rows)
        plan = CpuBackend(isa).compile(graph, tensors, lab.limits(threads=3))
        for ids in (np.arange(40, dtype=np.int32), np.array([7], np.int32)):
            np.testing.assert_array_equal(lab.prefill(plan, ids), rows[ids][:, columns][:, columns])


@each_quantizer
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_reference(lab: Lab, quantizer: Quantizer, tied: bool) -> None:
    graph = lab.llama(tied=tied)
    tensors, ids = mixed(lab, graph, quantizer), lab.ids(50)
    plan = compiled(CpuBackend(), graph, tensors, lab.limits())
    assert [node.op for node in plan.graph.nodes].count("order") == 2 * 5 + 1 + (not tied)
    expected = lab.prefill(NumpyBackend().compile(graph, tensors, lab.limits()), ids)
    bound = 0.03 if quantizer.encoding.quantized else 1e-3
    assert np.abs(lab.prefill(plan, ids) - expected).max() <= bound * np.ptp(expected)


@each_quantizer
def test_isas_threads_and_pieces_do_not_change_a_bit(lab: Lab, quantizer: Quantizer) -> None:
    graph = lab.llama()
    tensors, ids = mixed(lab, graph, quantizer), lab.ids(43)
    whole = lab.prefill(compiled(CpuBackend("scalar"), graph, tensors, lab.limits()), ids)
    assert np.isfinite(whole).all()
    for isa in ISAS:
        for threads in (1, 3):
            plan = compiled(CpuBackend(isa), graph, tensors, lab.limits(threads=threads))
            for sizes in ([43], [1], [7, 1, 30, 2]):
                np.testing.assert_array_equal(lab.in_pieces(plan, ids, sizes), whole)


def test_only_the_wanted_tokens_are_computed_and_they_are_the_same(lab: Lab) -> None:
    graph = lab.llama()
    plan = compiled(CpuBackend(), graph, mixed(lab, graph, QUANTIZERS["q4_0"]), lab.limits(threads=2))
    ids = lab.ids(45)
    for output in ("logits", "hidden"):
        whole = plan.forward(lab.batch(ids), plan.new_cache(), output)
        for wanted in ([44], [3, 1, 40], []):
            got = plan.forward(lab.batch(ids, wanted=wanted), plan.new_cache(), output)
            np.testing.assert_array_equal(got, whole[wanted])


def test_the_memory_of_a_plan_is_that_of_the_weights_in_their_bits(lab: Lab) -> None:
    graph = lab.llama(bias=False)
    plain = lab.weights(graph, QUANTIZERS["q4_0"])
    plan = compiled(CpuBackend(), graph, shuffled(plain), Limits(64, threads=1))
    wanted = CpuBackend().compile(graph, plain, Limits(64, threads=1))
    assert isinstance(plan, CpuPlan)
    assert {name: matrix.nbytes for name, matrix in plan.weights.matrices.items()} == {
        name: matrix.nbytes for name, matrix in wanted.weights.matrices.items()}
    needs = needed(CpuBackend(), graph, shuffled(plain), Limits(64))
    assert needs is not None and needs.weights == pytest.approx(plan.weights.nbytes, rel=0.001)


def test_a_gate_and_its_up_projection_may_be_ordered_before_a_product_in_order(lab: Lab) -> None:
    """silu * up, the order, the rounding of activations: steps of one row, also of the wanted tokens alone."""
    g = Trace()
    x = g.embed("e", 50, 64)
    y = g.mul(g.silu(g.linear(x, "gate", 96)), g.linear(x, "up", 96))
    y = g.linear(y, "down", 40)
    graph = g.finish(y, y)
    tensors = shuffled(lab.weights(graph, QUANTIZERS["q8_0"]))
    plan = compiled(CpuBackend(), graph, tensors, lab.limits(threads=2))
    ids = lab.ids(33, 50)
    batch = Batch(ids, np.arange(33, dtype=np.int32)[None], np.zeros(33, np.int32), np.array([5, 32], np.int32))
    expected = lab.prefill(NumpyBackend().compile(graph, tensors, lab.limits()), ids)
    found = plan.forward(batch, plan.new_cache())
    assert np.abs(found - expected[[5, 32]]).max() <= 0.03 * np.ptp(expected)
    np.testing.assert_array_equal(found, lab.prefill(plan, ids)[[5, 32]])
