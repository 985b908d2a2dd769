"""The numpy backend's cache and its limits: what is refused leaves everything as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace
from bestiary.tensor import ArrayTensor, Tensor
from bestiary_plugins.backends.numpy import NumpyBackend, NumpyPlan

VOCABULARY, WIDTH = 17, 8


def graph() -> Graph:
    g = Trace()
    x = g.embed("embed", VOCABULARY, WIDTH)
    for i in g.layers(2):
        q, k, v = (g.linear(x, f"{i}.{name}", WIDTH) for name in "qkv")
        x = g.add(x, g.attention(g.rope(q, 4, 100.0), g.rope(k, 4, 100.0), v, 2, 2))
    return g.finish(g.linear(x, "embed", VOCABULARY), hidden=x)


def weights() -> dict[str, Tensor]:
    random = np.random.default_rng(5)
    return {name: ArrayTensor(random.standard_normal(shape).astype(np.float32))
            for name, shape in graph().weights.items()}


def plan(**limits: Any) -> NumpyPlan:
    given = {"context": 12, "sequences": 3, "batch": 10, "cache_type_k": "f32", "cache_type_v": "f32", **limits}
    return NumpyBackend().compile(graph(), weights(), Limits(**given))


def batch(ids: list[int], start: int = 0, sequence: int = 0) -> Batch:
    count = len(ids)
    return Batch(np.array(ids, np.int32), np.arange(start, start + count, dtype=np.int32)[None],
                 np.full(count, sequence, np.int32), np.arange(count, dtype=np.int32))


IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_truncating_and_going_on_equals_never_having_been_further() -> None:
    made = plan()
    wanted = made.forward(batch(IDS), made.new_cache())
    cache = made.new_cache()
    made.forward(batch([*IDS[:5], 7, 7]), cache)
    cache.truncate(0, 5)
    assert cache.length(0) == 5
    np.testing.assert_allclose(made.forward(batch(IDS[5:], 5), cache), wanted[5:], rtol=1e-5, atol=1e-5)


def test_a_copy_of_a_prefix_goes_on_by_itself() -> None:
    made = plan()
    wanted = made.forward(batch(IDS), made.new_cache())
    cache = made.new_cache()
    made.forward(batch(IDS[:6]), cache)
    made.forward(batch([8, 8, 8], sequence=2), cache)
    cache.copy(0, 2, 4)
    assert [cache.length(sequence) for sequence in range(3)] == [6, 0, 4]
    made.forward(batch([0], 6), cache)  # the source goes its own way
    np.testing.assert_allclose(made.forward(batch(IDS[4:], 4, 2), cache), wanted[4:], rtol=1e-5, atol=1e-5)


def test_copying_from_an_empty_sequence_empties_the_target() -> None:
    made = plan()
    cache = made.new_cache()
    made.forward(batch(IDS[4:], sequence=1), cache)
    cache.copy(0, 1, 0)
    assert cache.length(1) == 0
    assert cache.nbytes == 0
    wanted = made.forward(batch(IDS[:3]), made.new_cache())
    np.testing.assert_allclose(made.forward(batch(IDS[:3], sequence=1), cache), wanted, rtol=1e-5, atol=1e-5)


def test_a_sequence_never_holds_more_than_was_put_there() -> None:
    made = plan()
    cache = made.new_cache()
    made.forward(batch(IDS[:4]), cache)
    for length in (5, -1):
        with pytest.raises(BestiaryError, match="sequence 0 holds 4 tokens"):
            cache.truncate(0, length)


REFUSED: Mapping[str, tuple[Batch, str]] = {
    "a token too large": (batch([1, VOCABULARY], 4), f"token id {VOCABULARY}; the vocabulary has {VOCABULARY}"),
    "a token below zero": (batch([-1, 2], 4), "token id -1; the vocabulary has"),
    "a full context": (batch([1] * 9, 4), "the context of 12 tokens is full"),
    "a batch too large": (batch([1] * 11, 4), "a batch of 11 tokens; the limit is 10"),
    "a sequence too many": (batch([1], 0, 3), "sequence 3; the cache has 3"),
    "a sequence below zero": (batch([1], 0, -1), "sequence -1; the cache has 3"),
    "no tokens": (Batch(None, np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)),
                  "begins with token ids"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_the_cache_as_it_was(name: str) -> None:
    made = plan()
    wanted = made.forward(batch(IDS), made.new_cache())
    cache = made.new_cache()
    made.forward(batch(IDS[:4]), cache)
    bad, words = REFUSED[name]
    with pytest.raises(BestiaryError, match=words):
        made.forward(bad, cache)
    assert [cache.length(sequence) for sequence in range(3)] == [4, 0, 0]
    np.testing.assert_allclose(made.forward(batch(IDS[4:], 4), cache), wanted[4:], rtol=1e-5, atol=1e-5)


def test_only_what_is_wanted_comes_back() -> None:
    made = plan()
    every = made.forward(batch(IDS), made.new_cache())
    ids, positions, sequences = batch(IDS).tokens, batch(IDS).positions, batch(IDS).sequences
    for wanted in ([], [7], [2, 0, 5]):
        some = made.forward(Batch(ids, positions, sequences, np.array(wanted, np.int32)), made.new_cache())
        assert some.shape == (len(wanted), VOCABULARY)
        np.testing.assert_array_equal(some, every[wanted])


def test_hidden_states_are_what_the_output_matrix_is_applied_to() -> None:
    made = plan()
    hidden = made.forward(batch(IDS), made.new_cache(), "hidden")
    assert hidden.shape == (len(IDS), WIDTH)
    embed: NDArray[np.float32] = weights()["embed"].array()
    np.testing.assert_allclose(hidden @ embed.T, made.forward(batch(IDS), made.new_cache()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["q8_0", "f16", "f32"])
def test_a_cache_of_fewer_bits_takes_less_memory_and_changes_little(kind: str) -> None:
    made = plan(cache_type_k=kind, cache_type_v=kind)
    cache = made.new_cache()
    logits = made.forward(batch(IDS), cache)
    # Heads of 4 columns: of q8_0, 4 bytes and their scale.
    assert cache.nbytes == 2 * 2 * WIDTH * len(IDS) * {"q8_0": 1.5, "f16": 2, "f32": 4}[kind]
    exact = plan().forward(batch(IDS), plan().new_cache())
    bound = {"q8_0": 0.6, "f16": 0.05, "f32": 0.0}[kind]  # of logits that spread over 45
    np.testing.assert_allclose(logits, exact, atol=bound)


def test_cache_types_are_known_ones() -> None:
    with pytest.raises(BestiaryError, match="unknown cache type 'q3'"):
        plan(cache_type_k="q3")


def test_a_plan_shares_the_weights_of_another() -> None:
    first = plan()
    second = NumpyBackend().compile(graph(), weights(), first.limits, share=first)
    assert all(second.weights[name] is first.weights[name] for name in first.weights)


def test_loading_reports_its_progress_in_bytes() -> None:
    calls: list[tuple[int, int]] = []
    NumpyBackend().compile(graph(), weights(), plan().limits,
                           progress=lambda done, total, what: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in weights().values())
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
