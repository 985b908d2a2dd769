"""A tokenizer's original files as arrays: pieces, scores, kinds and merges, as llama.cpp wants them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bestiary.architecture import PreTokenizer
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError, short
from bestiary.rank_list import is_rank_list
from bestiary.sentencepiece_model import (
    ALGORITHMS,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_model,
)
from bestiary.strict_json import LARGEST_LIST, parse_object
from bestiary.table_tokenizer import MAX_PIECES
from bestiary.tokenizer_settings import added_tokens, listed_tokens, special_spellings
from bestiary_plugins.architectures.pre_tokenizers import DIGITS, GPT2, PUNCTUATION

ADDED_SCORE = -1000.0
NEVER_MERGED = -1e6
"""Below every merge: llama.cpp merges letters to special tokens too, where nothing better is left."""


def arrays_of(material: TokenizerMaterial, pre_tokenizers: Mapping[str, PreTokenizer]) -> Vocabulary | None:
    """The arrays of a tokenizer: those it came with, else those of the file that counts. None where it has neither.

    pre_tokenizers: name -> rule, as families know them.
    """
    files, vocabulary = material.files, material.vocabulary
    if vocabulary is not None:
        return vocabulary if vocabulary.kinds else replace(vocabulary, kinds=guessed_kinds(vocabulary, material))
    if "tokenizer.model" in files and not is_rank_list(files["tokenizer.model"]):
        return from_sentencepiece(files)
    if "tokenizer.json" in files:
        return from_tokenizer_json(files["tokenizer.json"], pre_tokenizers)
    return None


def guessed_kinds(vocabulary: Vocabulary, material: TokenizerMaterial) -> list[int]:
    """Kinds for a vocabulary that has none: bytes by their spelling, and what is known to be special."""
    special = {vocabulary.unknown: UNKNOWN, material.bos: CONTROL, material.eos: CONTROL}
    return [special.get(i) or (BYTE if re.fullmatch(rb"<0x[0-9A-Fa-f]{1,2}>", piece) else NORMAL)
            for i, piece in enumerate(vocabulary.pieces)]


def from_sentencepiece(files: Mapping[str, bytes]) -> Vocabulary:
    """Of tokenizer.model, and of the tokens that the settings beside it add to it or make special."""
    model = read_model(files["tokenizer.model"])
    pieces, scores, kinds = [name.encode() for name in model.names], list(model.scores), list(model.kinds)
    for token in sorted(added_tokens(files).values(), key=lambda token: token.id):
        for i in range(len(pieces), token.id + 1):  # ids that nothing names are unused
            pieces.append(unused(i).encode())
            scores.append(NEVER_MERGED)
            kinds.append(UNUSED)
        if kinds[token.id] in (NORMAL, UNUSED) or pieces[token.id] != token.text.encode():
            pieces[token.id], kinds[token.id] = token.text.encode(), CONTROL if token.special else USER_DEFINED
    special = {name.encode() for name in special_spellings(files)}
    kinds = [CONTROL if kind == NORMAL and piece in special else kind
             for piece, kind in zip(pieces, kinds, strict=True)]
    algorithm = next((name for name, code in ALGORITHMS.items() if code == model.algorithm), None)
    if algorithm is None:
        raise BestiaryError(f"tokenizer.model is of sentencepiece's model type {model.algorithm}; known: 1 (unigram), "
                            "2 (bpe)")
    return Vocabulary(algorithm, pieces, scores, kinds, space_prefix=model.dummy_prefix, charsmap=model.charsmap,
                      squeeze_spaces=model.squeeze_spaces, pre_tokenizer="default",
                      unknown=kinds.index(UNKNOWN) if UNKNOWN in kinds else None)


def unused(token: int) -> str:
    """The spelling of an id that stands for nothing, as llama.cpp's converter writes it."""
    return f"[PAD{token}]"


def checked_id(value: Any, content: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_PIECES:
        raise BestiaryError(f"the token {short(content)} has the id {short(value)}; it must be an integer "
                            f"below {MAX_PIECES}")
    return value


def from_tokenizer_json(data: bytes, pre_tokenizers: Mapping[str, PreTokenizer]) -> Vocabulary:
    """Of tokenizer.json: byte-level BPE, BPE with byte fallback, unigram."""
    root = parse_object(data, "tokenizer.json", largest=LARGEST_LIST)
    model = root.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("BPE", "Unigram"):
        raise BestiaryError(f"tokenizer.json holds a model of type {short(kind)}; known: BPE, Unigram")
    scores = unigram_scores(model.get("vocab")) if kind == "Unigram" else {}
    ids = {piece: i for i, piece in enumerate(scores)} if kind == "Unigram" else model.get("vocab")
    if not isinstance(ids, dict):
        raise BestiaryError("tokenizer.json: the vocabulary is not understood")
    by_id = {checked_id(token, piece): (piece, NORMAL) for piece, token in ids.items()}
    unknown = model.get("unk_id") if kind == "Unigram" else ids.get(model.get("unk_token"))
    for token in listed_tokens(root):
        by_id[token.id] = (token.text, CONTROL if token.special else USER_DEFINED)
    if isinstance(unknown, int) and unknown in by_id:
        by_id[unknown] = (by_id[unknown][0], UNKNOWN)
    table = [by_id.get(i, (unused(i), UNUSED)) for i in range(max(by_id, default=-1) + 1)]
    pieces, kinds = [piece.encode() for piece, _ in table], [kind for _, kind in table]
    unknown = unknown if isinstance(unknown, int) and unknown < len(table) else None
    if kind == "Unigram":
        return Vocabulary("unigram", pieces, [scores.get(piece, ADDED_SCORE) for piece, _ in table], kinds,
                          pre_tokenizer="default", unknown=unknown)
    given = model.get("merges") or []
    if not isinstance(given, list):
        raise BestiaryError("tokenizer.json: the merges are no list")
    merges = [pair_of(merge) for merge in given]
    if not byte_level(root):
        ranks = {left + right: -float(i) for i, (left, right) in reversed(list(enumerate(merges)))}
        kinds = [BYTE if kind == NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", piece) else kind for piece, kind in table]
        return Vocabulary("bpe", pieces, [ranks.get(piece, NEVER_MERGED) for piece, _ in table], kinds,
                          pre_tokenizer="default", unknown=unknown, space_prefix=prepends_space(root))
    # A space inside a part would read as the border between the two; the byte-level alphabet spells it Ġ.
    joined = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
    return Vocabulary("bytes", pieces, (), kinds, joined, pre_tokenizer_name(root, pre_tokenizers), False, unknown)


def unigram_scores(entries: Any) -> dict[str, float]:
    """piece -> score, in the order of ids, of a unigram model's list of pairs."""
    try:
        scores = {piece: float(score) for piece, score in entries}
    except (TypeError, ValueError):
        raise BestiaryError("tokenizer.json: the vocabulary is not understood") from None
    if len(scores) != len(entries) or not all(isinstance(piece, str) for piece in scores):
        raise BestiaryError("tokenizer.json: a piece of the vocabulary stands there twice or is no text")
    return scores


def pair_of(merge: Any) -> tuple[str, str]:
    """Both parts of a merge, which is written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise BestiaryError(f"tokenizer.json: the merge {short(merge)} is not understood")
    return parts[0], parts[1]


def steps(entry: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, out of their nested sequences."""
    if not isinstance(entry, dict):
        return []
    inner = [entry[name] for name in ("pretokenizers", "normalizers", "decoders") if isinstance(entry.get(name), list)]
    return [step for parts in inner for part in parts for step in steps(part)] if inner else [entry]


def byte_level(root: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel"
               for part in ("pre_tokenizer", "decoder") for step in steps(root.get(part)))


def prepends_space(root: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "Prepend"
               or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
               for part in ("normalizer", "pre_tokenizer") for step in steps(root.get(part)))


def pre_tokenizer_name(root: Mapping[str, Any], known: Mapping[str, PreTokenizer]) -> str:
    """The name of what splits the text before the merges; "default" where nobody knows it. Of rules with the same
    patterns the one that treats whole pieces alike, if there is one."""
    found: list[str] = []
    for step in steps(root.get("pre_tokenizer")):
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)} | {"String": str(pattern)}}:
                found.append(pattern)
            case {"type": "Punctuation", "behavior": "Contiguous"}:
                found.append(PUNCTUATION)
            case {"type": "Digits", "individual_digits": bool(single)}:
                # after ByteLevel, digits of other scripts are spelled in letters
                found.append(r"\p{N}" if single else DIGITS if GPT2 in found else r"\p{N}+")
            case {"type": "ByteLevel", "use_regex": False}:
                pass
            case {"type": "ByteLevel"}:
                found.append(GPT2)
            case _:
                found.append(json.dumps(step))
    names = [name for name, rule in known.items() if rule.patterns == tuple(found)]
    whole = bool(root["model"].get("ignore_merges"))
    return next((name for name in names if known[name].ignore_merges == whole), next(iter(names), "default"))
