"""Splitting rules by name: a vocabulary of arrays is cut as the tokenizer.json that it was made of."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from bestiary.checkpoint import TokenizerMaterial
from bestiary.host import Host
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.loaders.vocabulary_arrays import arrays_of

NAMES = ("llama-bpe", "qwen2", "gpt-2", "tekken", "bloom")
"""Of the rules whose vocabularies the test data does not have."""


def trained(pattern: str, texts: list[str], whole: bool) -> dict[str, Any]:
    """A tokenizer.json as the families' own: split by the pattern, then spelled as bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    root: dict[str, Any] = json.loads(tokenizer.to_str())
    root["model"]["ignore_merges"] = whole
    return root


@pytest.mark.parametrize("name", NAMES)
def test_arrays_with_the_name_give_the_ids_of_the_library(name: str, texts: list[str], host: Host) -> None:
    (pattern,), whole = host.pre_tokenizers[name].patterns, host.pre_tokenizers[name].ignore_merges
    root = json.dumps(trained(pattern, texts, whole))
    original = tokenizers.Tokenizer.from_str(root)
    vocabulary = arrays_of(TokenizerMaterial({"tokenizer.json": root.encode()}), host.pre_tokenizers)
    assert vocabulary is not None and vocabulary.pre_tokenizer == name
    bare = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary), host.pre_tokenizers)
    full = build_tokenizer(TokenizerMaterial({"tokenizer.json": root.encode()}), {})
    for text in texts:
        wanted = original.encode(text).ids
        assert bare.encode(text) == wanted == full.encode(text), repr(text)
        assert bare.decode(wanted) == original.decode(wanted), repr(text)


def test_blooms_expression_means_what_other_programs_write_for_it(texts: list[str], host: Host) -> None:
    """Its inner brackets are a class in a class, to Oniguruma; elsewhere the same text would mean something else."""
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # in Python \s is more than Unicode's
    elsewhere = re.compile(f" ?[^({space}|.,!?…。，、।۔،)]+")
    ours = pre_tokenizers.Split(Regex(host.pre_tokenizers["bloom"].patterns[0]), "isolated")
    for text in texts:
        wanted, at = [], 0
        for match in elsewhere.finditer(text):
            wanted += [text[at:match.start()], match[0]]
            at = match.end()
        assert [piece for piece, _ in ours.pre_tokenize_str(text)] == [piece for piece in (*wanted, text[at:]) if piece]


def test_a_normalizer_of_the_file_is_applied(texts: list[str], host: Host) -> None:
    """Qwen's tokenizer.json composes characters first; the arrays of a GGUF have no place for that."""
    root = trained(host.pre_tokenizers["qwen2"].patterns[0], texts, False)
    root["normalizer"] = json.loads(normalizers.NFC().__getstate__())
    original = tokenizers.Tokenizer.from_str(json.dumps(root))
    ours = build_tokenizer(TokenizerMaterial({"tokenizer.json": json.dumps(root).encode()}), {})
    assert original.encode("e\u0301").ids == original.encode("\u00e9").ids
    for text in texts:
        assert ours.encode(text) == original.encode(text).ids, repr(text)
