"""Tokenizers in GGUF files: what llama.cpp needs of them, and that the arrays alone give the same ids."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.architecture import PreTokenizer
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load_tokenizer
from bestiary.tensor import ArrayTensor
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.architectures.pre_tokenizers import LLAMA3
from bestiary_plugins.loaders.gguf import open_gguf
from bestiary_plugins.loaders.gguf_writer import GgufWriter
from bestiary_plugins.loaders.vocabulary_arrays import arrays_of, from_tokenizer_json

TEXTS = ("Hello, world!", " leading", "  two  spaces \n\n tabs\t", "\u4f60\u597d\uff0c\u4e16\u754c \U0001f600 \xf1",
         "x = f(1234567)", "", "\u2581<s>[INST]")


def through_gguf(material: TokenizerMaterial, folder: Path, host: Host, rows: int | None = None) -> TokenizerMaterial:
    tensors = {} if rows is None else {"token_embd.weight": ArrayTensor(np.zeros((rows, 2), np.float16))}
    made = Checkpoint(folder, {"model_type": "llama"}, tensors, CANONICAL, material)
    GgufWriter().save(made, folder / "x.gguf", host)
    return open_gguf(folder / "x.gguf", host).tokenizer


@pytest.mark.parametrize(("name", "pieces"), [
    ("llama-tokenizer.model", 32000), ("chinese-alpaca-tokenizer.model", 49954), ("chatglm-6b-ice_text.model", 130344)])
def test_a_sentencepiece_model_survives_with_and_without_its_file(tmp_path: Path, host: Host, data: Path, name: str,
                                                                  pieces: int) -> None:
    material = TokenizerMaterial({"tokenizer.model": (data / "tokenizers" / name).read_bytes()})
    found = through_gguf(material, tmp_path, host, pieces + 64)
    assert found.files == material.files
    assert found.vocabulary is not None
    assert len(found.vocabulary.pieces) == pieces + 64
    original = build_tokenizer(material, {})
    again, bare = build_tokenizer(found, {}), build_tokenizer(replace(found, files={}), {})
    for role in ("bos", "eos", "add_bos", "add_eos"):
        assert getattr(found, role) == getattr(original, role)
    for text in TEXTS:
        expected = original.encode(text, bos=True)
        assert again.encode(text, bos=True) == expected
        assert bare.encode(text, bos=True) == expected


def test_falcons_tokenizer_becomes_the_arrays_that_llama_cpp_wants(tmp_path: Path, host: Host, data: Path) -> None:
    content = (data / "tokenizers" / "falcon-tokenizer.json").read_bytes()
    vocabulary = through_gguf(TokenizerMaterial({"tokenizer.json": content}, bos=11, eos=11), tmp_path, host).vocabulary
    root = json.loads(content)
    assert vocabulary is not None
    assert (vocabulary.algorithm, vocabulary.pre_tokenizer) == ("bytes", "falcon")
    assert {piece.decode(): i for i, piece in enumerate(vocabulary.pieces)} == root["model"]["vocab"]
    assert list(vocabulary.merges) == root["model"]["merges"]
    special = [token["id"] for token in root["added_tokens"]]
    assert [i for i, kind in enumerate(vocabulary.kinds) if kind == 3] == special


def test_tokens_that_settings_add_follow_the_model(data: Path) -> None:
    files = {"tokenizer.model": (data / "tokenizers" / "llama-tokenizer.model").read_bytes(),
             "added_tokens.json": b'{"<extra>": 32001}',
             "tokenizer_config.json": json.dumps({"added_tokens_decoder": {
                 "2": {"content": "</s>", "special": True}, "32000": {"content": "<pad>", "special": True}}}).encode()}
    vocabulary = arrays_of(TokenizerMaterial(files), {})
    assert vocabulary is not None
    assert list(zip(vocabulary.pieces, vocabulary.kinds, strict=True))[31999:] == [
        ("给".encode(), 1), (b"<pad>", 3), (b"<extra>", 4)]
    assert vocabulary.kinds[:3] == [2, 3, 3]


def library(pre: Any = None, **changes: Any) -> bytes:
    """A tokenizer.json of byte-level BPE."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": ["a b"]}
    added = [{"id": 4, "content": "<end>", "special": True}, {"id": 6, "content": "<x>"}]
    root = {"added_tokens": added, "pre_tokenizer": pre, "decoder": {"type": "ByteLevel"}, "normalizer": None}
    return json.dumps({**root, "model": model, **changes}).encode()


def test_gaps_are_unused_and_added_tokens_have_their_kind() -> None:
    vocabulary = from_tokenizer_json(library(), {})
    assert list(vocabulary.pieces) == [b"a", b"b", "Ġ".encode(), b"ab", b"<end>", b"[PAD5]", b"<x>"]
    assert list(vocabulary.kinds) == [1, 1, 1, 1, 3, 5, 4]


def test_merges_are_read_in_both_forms() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"], ["a b", "c"]]}
    assert list(from_tokenizer_json(library(model=model), {}).merges) == ["a b", "aĠb c"]


LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def split(pattern: str, **level: Any) -> dict[str, Any]:
    """The usual pre-tokenizer: a pattern, then bytes."""
    step = {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": pattern}}
    return {"type": "Sequence", "pretokenizers": [step, {**LEVEL, **level}]}


@pytest.mark.parametrize(("pre", "name"), [
    (LEVEL, "gpt-2"), (split(LLAMA3, use_regex=False), "smaug-bpe"), (split("own", use_regex=False), "mine"),
    (split(LLAMA3), "default"), (None, "default")])
def test_a_pre_tokenizer_is_known_by_its_steps(pre: Any, name: str, host: Host) -> None:
    rules = {**host.pre_tokenizers, "mine": PreTokenizer(("own",))}
    assert from_tokenizer_json(library(pre), rules).pre_tokenizer == name


def test_rules_with_one_pattern_differ_in_whether_whole_pieces_are_taken(host: Host) -> None:
    root = json.loads(library(split(LLAMA3, use_regex=False)))
    root["model"]["ignore_merges"] = True
    assert from_tokenizer_json(json.dumps(root).encode(), host.pre_tokenizers).pre_tokenizer == "llama-bpe"


def test_a_list_of_ranks_is_written_as_llama_cpp_wants_it(tmp_path: Path, host: Host, data: Path) -> None:
    content = (data / "tokenizers" / "llama3-tokenizer.model").read_bytes()
    found = through_gguf(TokenizerMaterial({"tokenizer.model": content}), tmp_path, host, 128256)
    assert found.vocabulary is not None and found.files["tokenizer.model"] == content
    assert (found.vocabulary.algorithm, found.vocabulary.pre_tokenizer) == ("bytes", "llama-bpe")
    assert len(found.vocabulary.pieces) == 128256 and len(found.vocabulary.merges) == 280147
    assert (found.bos, found.eos, found.add_bos, set(found.ends)) == (128000, 128001, True, {128001, 128008, 128009})
    bare = load_tokenizer(tmp_path / "x.gguf", host)
    text = "Hello, world! 1234567 \u4f60\u597d\n\n  x"
    assert bare.encode(text) == load_tokenizer(data / "tokenizers" / "llama3-tokenizer.model", host).encode(text)


def test_bpe_with_byte_fallback_gets_scores_by_the_rank_of_its_merges() -> None:
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": ["a b", "ab b", "b b"],
             "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "abb": 5, "bb": 6}}
    vocabulary = from_tokenizer_json(library(model=model, decoder=None, added_tokens=[], normalizer={
        "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}), {})
    assert (vocabulary.algorithm, vocabulary.space_prefix, vocabulary.unknown) == ("bpe", True, 0)
    assert list(vocabulary.kinds) == [2, 6, 1, 1, 1, 1, 1]
    assert list(vocabulary.scores)[4:] == [0.0, -1.0, -2.0]
    assert max(list(vocabulary.scores)[:4]) < -2.0


def test_a_unigram_tokenizer_keeps_its_scores() -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}
    vocabulary = from_tokenizer_json(library(model=model, decoder=None, added_tokens=[]), {})
    assert (vocabulary.algorithm, list(vocabulary.scores), list(vocabulary.kinds)) == ("unigram", [0.0, -1.5], [2, 1])


@pytest.mark.parametrize("changes", [
    {"model": None}, {"model": {"type": "WordPiece"}}, {"model": {"type": "BPE"}},
    {"model": {"type": "BPE", "vocab": {"a": -1}}}, {"model": {"type": "BPE", "vocab": {"a": 1 << 40}}},
    {"model": {"type": "BPE", "vocab": {"a": True}}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [5]}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 5}}, {"model": {"type": "Unigram", "vocab": [["a"]]}},
    {"model": {"type": "Unigram", "vocab": 3}}, {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["a", 1.0]]}},
    {"model": {"type": "Unigram", "vocab": [[5, 0.0]]}}, {"added_tokens": 5}, {"added_tokens": [5]},
    {"added_tokens": [{"id": 1 << 40, "content": "x"}]}, {"added_tokens": [{"id": 1}]}], ids=str)
def test_a_tokenizer_json_that_is_not_understood_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BestiaryError):
        from_tokenizer_json(library(**changes), {})


def test_files_that_are_no_text_are_carried_as_base64(tmp_path: Path, host: Host) -> None:
    files = {"tokenizer.extra": b"\xff\x00", "other.txt": "é".encode()}
    assert through_gguf(TokenizerMaterial(files), tmp_path, host).files == files
    assert base64.b64encode(b"\xff\x00") in (tmp_path / "x.gguf").read_bytes()
