"""Ids and texts equal those of the original libraries, from the files and from arrays alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
import tokenizers

from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.plugin import PreTokenizer, Tokenizer
from bestiary.sentencepiece_model import read_model
from bestiary.tokenizer_builder import build_tokenizer

MODELS = ("llama-tokenizer.model", "chinese-alpaca-tokenizer.model")
FALCON = "falcon-tokenizer.json"


def of_file(path: Path) -> Tokenizer:
    return build_tokenizer(TokenizerMaterial(files={f"tokenizer{path.suffix}": path.read_bytes()}), {})


def arrays_of_model(original: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """What a converter would store, as the library itself sees it."""
    ids = range(original.get_piece_size())
    kinds = [2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i)
             else 5 if original.is_unused(i) else 1 for i in ids]
    return {"pieces": [original.id_to_piece(i).encode() for i in ids], "scores": [original.get_score(i) for i in ids],
            "kinds": kinds}


def agree(tokenizer: Tokenizer, ids: Callable[[str], list[int]], text: Callable[[list[int]], str],
          texts: list[str]) -> None:
    for written in texts:
        expected = ids(written)
        assert tokenizer.encode(written) == expected, repr(written)
        assert tokenizer.decode(expected) == text(expected), repr(written)


@pytest.mark.parametrize("name", MODELS)
def test_a_sentencepiece_file_gives_the_ids_of_sentencepiece(name: str, data: Path, texts: list[str]) -> None:
    path = data / "tokenizers" / name
    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = of_file(path)
    agree(tokenizer, original.encode, original.decode, texts)
    assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (original.get_piece_size(), 1, 2)
    assert tokenizer.encode("a", bos=True) == [1, *original.encode("a")]


@pytest.mark.parametrize("name", MODELS)
def test_the_arrays_of_a_sentencepiece_model_give_the_same_ids(name: str, data: Path, texts: list[str]) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizers" / name))
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary("bpe", **arrays_of_model(original))), {})
    agree(tokenizer, original.encode, original.decode, texts)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)


def test_the_arrays_of_a_unigram_model_give_the_same_ids(small_unigram: bytes, texts: list[str]) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_unigram)
    model = read_model(small_unigram)
    vocabulary = Vocabulary("unigram", **arrays_of_model(original), charsmap=model.charsmap, squeeze_spaces=True)
    assert model.charsmap and model.squeeze_spaces
    for material in (TokenizerMaterial(vocabulary=vocabulary),
                     TokenizerMaterial(files={"tokenizer.model": small_unigram})):
        agree(build_tokenizer(material, {}), original.encode, original.decode, texts)


def test_a_tokenizer_json_gives_the_ids_of_its_library(data: Path, texts: list[str]) -> None:
    path = data / "tokenizers" / FALCON
    original = tokenizers.Tokenizer.from_file(str(path))
    original.encode_special_tokens = True
    tokenizer = of_file(path)
    agree(tokenizer, lambda text: original.encode(text).ids, original.decode, texts)
    assert tokenizer.size == 65024 and tokenizer.bos is None


def test_the_arrays_of_a_tokenizer_json_give_the_same_ids(data: Path, texts: list[str],
                                                          falcon_rule: PreTokenizer) -> None:
    path = data / "tokenizers" / FALCON
    model = json.loads(path.read_text())["model"]
    pieces = [piece.encode() for piece in sorted(model["vocab"], key=model["vocab"].get)]
    kinds = [3] * 12 + [1] * (len(pieces) - 12)
    merges = model["merges"]
    vocabulary = Vocabulary("bytes", pieces, (), kinds, merges, "falcon")
    rebuilt = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary, bos=11, eos=11), {"falcon": falcon_rule})
    original = tokenizers.Tokenizer.from_file(str(path))
    original.encode_special_tokens = True
    agree(rebuilt, lambda text: original.encode(text).ids, original.decode, texts)
    assert rebuilt.add_bos is False and rebuilt.ends == {11}


def test_the_arrays_of_a_gguf_file_give_the_same_ids(data: Path, texts: list[str]) -> None:
    fields = gguf.GGUFReader(data / "tiny-llama" / "llama-2-tiny-random.gguf").fields

    def array(key: str) -> list[Any]:
        field = fields[f"tokenizer.ggml.{key}"]
        return [field.parts[i].tobytes() if key == "tokens" else field.parts[i][0] for i in field.data]

    vocabulary = Vocabulary("bpe", array("tokens"), array("scores"), array("token_type"), unknown=0)
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary, bos=1, eos=2), {})
    original = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizers" / MODELS[0]))
    agree(tokenizer, original.encode, original.decode, texts)


def test_golden_ids_of_chatglm2_come_out(data: Path) -> None:
    """The golden cases that need nothing but a sentencepiece model; two special tokens stand before each."""
    tokenizer = of_file(data / "tokenizers" / "chatglm2-3-tokenizer.model")
    golden = json.loads((data / "tokenizers" / "VECTORS.json").read_text())
    cases = next(entry["cases"] for name, entry in golden.items() if name.startswith("chatglm2-6b"))
    for text, ids in cases:
        assert tokenizer.encode(text) == ids[2:]


def test_a_tokenizer_json_with_byte_fallback_decodes_as_its_library(small_model: bytes, texts: list[str]) -> None:
    """What transformers makes of a LLaMA tokenizer: BPE with merges, spaces put before by a normalizer."""
    model = read_model(small_model)
    ids = {name: i for i, name in enumerate(model.names)}
    merges = sorted((-model.scores[ids[name]], name[:i], name[i:]) for name, kind in zip(model.names, model.kinds,
                    strict=True) if kind == 1 for i in range(1, len(name)) if {name[:i], name[i:]} <= ids.keys())
    source: dict[str, Any] = {
        "version": "1.0", "padding": None,
        "truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "added_tokens": [{"id": i, "content": name, "special": True, "normalized": False, "lstrip": False,
                          "rstrip": False, "single_word": False} for i, name in enumerate(model.names[:3])],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": ids,
                  "merges": [f"{left} {right}" for _, left, right in merges]}}
    tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.json": json.dumps(source).encode()}), {})
    source["truncation"] = source["model"]["dropout"] = None
    original = tokenizers.Tokenizer.from_str(json.dumps(source))
    original.encode_special_tokens = True
    agree(tokenizer, lambda text: original.encode(text).ids, original.decode, texts)


def test_a_metaspace_decoder_gives_the_texts_of_its_library() -> None:
    pieces = ["<unk>", "▁", "▁▁a", "▁b", "b", "▁▁"]
    for scheme in ("always", "first", "never"):
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
        source = json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": metaspace, "post_processor": None, "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                      "vocab": [[piece, -1.0] for piece in pieces]}})
        tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.json": source.encode()}), {})
        original = tokenizers.Tokenizer.from_str(source)
        for ids in ([1], [2, 3], [3, 2], [4, 1, 3], [5, 5, 4], []):
            assert tokenizer.decode(ids) == original.decode(ids)


def test_a_prefix_space_is_put_before_the_whole_text_as_by_the_library(texts: list[str]) -> None:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("t", "he"), ("Ġt", "he")]
    pieces = [*letters, *map("".join, merges)]
    rule = PreTokenizer((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",), False, True)
    vocabulary = Vocabulary("bytes", [piece.encode() for piece in pieces], merges=list(map(" ".join, merges)),
                            pre_tokenizer="gpt-2")
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary), {"gpt-2": rule})
    original = tokenizers.Tokenizer(tokenizers.models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges))
    original.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    for text in texts:
        assert tokenizer.encode(text) == original.encode(text).ids, repr(text)


def test_a_space_is_put_before_a_text_only_where_the_vocabulary_says_so(small_model: bytes) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    arrays = arrays_of_model(original)
    with_space, without = (build_tokenizer(TokenizerMaterial(
        vocabulary=Vocabulary("bpe", **arrays, space_prefix=space)), {}) for space in (True, False))
    assert with_space.encode("cat") == without.encode(" cat") == original.encode("cat")
    assert with_space.decode(original.encode("cat")) == "cat"
    assert without.decode(original.encode("cat")) == " cat"


def test_a_lone_surrogate_is_encoded_as_the_replacement_character(small_model: bytes) -> None:
    tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.model": small_model}), {})
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_tokenizers_pickle_and_find_their_pieces(small_model: bytes, small_json: dict[str, Any]) -> None:
    for files in ({"tokenizer.model": small_model}, {"tokenizer.json": json.dumps(small_json).encode()}):
        tokenizer = build_tokenizer(TokenizerMaterial(files=files), {})
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode("the cat", bos=True) == tokenizer.encode("the cat", bos=True)
        assert all(tokenizer.find(tokenizer.name(i)) == i for i in range(tokenizer.size))
        assert tokenizer.find("no such piece") is None
