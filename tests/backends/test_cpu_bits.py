"""The cpu backend gives the same bits whatever the threads, the batch, the split of the prompt or the isa."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from bestiary.backend import Batch
from bestiary.quantizer import Quantizer
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CACHE_TYPES, CpuBackend
from bestiary_plugins.encodings import K_QUANTS, OF_SPRING_2023
from tests.blocks import Drawn

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
ISAS = kernels.isas()
QUANTIZERS = list(bestiary_quantizers())
DRAWN = [cast(Quantizer, Drawn(encoding)) for encoding in (*OF_SPRING_2023, *K_QUANTS)]
FAST = ISAS[-1]

each_quantizer = pytest.mark.parametrize("quantizer", [*QUANTIZERS, *DRAWN], ids=lambda quantizer: str(quantizer.name))
each_isa = pytest.mark.parametrize("isa", ISAS)
each_cache = pytest.mark.parametrize("types", list(itertools.product(CACHE_TYPES, CACHE_TYPES)), ids="-".join)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "many heads a key": {"heads": 7, "kv_heads": 1, "head_dim": 20},
    "alibi, window, cap": {"attention": {"slopes": (0.5, 0.25, 0.1, 0.05, 0.02, 0.01), "window": 19, "soft_cap": 5.0}},
    "halves, part of the head": {"rope": {"pairing": "halves", "start": 2, "count": 10, "magnitude": 1.2}},
}


def widths(quantizer: Quantizer, **given: Any) -> dict[str, Any]:
    """Sizes of which the quantizer's blocks are no larger parts than those of most are."""
    return given if quantizer.encoding.block_size <= 32 else given | {"hidden": 256, "ffn": 768}


@each_quantizer
@each_isa
def test_decode_one_by_one_equals_prefill(lab: Lab, quantizer: Quantizer, isa: str) -> None:
    graph = lab.llama(**widths(quantizer))
    plan = CpuBackend(isa).compile(graph, lab.weights(graph, quantizer), lab.limits())
    ids = lab.ids(43)
    np.testing.assert_array_equal(lab.in_pieces(plan, ids, [1]), lab.prefill(plan, ids))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@each_cache
def test_a_prompt_in_odd_pieces_gives_the_same_bits(lab: Lab, variant: dict[str, Any], types: tuple[str, str]) -> None:
    graph = lab.llama(**variant)
    limits = lab.limits(cache_type_k=types[0], cache_type_v=types[1])
    plan = CpuBackend(FAST).compile(graph, lab.weights(graph, QUANTIZERS[-1]), limits)
    ids = lab.ids(71)
    whole = lab.prefill(plan, ids)
    assert np.isfinite(whole).all()
    for sizes in ([1], [7, 1, 30, 2, 5], [64, 3, 4], [2, 69]):
        np.testing.assert_array_equal(lab.in_pieces(plan, ids, sizes), whole)


@each_quantizer
def test_the_number_of_threads_does_not_change_a_bit(lab: Lab, quantizer: Quantizer) -> None:
    graph = lab.llama(vocabulary=4001, heads=10, layers=1, **widths(quantizer, hidden=160, ffn=1504))
    tensors, ids = lab.weights(graph, quantizer), lab.ids(41, 4001)
    results = []
    for threads in (1, 2, 3, 5):
        plan = CpuBackend(FAST).compile(graph, tensors, lab.limits(threads=threads))
        cache = plan.new_cache()
        first = plan.forward(lab.batch(ids), cache)
        results.append(np.concatenate([first, *(plan.forward(lab.batch([5 + i], 41 + i), cache) for i in range(20))]))
        plan.close()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("type_", CACHE_TYPES)
def test_attention_over_several_segments_does_not_depend_on_threads_or_pieces(lab: Lab, type_: str) -> None:
    graph = lab.llama(hidden=64, ffn=96, heads=4, kv_heads=2, layers=1)
    tensors, ids = lab.weights(graph, QUANTIZERS[0]), lab.ids(700)
    whole = None
    for threads in (1, 2, 5):
        plan = CpuBackend(FAST).compile(graph, tensors, lab.limits(threads=threads, cache_type_k=type_,
                                                                   cache_type_v=type_))
        for sizes in ([700], [255, 2, 300, 1], [690, 1]):
            got = lab.in_pieces(plan, ids, sizes)
            whole = got if whole is None else whole
            np.testing.assert_array_equal(got, whole)


@each_quantizer
def test_a_sequence_alone_or_beside_three_others_gives_the_same_bits(lab: Lab, quantizer: Quantizer) -> None:
    graph = lab.llama(**widths(quantizer))
    plan = CpuBackend(FAST).compile(graph, lab.weights(graph, quantizer), lab.limits(threads=2))
    prompts = [lab.ids(n, seed=n) for n in (40, 3, 57, 18)]
    alone = [lab.prefill(plan, prompt) for prompt in prompts]
    sequences = np.concatenate([np.full(len(p), s, np.int32) for s, p in enumerate(prompts)])
    mixed = sequences[np.random.default_rng(4).permutation(len(sequences))]
    seen = [0] * 4
    ids, positions = [], []
    for s in mixed:
        ids.append(prompts[s][seen[s]])
        positions.append(seen[s])
        seen[s] += 1
    cache = plan.new_cache()
    half = len(mixed) // 2
    got = []
    for part in (slice(0, half), slice(half, None)):
        n = len(mixed[part])
        got.append(plan.forward(Batch(np.asarray(ids[part], np.int32), np.asarray([positions[part]], np.int32),
                                      mixed[part], np.arange(n, dtype=np.int32)), cache))
    rows = np.concatenate(got)
    for s, expected in enumerate(alone):
        np.testing.assert_array_equal(rows[mixed == s], expected)


@each_quantizer
@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_isa_gives_the_bits_of_scalar(lab: Lab, quantizer: Quantizer, isa: str, variant: dict[str, Any]) -> None:
    """Not only in quantized products: all kernels are one source over sixteen lanes, and round alike."""
    graph = lab.llama(**widths(quantizer, **({"layers": 1} | variant)))
    tensors, ids = lab.weights(graph, quantizer), lab.ids(41)
    expected, got = (lab.prefill(CpuBackend(name).compile(graph, tensors, lab.limits()), ids)
                     for name in ("scalar", isa))
    assert np.isfinite(expected).all() and expected.std() > 0.01
    np.testing.assert_array_equal(got, expected)


@each_cache
@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("heads", [(1, 1, 70), (5, 5, 16), (12, 2, 40)], ids=str)
def test_every_isa_attends_alike_whatever_holds_the_keys_and_values(
        lab: Lab, types: tuple[str, str], isa: str, heads: tuple[int, int, int]) -> None:
    """Heads of 70, 16 and 40 columns: 32 divides none of them. Groups of 1 and 6 heads, over more than a segment."""
    count, kv_heads, head_dim = heads
    graph = lab.llama(layers=1, heads=count, kv_heads=kv_heads, head_dim=head_dim, attention={"window": 130})
    tensors, ids = lab.weights(graph, QUANTIZERS[0]), lab.ids(300)
    limits = lab.limits(cache_type_k=types[0], cache_type_v=types[1])
    expected = lab.prefill(CpuBackend("scalar").compile(graph, tensors, limits), ids)
    plan = CpuBackend(isa).compile(graph, tensors, limits)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(lab.in_pieces(plan, ids, [290, 1]), expected)


@each_cache
def test_a_cache_that_was_copied_and_truncated_goes_on_with_the_same_bits(lab: Lab, types: tuple[str, str]) -> None:
    graph = lab.llama(layers=1, head_dim=40)
    limits = lab.limits(cache_type_k=types[0], cache_type_v=types[1])
    plan = CpuBackend(FAST).compile(graph, lab.weights(graph, QUANTIZERS[0]), limits)
    ids = lab.ids(300)
    whole, cache = lab.prefill(plan, ids), plan.new_cache()
    plan.forward(lab.batch(ids[:290]), cache)
    plan.forward(lab.batch(ids[::-1], sequence=1), cache)
    cache.copy(0, 1, 270)
    cache.truncate(0, 100)
    np.testing.assert_array_equal(plan.forward(lab.batch(ids[270:], 270, sequence=1), cache), whole[270:])
    np.testing.assert_array_equal(plan.forward(lab.batch(ids[100:], 100), cache), whole[100:])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("output", ["logits", "hidden"])
def test_only_the_wanted_tokens_are_computed_and_they_are_the_same(lab: Lab, variant: dict[str, Any],
                                                                   output: str) -> None:
    graph = lab.llama(**variant)
    plan = CpuBackend(FAST).compile(graph, lab.weights(graph, QUANTIZERS[-1]), lab.limits(threads=2))
    ids = lab.ids(45)
    whole = plan.forward(lab.batch(ids), plan.new_cache(), output)
    for wanted in ([44], [3, 1, 40], [], [7] * 2):
        got = plan.forward(lab.batch(ids, wanted=wanted), plan.new_cache(), output)
        np.testing.assert_array_equal(got, whole[wanted])


def test_wanted_tokens_of_several_sequences_in_any_order_are_the_same(lab: Lab) -> None:
    graph = lab.llama()
    plan = CpuBackend(FAST).compile(graph, lab.weights(graph, QUANTIZERS[-1]), lab.limits(threads=2))
    ids, sequences = lab.ids(300), np.arange(300, dtype=np.int32) * 7 % 3
    positions = np.array([[np.sum(sequences[:i] == s) for i, s in enumerate(sequences)]], np.int32)
    whole = plan.forward(Batch(ids, positions, sequences, np.arange(300, dtype=np.int32)), plan.new_cache())
    for wanted in ([299, 298, 297], [5, 200, 5, 0, 299], [1]):
        cache = plan.new_cache()
        first = plan.forward(Batch(ids[:200], positions[:, :200], sequences[:200], np.empty(0, np.int32)), cache)
        assert first.shape == (0, graph.vocabulary)
        rest = [i - 200 for i in wanted if i >= 200]
        got = plan.forward(Batch(ids[200:], positions[:, 200:], sequences[200:], np.array(rest, np.int32)), cache)
        np.testing.assert_array_equal(got, whole[[i + 200 for i in rest]])
        got = plan.forward(Batch(ids, positions, sequences, np.array(wanted, np.int32)), plan.new_cache())
        np.testing.assert_array_equal(got, whole[wanted])


def test_behind_the_last_keys_and_values_only_the_wanted_tokens_have_rows(lab: Lab) -> None:
    from bestiary_plugins.backends.cpu_lower import tails

    graph = lab.llama(layers=2)
    full = [node.op for node, tail in zip(graph.nodes, tails(graph), strict=True) if not tail]
    assert full.count("attention") == 1  # the first layer's
    assert full.count("linear") == 7 + 2  # the first layer's, and the second's k and v
    assert full.count("rope") == 2 + 1


def test_a_graph_that_was_cut_gives_the_same_bits(lab: Lab) -> None:
    graph = lab.llama(layers=3)
    tensors = lab.weights(graph, QUANTIZERS[-1])
    ids = lab.ids(41)
    backend = CpuBackend(FAST)
    expected = lab.prefill(backend.compile(graph, tensors, lab.limits()), ids)
    first, second = (backend.compile(part, tensors, lab.limits()) for part in graph.cut(1))
    hidden = first.forward(lab.batch(ids), first.new_cache(), "hidden")
    batch = lab.batch(ids, hidden=hidden)
    got = second.forward(Batch(None, batch.positions, batch.sequences, batch.wanted, hidden), second.new_cache())
    np.testing.assert_array_equal(got, expected)


def test_packed_weights_are_shared_and_the_hidden_state_is_what_the_output_matrix_sees(lab: Lab) -> None:
    graph = lab.llama()
    tensors = lab.weights(graph, QUANTIZERS[0])
    plan = CpuBackend(FAST).compile(graph, tensors, lab.limits())
    again = CpuBackend(FAST).compile(graph, {name: tensors[name] for name in graph.weights}, lab.limits(), share=plan)
    assert all(again.weights.matrices[name] is matrix for name, matrix in plan.weights.matrices.items())
    ids = lab.ids(40)
    np.testing.assert_array_equal(lab.prefill(again, ids), lab.prefill(plan, ids))
    hidden = plan.forward(lab.batch(ids), plan.new_cache(), "hidden")
    np.testing.assert_allclose(hidden @ tensors["output"].array().T, lab.prefill(plan, ids), atol=2e-5)
