"""A stream gives the same text as decoding at once, and never a part of a character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from bestiary.checkpoint import TokenizerMaterial
from bestiary.plugin import Tokenizer
from bestiary.tokenizer import Stream
from bestiary.tokenizer_builder import build_tokenizer


class Bytes(Tokenizer):
    """The smallest tokenizer: ids 0-255 are bytes, 256 is special."""

    @property
    def size(self) -> int:
        return 257

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


@pytest.fixture(scope="module")
def tokenizers(small_model: bytes, small_unigram: bytes, small_json: dict[str, Any]) -> list[Tokenizer]:
    return [Bytes(), *(build_tokenizer(TokenizerMaterial(files={name: content}), {}) for name, content in (
        ("tokenizer.model", small_model), ("tokenizer.model", small_unigram),
        ("tokenizer.json", json.dumps(small_json).encode())))]


def streamed(tokenizer: Tokenizer, ids: list[int], start: bool = True) -> list[str]:
    stream = Stream(tokenizer, start)
    return [*map(stream.push, ids), stream.finish()]


@given(choice=st.integers(0, 3), numbers=st.lists(st.integers(0, 10**6), max_size=40))
def test_the_pieces_of_a_stream_add_up_to_the_decoding(tokenizers: list[Tokenizer], choice: int,
                                                       numbers: list[int]) -> None:
    tokenizer = tokenizers[choice]
    ids = [number % tokenizer.size for number in numbers]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_stream_as_they_decode(ids: list[int]) -> None:
    assert "".join(streamed(Bytes(), ids)) == Bytes().decode(ids) == bytes(ids).decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30))
def test_a_text_comes_back_and_no_character_is_split(tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in (tokenizers[0], tokenizers[1], tokenizers[3]):
        ids = tokenizer.encode(text)
        parts = streamed(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_sentencepieces_rule_for_the_first_space_is_kept(small_model: bytes, small_unigram: bytes,
                                                         numbers: list[int]) -> None:
    for model in (small_model, small_unigram):
        original = sentencepiece.SentencePieceProcessor(model_proto=model)
        tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.model": model}), {})
        spaces = [i for i in range(tokenizer.size) if tokenizer.name(i).startswith("▁") or tokenizer.special(i)]
        for ids in ([number % tokenizer.size for number in numbers],
                    [spaces[number % len(spaces)] for number in numbers]):
            whole = [i for i in ids if not original.is_byte(i)]  # of broken characters the library makes more U+FFFD
            assert tokenizer.decode(whole) == original.decode(whole)


def test_a_byte_piece_that_is_a_space_is_no_space_put_before_the_text(small_model: bytes) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.model": small_model}), {})
    ids = [original.piece_to_id("<0x20>"), original.piece_to_id("▁the")]
    assert tokenizer.decode(ids) == original.decode(ids) == "  the"


def test_a_continuation_keeps_the_space_before_its_first_word(small_model: bytes) -> None:
    tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.model": small_model}), {})
    ids = tokenizer.encode("the cat")
    assert "".join(streamed(tokenizer, ids)) == "the cat"
    assert "".join(streamed(tokenizer, ids, start=False)) == " the cat"
    assert "".join(streamed(tokenizer, [tokenizer.bos or 0, *ids])) == "the cat"


def test_an_emoji_of_four_tokens_comes_out_whole(data: Path) -> None:
    tokenizer = build_tokenizer(TokenizerMaterial(files={
        "tokenizer.model": (data / "tokenizers" / "llama-tokenizer.model").read_bytes()}), {})
    parts = streamed(tokenizer, tokenizer.encode("hi 👋!"))
    assert parts == ["hi", " ", "", "", "", "👋", "!", ""]
    assert streamed(tokenizer, tokenizer.encode("👋")[:-1])[-1] == "\ufffd"
