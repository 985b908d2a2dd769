"""Samplers: each against its definition, and choices that can be had again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.sampling import CHAIN, SAMPLERS, Chooser, Sampling

Floats = NDArray[np.float32]
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
logits_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40, unique=True)


def apply(name: str, logits: list[float], tokens: tuple[int, ...] = (), **settings: Any) -> list[float]:
    result = SAMPLERS[name](np.array(logits, np.float32), Sampling(**{**OFF, **settings}), list(tokens))
    return [float(value) for value in result]


def kept(result: list[float]) -> set[int]:
    return {i for i, value in enumerate(result) if value > -math.inf}


def chances(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = sum(math.exp(value - largest) for value in logits)
    return [math.exp(value - largest) / total for value in logits]


@given(logits_lists, st.integers(0, 50))
def test_top_k_keeps_the_k_likeliest(logits: list[float], k: int) -> None:
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    result = apply("top_k", logits, top_k=k)
    assert kept(result) == set(ranked[:k or len(logits)])
    assert all(result[i] == logits[i] for i in kept(result))


@given(logits_lists, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits: list[float], p: float) -> None:
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    total, wanted = 0.0, set()
    for i in ranked:
        wanted.add(i)
        total += chances(logits)[i]
        assume(abs(total - p) > 1e-6)
        if total >= p and p < 1:
            break
    assert kept(apply("top_p", logits, top_p=p)) == wanted


@given(logits_lists, st.floats(0, 1))
def test_min_p_keeps_what_is_p_times_as_likely_as_the_likeliest(logits: list[float], p: float) -> None:
    best = max(chances(logits))
    assume(all(abs(chance - p * best) > 1e-5 * best for chance in chances(logits)) or p == 0)
    likely = {i for i, chance in enumerate(chances(logits)) if chance >= p * best}
    assert kept(apply("min_p", logits, min_p=p)) == likely


@given(logits_lists, st.floats(0.05, 5))
def test_temperature_divides(logits: list[float], temperature: float) -> None:
    np.testing.assert_allclose(apply("temperature", logits, temperature=temperature),
                               [value / temperature for value in logits], rtol=1e-5, atol=1e-6)


@settings(max_examples=200)
@given(logits_lists, st.lists(st.integers(0, 39), max_size=30), st.floats(0.5, 2), st.floats(-1, 1), st.floats(-1, 1),
       st.integers(-1, 20))
def test_penalties_are_their_formula(logits: list[float], tokens: list[int], repeat: float, frequency: float,
                                    presence: float, last: int) -> None:
    tokens = [token for token in tokens if token < len(logits)]
    counts = Counter(tokens if last == -1 else tokens[-last:] if last else [])
    wanted = [value if not counts[i] else
              (value / repeat if value > 0 else value * repeat) - counts[i] * frequency - presence
              for i, value in enumerate(logits)]
    np.testing.assert_allclose(
        apply("penalties", logits, tuple(tokens), repeat_penalty=repeat, frequency_penalty=frequency,
              presence_penalty=presence, repeat_last_n=last), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_switched_off_a_sampler_changes_nothing(name: str) -> None:
    logits = [3.0, -2.0, 0.5, 0.25]
    assert apply(name, logits, (0, 1, 1)) == logits


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_takes_everything_out(name: str) -> None:
    for logits in ([0.0], [1.0] * 5, [-50.0, 60.0], [-math.inf, 2.0, -math.inf]):
        assert kept(apply(name, logits, (0,), top_k=1, top_p=0.001, min_p=1.0, temperature=0.01, repeat_penalty=1.5))


def draws(sampling: Sampling, logits: list[float], count: int, **more: Any) -> list[int]:
    chooser = Chooser(sampling, **more)
    return [chooser.choose(np.array(logits, np.float32), []) for _ in range(count)]


def test_temperature_zero_takes_the_likeliest_and_no_chance() -> None:
    assert draws(Sampling(temperature=0), [0.0, 3.0, 2.9, 3.0], 20) == [1] * 20


def test_greedy_looks_at_the_penalties_too() -> None:
    chooser = Chooser(Sampling(temperature=0, repeat_penalty=2.0))
    assert chooser.choose(np.array([1.0, 1.5], np.float32), [1]) == 0


def test_choosing_does_not_change_the_logits_it_is_given() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    Chooser(Sampling(seed=1, repeat_penalty=1.5, top_k=1), banned=[2]).choose(logits, [0, 1, 2])
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_the_same_seed_gives_the_same_choices_and_another_gives_others() -> None:
    logits = np.random.default_rng(0).standard_normal(50).tolist()
    first = draws(Sampling(seed=7), logits, 60)
    assert draws(Sampling(seed=7), logits, 60) == first
    assert draws(Sampling(seed=8), logits, 60) != first


def test_a_seed_that_was_drawn_can_be_used_again() -> None:
    logits = np.random.default_rng(0).standard_normal(50).tolist()
    chooser = Chooser(Sampling())
    first = [chooser.choose(np.array(logits, np.float32), []) for _ in range(60)]
    assert draws(Sampling(seed=chooser.seed), logits, 60) == first
    assert draws(Sampling(), logits, 60) != first


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = [2.0, 1.0, 0.0, -1.0, -math.inf]
    count = 20_000
    found = Counter(draws(Sampling(seed=3, **OFF), logits, count))
    for i, chance in enumerate(chances(logits)):
        assert abs(found[i] / count - chance) < 5 * math.sqrt(chance * (1 - chance) / count) + 1e-9


def test_the_chain_is_run_in_its_order() -> None:
    """top_p after temperature sees flatter chances than before it."""
    logits = [3.0, 2.0, 1.0, 0.0]
    chosen: dict[str, Any] = {**OFF, "seed": 1, "temperature": 10.0, "top_p": 0.6}
    assert set(draws(Sampling(**chosen), logits, 300)) == {0}
    assert set(draws(Sampling(**chosen, samplers=("temperature", "top_p")), logits, 300)) == {0, 1, 2}
    assert set(CHAIN) == set(SAMPLERS)


def test_banned_tokens_are_never_chosen() -> None:
    logits = [9.0, 8.0, 0.0]
    for sampling in (Sampling(temperature=0), Sampling(seed=1), Sampling(seed=1, top_k=1)):
        assert set(draws(sampling, logits, 30, banned=[0, 1])) == {2}


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf],
                                    [math.nan, math.nan]])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(BestiaryError, match="not finite"):
        draws(Sampling(temperature=temperature), logits, 1)


def test_a_vocabulary_that_is_wholly_banned_is_refused() -> None:
    with pytest.raises(BestiaryError):
        draws(Sampling(), [1.0, 2.0], 1, banned=[0, 1])


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("top_k", -2), ("top_k", 1.5),
    ("seed", "x"), ("temperature", None), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1),
    ("min_p", 1.1), ("repeat_penalty", 0.0), ("repeat_penalty", -1.0), ("repeat_last_n", -2), ("temperature", math.inf),
    ("frequency_penalty", math.nan), ("presence_penalty", math.inf), ("repeat_penalty", math.inf), ("seed", -1)])
def test_settings_out_of_range_are_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(BestiaryError, match=f"{name} = {value!r}"):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_an_unknown_sampler_is_refused_with_the_known() -> None:
    with pytest.raises(BestiaryError, match="unknown sampler 'mirostat'; known: penalties, top_k"):
        Sampling(samplers=("top_k", "mirostat"))
