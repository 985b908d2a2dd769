"""Both backends refuse the same batches in the same words, and leave the cache as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bestiary.backend import Backend, Batch
from bestiary.errors import BestiaryError
from bestiary.graph import Trace
from bestiary.tensor import ArrayTensor
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.numpy import NumpyBackend

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

F32 = next(quantizer for quantizer in bestiary_quantizers() if quantizer.name == "f32")
BACKENDS = [NumpyBackend(), CpuBackend()]
LONG = 2**32 + 1  # as int32, 1

BAD: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a long id that would wrap": ({"tokens": np.array([1, LONG, 2])}, f"token id {LONG}; the vocabulary has 199"),
    "an unsigned id that would wrap": ({"tokens": np.array([1, LONG, 2], np.uint64)}, f"token id {LONG};"),
    "an id too many": ({"tokens": np.array([1, 199, 2])}, "token id 199; the vocabulary has 199"),
    "an id below zero": ({"tokens": np.array([1, -1, 2])}, "token id -1; the vocabulary has 199"),
    "ids that are fractions": ({"tokens": np.ones(3)}, "tokens is an array of float64 with 1 axes"),
    "ids that are truths": ({"tokens": np.ones(3, bool)}, "tokens is an array of bool"),
    "ids in rows": ({"tokens": np.ones((1, 3), np.int32)}, "with 2 axes; needed: integers, 1"),
    "an id too few": ({"tokens": np.ones(2, np.int32)}, "2 token ids for 3 tokens"),
    "no ids": ({"tokens": None}, "begins with token ids"),
    "positions in one row": ({"positions": np.arange(3)}, "positions is an array of int64 with 1 axes"),
    "positions too few": ({"positions": np.zeros((1, 2), np.int32)}, "positions of 1 x 2; needed: 1 x 3"),
    "no stream": ({"positions": np.zeros((0, 3), np.int32)}, "positions of 0 x 3; needed: 1 x 3"),
    "a position that would wrap": ({"positions": np.full((1, 3), LONG)}, f"positions has {LONG}"),
    "fractions of positions": ({"positions": np.zeros((1, 3))}, "positions is an array of float64"),
    "a sequence too many": ({"sequences": np.array([0, 0, 4])}, "sequence 4; the cache has 4"),
    "a sequence that would wrap": ({"sequences": np.array([0, 0, LONG - 1])}, f"sequence {LONG - 1}; the cache has 4"),
    "a sequence below zero": ({"sequences": np.array([0, 0, -1])}, "sequence -1; the cache has 4"),
    "sequences in rows": ({"sequences": np.zeros((1, 3), np.int32)}, "sequences is an array of int32 with 2 axes"),
    "a wanted token too many": ({"wanted": np.array([3])}, "token 3 is wanted of a batch of 3"),
    "a wanted token below zero": ({"wanted": np.array([-1])}, "token -1 is wanted of a batch of 3"),
    "wanted as a mask": ({"wanted": np.ones(3, bool)}, "wanted is an array of bool"),
    "a prefix of nothing": ({"prefixes": {4: 1}}, "a prefix of 1 tokens of sequence 4; the cache has 4"),
    "a prefix of many": ({"prefixes": {0: 2**70}}, "a prefix of"),
    "a prefix of words": ({"prefixes": {0: "1"}}, "whole numbers are needed"),
}


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param
    if made.name == "cpu":
        pytest.importorskip("bestiary_kernels")
    return made


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_are_refused_in_words(lab: Lab, backend: Backend, name: str) -> None:
    graph = lab.llama()
    plan = backend.compile(graph, lab.weights(graph, F32), lab.limits())
    cache, good = plan.new_cache(), lab.batch([1, 2, 3])
    given, words = BAD[name]
    with pytest.raises(BestiaryError, match=words):
        plan.forward(replace(good, **given), cache)
    assert [cache.length(sequence) for sequence in range(4)] == [0] * 4
    assert plan.forward(good, cache).shape == (3, 199)


def test_integers_of_any_width_mean_the_same(lab: Lab, backend: Backend) -> None:
    graph = lab.llama()
    plan = backend.compile(graph, lab.weights(graph, F32), lab.limits())
    good = lab.batch([1, 2, 3])
    expected = plan.forward(good, plan.new_cache())
    for kind in (np.uint8, np.int16, np.int64, np.uint64):
        wide = Batch(*(np.asarray(part).astype(kind) for part in (  # type: ignore[arg-type]
            good.tokens, good.positions, good.sequences, good.wanted)))
        np.testing.assert_array_equal(plan.forward(wide, plan.new_cache()), expected)


def test_no_tokens_and_too_many_are_refused(lab: Lab, backend: Backend) -> None:
    graph = lab.llama()
    plan = backend.compile(graph, lab.weights(graph, F32), lab.limits(batch=5))
    cache = plan.new_cache()
    with pytest.raises(BestiaryError, match="a batch of no tokens; the limit is 5"):
        plan.forward(lab.batch([]), cache)
    with pytest.raises(BestiaryError, match="a batch of 6 tokens; the limit is 5"):
        plan.forward(lab.batch([1] * 6), cache)
    assert plan.forward(lab.batch([1] * 5, wanted=()), cache).shape == (0, 199)
    assert cache.length(0) == 5


def test_hidden_states_are_checked(lab: Lab, backend: Backend) -> None:
    graph = lab.llama()
    second = graph.cut(1)[1]
    plan = backend.compile(second, lab.weights(graph, F32), lab.limits())
    cache, good = plan.new_cache(), replace(lab.batch([1, 2, 3]), tokens=None)
    bad: list[tuple[Any, str]] = [(None, "begins with a hidden state"),
                                  (np.zeros((3, 95), np.float32), r"shape \(3, 95\)"),
                                  (np.zeros((2, 96), np.float32), r"needed: float32 of \(3, 96\)"),
                                  (np.zeros((3, 96), np.int32), "hidden is int32")]
    for hidden, words in bad:
        with pytest.raises(BestiaryError, match=words):
            plan.forward(replace(good, hidden=hidden), cache)
    assert plan.forward(replace(good, hidden=np.ones((3, 96), np.float32)), cache).shape == (3, 199)


def test_positions_that_are_looked_up_are_checked(lab: Lab, backend: Backend) -> None:
    g = Trace()
    y = g.add(g.embed("tokens", 9, 32), g.embed("places", 7, 32, "position"))
    rows = np.ones((9, 32), np.float32)
    plan = backend.compile(g.finish(y, y), {"tokens": ArrayTensor(rows), "places": ArrayTensor(rows[:7])}, lab.limits())
    for start, words in ((5, "position 7; the model has 7"), (-1, "position -1; the model has 7")):
        with pytest.raises(BestiaryError, match=words):
            plan.forward(lab.batch([1, 2, 3], start), plan.new_cache())
    assert plan.forward(lab.batch([1, 2, 3], 4), plan.new_cache()).shape == (3, 32)


def test_sequences_that_are_not_there_are_refused_by_the_cache(lab: Lab, backend: Backend) -> None:
    graph = lab.llama()
    cache = backend.compile(graph, lab.weights(graph, F32), lab.limits()).new_cache()
    for call in (lambda: cache.length(4), lambda: cache.length(-1), lambda: cache.truncate(4, 0),
                 lambda: cache.truncate(0, 2**70), lambda: cache.copy(0, 4, 0), lambda: cache.copy(2**70, 0, 0)):
        with pytest.raises(BestiaryError):
            call()


def test_a_closed_plan_runs_no_more(lab: Lab, backend: Backend) -> None:
    graph = lab.llama()
    plan = backend.compile(graph, lab.weights(graph, F32), lab.limits())
    cache = plan.new_cache()
    plan.close()
    plan.close()
    with pytest.raises(BestiaryError, match="the plan was closed"):
        plan.forward(lab.batch([1]), cache)
