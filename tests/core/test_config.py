"""Config values: of the right kind and range, or refused by key and value."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bestiary.config import flag, one_of, real, section, whole
from bestiary.errors import BestiaryError


def refused(value: Callable[[], Any], *words: str) -> None:
    with pytest.raises(BestiaryError) as caught:
        value()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_whole_numbers_within_their_range_are_taken() -> None:
    assert whole({"n": 5}, "n") == 5
    assert whole({"n": 5.0}, "n") == 5
    assert type(whole({"n": 5.0}, "n")) is int
    assert whole({}, "n", 7) == whole({"n": None}, "n", 7) == 7
    assert whole({"n": 0}, "n", low=0) == 0


@pytest.mark.parametrize("value", [0, -1, 1 << 31 | 1, 1 << 80, 1.5, math.nan, math.inf, True, "5", [5], {}])
def test_what_is_no_whole_number_in_range_is_refused_by_key_and_value(value: Any) -> None:
    refused(lambda: whole({"hidden_size": value}, "hidden_size"), "hidden_size", repr(value), "integer from 1")


def test_a_missing_number_without_a_default_is_refused_by_key() -> None:
    refused(lambda: whole({}, "hidden_size"), "the config has no hidden_size")
    refused(lambda: real({"eps": None}, "eps"), "the config has no eps")


def test_real_numbers_are_finite_and_above_their_bound() -> None:
    assert real({"eps": 1e-5}, "eps") == 1e-5
    assert real({"eps": 1}, "eps") == 1.0
    assert type(real({"eps": 1}, "eps")) is float
    assert real({}, "eps", 1e-6) == 1e-6
    values: list[Any] = [0, -1.0, math.nan, math.inf, -math.inf, True, "1e-5", [], 1e13]
    for value in values:
        refused(partial(real, {"eps": value}, "eps"), "eps", repr(value))


def test_an_integer_too_large_for_a_float_is_refused_like_any_other() -> None:
    refused(lambda: real({"eps": 10 ** 400}, "eps"), "eps")
    refused(lambda: whole({"n": 10 ** 400}, "n"), "n")


def test_flags_are_true_or_false_and_nothing_like_it() -> None:
    assert flag({"bias": True}, "bias")
    assert not flag({}, "bias")
    assert flag({"bias": None}, "bias", True)
    values: list[Any] = [0, 1, "true", []]
    for value in values:
        refused(partial(flag, {"bias": value}, "bias"), "bias", repr(value), "true or false")


def test_words_are_among_the_known() -> None:
    assert one_of({"act": "silu"}, "act", ("silu", "gelu"), "gelu") == "silu"
    assert one_of({}, "act", ("silu", "gelu"), "gelu") == "gelu"
    for value in ("relu", 5, ["silu"], {"silu": 1}):
        refused(partial(one_of, {"act": value}, "act", ("silu", "gelu"), "gelu"), "act", repr(value),
                "known: gelu, silu")


def test_unhashable_words_are_refused_even_where_the_known_are_a_set() -> None:
    refused(lambda: one_of({"act": ["silu"]}, "act", {"silu"}, "silu"), "act", "silu")


def test_sections_are_objects() -> None:
    assert section({"rope": {"factor": 2}}, "rope") == {"factor": 2}
    assert section({}, "rope") == section({"rope": None}, "rope") == {}
    values: list[Any] = [[], "linear", 3, False]
    for value in values:
        refused(partial(section, {"rope": value}, "rope"), "rope", repr(value), "object")
