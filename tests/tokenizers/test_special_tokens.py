"""Special tokens are parsed where they may be and nowhere else; BOS is added once."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from bestiary import BestiaryError
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.plugin import PreTokenizer, Segment, Tokenizer
from bestiary.tokenizer_builder import build_tokenizer


def built(files: Mapping[str, bytes | dict[str, Any]], **material: Any) -> Tokenizer:
    contents = {name: content if isinstance(content, bytes) else json.dumps(content).encode()
                for name, content in files.items()}
    return build_tokenizer(TokenizerMaterial(files=contents, **material), {})


def test_spellings_in_a_users_text_are_ordinary_characters(data: Path, falcon_rule: PreTokenizer) -> None:
    for path, spelled in (("llama-tokenizer.model", {"<s>": 1, "</s>": 2, "<unk>": 0}),
                          ("falcon-tokenizer.json", {"<|endoftext|>": 11, ">>TITLE<<": 0, ">>QUESTION<<": 6})):
        tokenizer = built({f"tokenizer.{path.split('.')[1]}": (data / "tokenizers" / path).read_bytes()})
        for name, token in spelled.items():
            for text in (name, f"a {name}b", name * 3):
                ids = tokenizer.encode(text)
                assert token not in ids and tokenizer.decode(ids) == text
                assert tokenizer.encode(text, special=True).count(token) == text.count(name)


def test_a_tokenizer_json_parses_special_tokens_as_its_library_does(small_json: dict[str, Any]) -> None:
    original = tokenizers.Tokenizer.from_str(json.dumps(small_json))
    tokenizer = built({"tokenizer.json": small_json})
    for text in ("<bos>the cat", "the<eos><eos> cat", "x <|user|>  \n hello", "<|user|>! <|user|>", "the   <pad> cat",
                 "a word in words wordy word.", "<tool> the <tool><bos>", "<bo", "word", "  <|user|>  ", "<tool>"):
        assert tokenizer.encode(text, special=True) == original.encode(text, add_special_tokens=False).ids, text


def test_an_added_token_that_is_not_special_is_found_in_every_text(small_json: dict[str, Any]) -> None:
    tokenizer = built({"tokenizer.json": small_json})
    token = tokenizer.find("<tool>")
    assert token in tokenizer.encode("the <tool> cat") and tokenizer.piece(token or 0) == b"<tool>"


def test_bos_is_added_exactly_once(small_model: bytes, small_json: dict[str, Any]) -> None:
    for files in ({"tokenizer.model": small_model}, {"tokenizer.json": small_json}):
        for add_bos in (None, True):
            tokenizer = built(files, add_bos=add_bos)
            bos = tokenizer.bos
            assert bos is not None and tokenizer.add_bos
            spelling = tokenizer.name(bos)
            assert bos not in tokenizer.encode("the cat") + tokenizer.encode(spelling)
            for text, special in (("the cat", False), (spelling, False), ("", False), ("the", True),
                                  (f"{spelling}the cat", True)):
                ids = tokenizer.encode(text, bos=True, special=special)
                assert ids[0] == bos and ids.count(bos) == 1, (text, special)
        tokenizer = built(files, add_bos=False)
        assert tokenizer.encode("the", bos=True) == tokenizer.encode("the") and not tokenizer.add_bos


def test_eos_is_added_where_the_material_says_so(small_model: bytes) -> None:
    tokenizer = built({"tokenizer.model": small_model}, add_eos=True)
    assert tokenizer.encode("the", bos=True) == [1, *tokenizer.encode("the"), 2]
    assert tokenizer.encode("the</s>", bos=True, special=True).count(2) == 1


def test_ends_are_eos_and_what_the_material_adds(small_model: bytes) -> None:
    assert built({"tokenizer.model": small_model}).ends == {2}
    assert built({"tokenizer.model": small_model}, eos=2, ends=(3, 7)).ends == {2, 3, 7}
    config = {"eos_token": {"content": "<turn>"}}
    assert built({"tokenizer.model": small_model, "tokenizer_config.json": config}).eos == 3


def test_the_first_llama_folders_wrong_ids_are_not_believed(small_model: bytes) -> None:
    tokenizer = built({"tokenizer.model": small_model}, bos=0, eos=1)
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_text_after_a_special_token_is_a_text_of_its_own(small_model: bytes) -> None:
    """As Meta's code and llama.cpp have it, so that a BOS that is spelled gives the ids of one that is added."""
    tokenizer = built({"tokenizer.model": small_model})
    assert tokenizer.encode("<s>the cat", special=True) == tokenizer.encode("the cat", bos=True)
    turn = tokenizer.find("<turn>")
    assert tokenizer.encode("a<turn>cat", special=True) == [*tokenizer.encode("a"), turn, *tokenizer.encode("cat")]


def test_a_user_defined_piece_is_found_in_every_text_as_the_library_does(small_model: bytes) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    tokenizer = built({"tokenizer.model": small_model})
    for special in (False, True):
        assert tokenizer.encode("the <x><x> cat", special=special) == original.encode("the <x><x> cat")


def test_segments_are_one_text_between_special_tokens(small_model: bytes, small_json: dict[str, Any]) -> None:
    for files in ({"tokenizer.model": small_model}, {"tokenizer.json": small_json}):
        tokenizer = built(files)
        assert tokenizer.bos is not None
        bos = tokenizer.name(tokenizer.bos)
        segments = [Segment(f"{bos}hello ", True), Segment("the cat", False), Segment(f" and a dog{bos}", True)]
        assert tokenizer.encode_segments(segments, bos=True) == tokenizer.encode(
            f"{bos}hello the cat and a dog{bos}", special=True)
        hostile = tokenizer.encode_segments([Segment(bos, True), Segment(f"{bos}the", False)])
        assert hostile.count(tokenizer.bos) == 1
        assert tokenizer.decode(hostile) == f"{bos}the"


def test_a_unigram_json_never_makes_a_special_token_of_ordinary_text() -> None:
    """Its vocabulary holds the spelling, with a score that wins."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    source: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": metaspace,
        "added_tokens": [{"id": i, "content": name, "special": True, "normalized": False, "lstrip": False,
                          "rstrip": False, "single_word": False} for i, name in enumerate(("<unk>", "<s>"))],
        "post_processor": None, "decoder": metaspace, "model": {"type": "Unigram", "unk_id": 0, "vocab": [
            ["<unk>", 0.0], ["<s>", 0.0], ["▁", -1.0], ["<", -2.0], ["s", -2.0], [">", -2.0], ["a", -1.5]]}}
    plain = tokenizers.Tokenizer.from_str(json.dumps(source))
    plain.encode_special_tokens = True
    assert 1 in plain.encode("a<s>").ids
    tokenizer = built({"tokenizer.json": source})
    assert tokenizer.encode("a<s>") == [2, 6, 3, 4, 5]
    original = tokenizers.Tokenizer.from_str(json.dumps(source))
    for text in ("a<s>a", "<s>a", "a <s> a"):  # the space of scheme "first" stands before the very first text only
        assert tokenizer.encode(text, special=True) == original.encode(text).ids
    assert tokenizer.encode("z") == original.encode("z").ids  # the unknown one is special, and may come out


def test_tokens_added_beside_a_sentencepiece_model_count(small_model: bytes) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    size = original.get_piece_size()
    config = {"added_tokens_decoder": {
        "1": {"content": "<s>", "special": True}, str(size): {"content": "<|im_start|>", "special": True},
        str(size + 2): {"content": "<a b>", "special": False}}}
    for files in ({"tokenizer_config.json": config},
                  {"added_tokens.json": {"<|im_start|>": size, "<a b>": size + 2},
                   "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>"]}},
                  {"tokenizer.json": {"added_tokens": [
                      {"id": size, "content": "<|im_start|>", "special": True},
                      {"id": size + 2, "content": "<a b>"}]}}):
        tokenizer = built({"tokenizer.model": small_model, **files})  # type: ignore[dict-item]
        assert tokenizer.size == size + 3
        text = "the cat <|im_start|>"
        assert size not in tokenizer.encode(text) and tokenizer.encode(text) == original.encode(text)
        assert tokenizer.encode(text, special=True)[-1] == size
        for special in (False, True):
            ids = tokenizer.encode("a dog<a b>", special=special)
            assert ids[-1] == size + 2 and tokenizer.decode(ids) == "a dog<a b>"
        assert tokenizer.piece(size) == b"" == tokenizer.piece(size + 1)


def test_a_piece_that_the_settings_call_special_is_no_ordinary_text(small_model: bytes) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    token = original.piece_to_id("▁the")
    tokenizer = built({"tokenizer.model": small_model, "special_tokens_map.json": {"pad_token": "▁the"}})
    assert token in original.encode("the") and token not in tokenizer.encode("the") and tokenizer.special(token)


def test_of_two_files_the_sentencepiece_model_counts(small_model: bytes, small_json: dict[str, Any]) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    both = copy.deepcopy(small_json)
    both["added_tokens"] = []
    tokenizer = built({"tokenizer.model": small_model, "tokenizer.json": both})
    assert tokenizer.encode("the cat") == original.encode("the cat")
    ranks = b"IQ== 0\nIg== 1\nIw== 2\n"
    assert built({"tokenizer.model": ranks, "tokenizer.json": small_json}).find("<|user|>") is not None
    with pytest.raises(BestiaryError, match="tiktoken"):
        built({"tokenizer.model": ranks})


def test_the_settings_beside_a_tokenizer_json_count(small_json: dict[str, Any]) -> None:
    size = max(token["id"] for token in small_json["added_tokens"]) + 1
    config = {"eos_token": "<eos>", "added_tokens_decoder": {str(size): {"content": "<|late|>", "special": True}}}
    tokenizer = built({"tokenizer.json": small_json, "tokenizer_config.json": config})
    assert tokenizer.encode("a<|late|>", special=True)[-1] == size
    assert tokenizer.eos == tokenizer.find("<eos>") and tokenizer.ends == {tokenizer.eos}


def test_special_pieces_of_byte_level_arrays_are_not_ordinary_text() -> None:
    letters = [letter.encode() for letter in sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    # "ab" is a control piece that merges could reach, and a pre-token taken whole
    for ignore in (False, True):
        vocabulary = Vocabulary("bytes", [*letters, b"ab", b"<u>"], (), [1] * 256 + [3, 4], ["a b"], "whole")
        tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary), {"whole": PreTokenizer((), ignore)})
        assert tokenizer.encode("ab") == [letters.index(b"a"), letters.index(b"b")]
        assert tokenizer.encode("ab", special=True) == [256]
        assert tokenizer.encode("x<u>")[-1] == 257
