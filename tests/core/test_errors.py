"""A message is one printable line of bounded length, whatever a file holds."""

from __future__ import annotations

import pickle

import pytest

from bestiary.config import flag, one_of, real, section, whole
from bestiary.errors import LONGEST, BestiaryError, printable, short


def test_what_would_move_the_cursor_is_spelled_out() -> None:
    said = str(BestiaryError("tensor evil\x1b[2J\x1b]0;owned\x07\nbestiary: all is well \u202e\x9b\ud800"))
    assert said == r"tensor evil\x1b[2J\x1b]0;owned\x07\nbestiary: all is well \u202e\x9b\ud800"


def test_what_people_write_is_left_as_it_is() -> None:
    text = "Größe 你好 naïve 🦙 \u2581 a\\b 'c' \"d\""
    assert printable(text) == text == str(BestiaryError(text))


@pytest.mark.parametrize("char", ["a", "\n", "\U000e0001", "\ud800"])
def test_a_message_has_an_end_and_keeps_its_own(char: str) -> None:
    said = str(BestiaryError(f"key {char * (1 << 20)} is wrong; known: this"))
    assert said.isprintable() and len(said) <= LONGEST
    assert said.startswith("key ") and said.endswith(" is wrong; known: this")


def test_an_error_pickles() -> None:
    assert str(pickle.loads(pickle.dumps(BestiaryError("a\nb")))) == r"a\nb"


@pytest.mark.parametrize("value", ["a" * 5000, ["a" * 5000], {"a" * 5000: 1}, b"a" * 5000])
def test_a_value_of_a_file_is_quoted_in_few_characters(value: object) -> None:
    assert len(short(value)) == 60
    config = {"key": value}
    for call in (lambda: whole(config, "key"), lambda: real(config, "key"), lambda: flag(config, "key"),
                 lambda: one_of(config, "key", ("x",), "x"), lambda: section({"key": [value]}, "key")):
        with pytest.raises(BestiaryError, match="key = ") as caught:
            call()
        assert len(str(caught.value)) < 150
