"""A tokenizer's original files as arrays: pieces, scores, kinds and merges, as llama.cpp wants them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError

from bestiary_plugins.loaders import sentencepiece_model
from bestiary_plugins.loaders.strict_json import parse_object

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE, NEVER_MERGED = -1000.0, -1e6
MOST_PIECES = 1 << 22

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
GPT2 = "byte level"  # stands for the pattern that the pre-tokenizer ByteLevel has built in
PRE_TOKENIZERS = {
    (GPT2,): "gpt-2",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
    (BLOOM,): "bloom",
    ("punctuation Contiguous", GPT2, "digits", "[0-9][0-9][0-9]"): "falcon",
}
"""The steps of a pre-tokenizer -> llama.cpp's name for it."""


@dataclass(frozen=True)
class Arrays:
    """A vocabulary and the rest of what llama.cpp is told about it."""

    vocabulary: Vocabulary
    pad: int | None = None
    remove_extra_spaces: bool | None = None
    charsmap: bytes = b""


def arrays_of(material: TokenizerMaterial, pre_tokenizers: Mapping[str, tuple[str, ...]]) -> Arrays | None:
    """The arrays of a tokenizer: those it came with, else those of its files. None where it has neither.

    pre_tokenizers: name -> patterns, of families whose pre-tokenizers are not in the table here.
    """
    if material.vocabulary is not None:
        vocabulary = material.vocabulary
        arrays = Arrays(vocabulary if vocabulary.kinds else replace(vocabulary, kinds=guessed_kinds(vocabulary, material)))
        if vocabulary.algorithm == "unigram" and "tokenizer.model" in material.files:
            model = sentencepiece_model.parse(material.files["tokenizer.model"], "tokenizer.model")
            return replace(arrays, remove_extra_spaces=model.remove_extra_spaces, charsmap=model.charsmap)
        return arrays
    if "tokenizer.model" in material.files:
        return from_sentencepiece(material)
    if "tokenizer.json" in material.files:
        return from_tokenizer_json(material.files["tokenizer.json"], pre_tokenizers)
    return None


def guessed_kinds(vocabulary: Vocabulary, material: TokenizerMaterial) -> list[int]:
    """Kinds for a vocabulary that has none: bytes by their spelling, and what is known to be special."""
    special = {vocabulary.unknown: UNKNOWN, material.bos: CONTROL, material.eos: CONTROL}
    return [special.get(i) or (BYTE if re.fullmatch(rb"<0x[0-9A-Fa-f]{1,2}>", piece) else NORMAL)
            for i, piece in enumerate(vocabulary.pieces)]


def from_sentencepiece(material: TokenizerMaterial) -> Arrays:
    """Of tokenizer.model, and of the tokens that tokenizer_config.json and added_tokens.json add to it."""
    model = sentencepiece_model.parse(material.files["tokenizer.model"], "tokenizer.model")
    pieces, scores, kinds = list(model.pieces), list(model.scores), list(model.kinds)
    for token, (content, special) in sorted(added_tokens(material.files).items()):
        if token > MOST_PIECES:
            raise BestiaryError(f"the added token {content!r} has the id {token}; {MOST_PIECES} is the largest")
        for i in range(len(pieces), token + 1):  # ids between are unused
            pieces.append(f"[PAD{i}]".encode())
            scores.append(ADDED_SCORE)
            kinds.append(UNUSED)
        if token >= len(model.pieces) or (pieces[token] == content.encode() and kinds[token] == NORMAL and special):
            pieces[token], kinds[token] = content.encode(), CONTROL if special else USER_DEFINED
    unigram = model.algorithm == "unigram"
    return Arrays(
        Vocabulary(model.algorithm, pieces, scores, kinds, space_prefix=model.space_prefix,
                   unknown=model.unknown if model.unknown < len(pieces) else None, pre_tokenizer="default"),
        model.pad, model.remove_extra_spaces if unigram else None, model.charsmap if unigram else b"")


def added_tokens(files: Mapping[str, bytes]) -> dict[int, tuple[str, bool]]:
    """id -> (spelling, whether it is special), of the settings beside a tokenizer."""
    found: dict[int, tuple[str, bool]] = {}
    if "added_tokens.json" in files:
        for content, token in parse_object(files["added_tokens.json"], "added_tokens.json").items():
            found[checked_id(token, content)] = (content, False)
    if "tokenizer_config.json" in files:
        decoder = parse_object(files["tokenizer_config.json"], "tokenizer_config.json").get("added_tokens_decoder")
        for key, entry in (decoder if isinstance(decoder, dict) else {}).items():
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not key.isdecimal():
                raise BestiaryError(f"tokenizer_config.json: the added token {key!r} is not understood")
            found[checked_id(int(key), entry["content"])] = (entry["content"], bool(entry.get("special")))
    return found


def checked_id(value: Any, content: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_PIECES:
        raise BestiaryError(f"the token {content!r} has the id {value!r}; it must be an integer below {MOST_PIECES}")
    return value


def from_tokenizer_json(data: bytes, pre_tokenizers: Mapping[str, tuple[str, ...]]) -> Arrays:
    """Of tokenizer.json: byte-level BPE, BPE with byte fallback, unigram."""
    root = parse_object(data, "tokenizer.json")
    model = root.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("BPE", "Unigram"):
        raise BestiaryError(f"tokenizer.json holds a model of type {kind!r}; known: BPE, Unigram")
    scores: dict[str, float] = {}
    if kind == "Unigram":
        entries = model.get("vocab")
        try:
            scores = {piece: float(score) for piece, score in entries}  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise BestiaryError("tokenizer.json: the vocabulary is not understood") from None
        ids = {piece: i for i, piece in enumerate(scores)}
        if len(ids) != len(entries):  # type: ignore[arg-type]
            raise BestiaryError("tokenizer.json: a piece stands twice in the vocabulary")
    else:
        ids = model.get("vocab")
        if not isinstance(ids, dict):
            raise BestiaryError("tokenizer.json: the vocabulary is not understood")
    by_id = {checked_id(token, piece): (piece, NORMAL) for piece, token in ids.items()}
    unknown = model.get("unk_id") if kind == "Unigram" else ids.get(model.get("unk_token") or "")
    for entry in root.get("added_tokens") or ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise BestiaryError("tokenizer.json: an added token is not understood")
        by_id[checked_id(entry.get("id"), entry["content"])] = (
            entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    if isinstance(unknown, int) and unknown in by_id:
        by_id[unknown] = (by_id[unknown][0], UNKNOWN)
    table = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(max(by_id, default=-1) + 1)]
    pieces, kinds = [piece.encode() for piece, _ in table], [kind for _, kind in table]
    unknown = unknown if isinstance(unknown, int) and unknown < len(table) else None
    if kind == "Unigram":
        return Arrays(Vocabulary("unigram", pieces, [scores.get(piece, ADDED_SCORE) for piece, _ in table], kinds,
                                 pre_tokenizer="default", unknown=unknown), remove_extra_spaces=False)
    merges = [pair_of(merge) for merge in model.get("merges") or ()]
    if not byte_level(root):
        ranks = {left + right: -float(i) for i, (left, right) in reversed(list(enumerate(merges)))}
        kinds = [BYTE if kind == NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", piece) else kind for piece, kind in table]
        return Arrays(Vocabulary("bpe", pieces, [ranks.get(piece, NEVER_MERGED) for piece, _ in table], kinds,
                                 pre_tokenizer="default", unknown=unknown, space_prefix=prepends_space(root)))
    # A space inside a part would read as the border between the two; the byte-level alphabet spells it Ġ.
    joined = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
    return Arrays(Vocabulary("bytes", pieces, (), kinds, joined, pre_tokenizer_name(root, pre_tokenizers), False, unknown))


def pair_of(merge: Any) -> tuple[str, str]:
    """Both parts of a merge, which is written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise BestiaryError(f"tokenizer.json: the merge {merge!r} is not understood")
    return parts[0], parts[1]


def steps(entry: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, out of their nested sequences."""
    if not isinstance(entry, dict):
        return []
    inner = [entry[name] for name in ("pretokenizers", "normalizers", "decoders") if isinstance(entry.get(name), list)]
    return [step for parts in inner for part in parts for step in steps(part)] if inner else [entry]


def byte_level(root: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for part in ("pre_tokenizer", "decoder") for step in steps(root.get(part)))


def prepends_space(root: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
               for part in ("normalizer", "pre_tokenizer") for step in steps(root.get(part)))


def pre_tokenizer_name(root: Mapping[str, Any], others: Mapping[str, tuple[str, ...]]) -> str:
    """llama.cpp's name for what splits the text before the merges; "default" where nobody knows it."""
    found = []
    for step in steps(root.get("pre_tokenizer")):
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)} | {"String": str(pattern)}}:
                found.append(pattern)
            case {"type": "Punctuation"}:
                found.append(f"punctuation {step.get('behavior')}")
            case {"type": "Digits", "individual_digits": bool(single)}:
                found.append(r"\p{N}" if single else "digits")
            case {"type": "ByteLevel", "use_regex": False}:
                pass
            case {"type": "ByteLevel"}:
                found.append(GPT2)
            case _:
                found.append(json.dumps(step))
    by_patterns = {**{patterns: name for name, patterns in others.items()}, **PRE_TOKENIZERS}
    return by_patterns.get(tuple(found), "default")
