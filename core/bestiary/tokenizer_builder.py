"""What a checkpoint says about its tokenizer -> the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from bestiary import library_tokenizer, sentencepiece_tokenizer
from bestiary.architecture import PreTokenizer
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.rank_list import is_rank_list
from bestiary.sentencepiece_model import ALGORITHMS
from bestiary.tokenizer import Tokenizer


def build_tokenizer(material: TokenizerMaterial, pre_tokenizers: Mapping[str, PreTokenizer]) -> Tokenizer:
    """The tokenizer of the material; it pickles as this call. Raises BestiaryError for what is damaged, absent or not
    understood."""
    return _built(material, pre_tokenizers).pickled_as(build_tokenizer, material, pre_tokenizers)


def _built(material: TokenizerMaterial, pre_tokenizers: Mapping[str, PreTokenizer],
           ) -> sentencepiece_tokenizer.SentencePieceTokenizer | library_tokenizer.LibraryTokenizer:
    file = _file(material)
    if file == "tokenizer.model":
        return sentencepiece_tokenizer.from_file(material.files[file], material)
    if file == "tokenizer.json":
        return library_tokenizer.from_json(material.files[file], material)
    vocabulary = _vocabulary(material)
    if vocabulary.algorithm == "bytes":
        return library_tokenizer.from_vocabulary(vocabulary, material, pre_tokenizers)
    return sentencepiece_tokenizer.from_vocabulary(vocabulary, material)


def _file(material: TokenizerMaterial) -> str | None:
    """The file that counts. Where a folder has both, the sentencepiece model does: it is what the model was trained
    with, and tokenizer.json a conversion of it that agrees on most texts, not on all (repeated scores, runs of spaces,
    control characters). What only tokenizer.json knows, its added tokens, is taken from there too. A tokenizer.model
    that is a list of ranks has no sentencepiece in it; tokenizer.json beside it says the same."""
    files = material.files
    if "tokenizer.model" in files and not is_rank_list(files["tokenizer.model"]):
        return "tokenizer.model"
    if "tokenizer.json" in files:
        return "tokenizer.json"
    if "tokenizer.model" in files and material.vocabulary is None:
        raise BestiaryError("tokenizer.model is a list of BPE ranks (tiktoken's form) of no known family; use a folder "
                            "that has tokenizer.json")
    return None


def _vocabulary(material: TokenizerMaterial) -> Vocabulary:
    vocabulary = material.vocabulary
    if vocabulary is None:
        raise BestiaryError("the checkpoint has no tokenizer; give one with --tokenizer FILE")
    known = (*ALGORITHMS, "bytes")
    if vocabulary.algorithm not in known:
        raise BestiaryError(f"unknown vocabulary algorithm {vocabulary.algorithm[:80]!r}; known: {', '.join(known)}")
    return vocabulary
