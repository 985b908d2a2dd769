"""JSON of a file: what is damaged, double or far too much is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bestiary.errors import BestiaryError
from bestiary.strict_json import LARGEST, LARGEST_LIST, MOST_PARTS, parse_object, read_object
from bestiary.tokenizer_settings import read_settings

BAD: dict[str, bytes] = {
    "stands there twice": b'{"a": 1, "a": 2}',
    "half a character": b'{"a": "\\ud800"}',
    "is no UTF-8 text": b'{"a": "\xed\xa0\x80"}',
    "is no UTF-8 text: byte 0": '{"a": "ü"}'.encode("utf-16"),
    "nests too deeply": b'{"a": ' + b"[" * 100_000,
    "it must be an object": b"[]",
    "cannot be read as JSON": b'{"a": ' + b"9" * 5000 + b"}",
    "bytes of JSON": b'{"a": [' + b"[]," * (LARGEST // 3) + b"[]]}",
}


@pytest.mark.parametrize("words", BAD)
def test_every_reader_of_json_refuses_the_same(words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(BAD[words])
    readers: tuple[Callable[[], object], ...] = (
        lambda: parse_object(BAD[words], "x.json"), lambda: read_settings(BAD[words], "x.json"),
        lambda: read_object(tmp_path / "x.json"))
    for read in readers:
        with pytest.raises(BestiaryError, match=words if words != "bytes of JSON" else "bytes") as caught:
            read()
        assert len(str(caught.value)) < 500


def test_a_number_of_many_digits_is_refused_in_our_own_words() -> None:
    assert parse_object(b'{"a": -1000000000000000019884624838656}', "x") == {"a": -1000000000000000019884624838656}
    for digits in (41, 5000, 1_000_000):
        with pytest.raises(BestiaryError, match=f"a whole number has {digits} digits; up to 40 are read") as caught:
            parse_object(b'{"a": ' + b"9" * digits + b"}", "x")
        assert "sys." not in str(caught.value)


def test_a_mark_of_byte_order_is_passed_over() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": "\\ud83e\\udd99"}', "x") == {"a": "\U0001f999"}


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0,", b'{"":0},'])
def test_too_many_parts_are_counted_before_they_take_memory(part: bytes) -> None:
    with pytest.raises(BestiaryError, match=f"up to {MOST_PARTS} are read"):
        parse_object(b'{"a": [' + part * (MOST_PARTS // 1 if part == b"0," else MOST_PARTS // 2 + 1) + b"0]}", "x",
                     largest=LARGEST_LIST)


def test_no_memory_for_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bestiary.strict_json.json.loads", none)
    with pytest.raises(BestiaryError, match="does not fit into memory"):
        parse_object(b"{}", "x")


@pytest.mark.parametrize("depth", [65, 200, 900])
def test_what_nests_deeper_than_anybody_needs_is_refused(depth: int) -> None:
    """Python's own limit differs from version to version, and leaves less to who walks through the value later."""
    assert parse_object('{"a":' * 63 + "1" + "}" * 63, "x")
    for opens, closes in (('{"a":', "}"), ("[", "]")):
        with pytest.raises(BestiaryError, match="x nests too deeply"):
            parse_object('{"b":' + opens * depth + "1" + closes * depth + "}", "x")
