"""The steps of a tokenizer.json, checked before the library sees them: where its memory ends, it ends the process."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

from bestiary.errors import BestiaryError, short
from bestiary.table_tokenizer import MAX_PIECE

NORMALIZERS = ("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
               "Prepend", "Replace", "Strip", "StripAccents")
PRE_TOKENIZERS = ("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace",
                  "Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit")
MOST_STEPS, DEEPEST = 64, 8
MOST_GROWTH = 256.0
"""How many times its length a text may take on the way. Normalization to one form (U+FDFA becomes 18 characters) and a
few replacements stay far below; three replacements of one letter by a thousand do not."""


def check_steps(data: Mapping[str, Any], what: str) -> None:
    """Raises BestiaryError for a step that is unknown or damaged, and where they make too much of a text."""
    growth = []
    for part, inner, known in (("normalizer", "normalizers", NORMALIZERS),
                               ("pre_tokenizer", "pretokenizers", PRE_TOKENIZERS)):
        steps = list(flat(data.get(part), inner, f"{what}: {part}"))
        if len(steps) > MOST_STEPS:
            raise BestiaryError(f"{what}: {part} has {len(steps)} steps; {MOST_STEPS} are the most")
        for step in steps:
            if step.get("type") not in known:
                raise BestiaryError(f"{what}: {part} {short(step.get('type'))} is not known; known: "
                                    f"{', '.join(known)}, Sequence")
            growth.append(growth_of(step, f"{what}: {part} {step['type']}"))
    check_growth(growth, f"{what}: normalizer")
    for step in flat(data.get("post_processor"), "processors", f"{what}: post_processor"):
        check_template(step, f"{what}: post_processor {step['type']}")


def check_template(step: Mapping[str, Any], what: str) -> None:
    """Raises BestiaryError where a template puts a token around a text that it does not explain: the library ends with
    words of its own on stderr."""
    known = step.get("special_tokens")
    for key in ("single", "pair"):
        pieces = step.get(key)
        for piece in pieces if isinstance(pieces, list) else ():
            match piece:
                case {"SpecialToken": {"id": name}} if not isinstance(known, dict) or name not in list(known):
                    raise BestiaryError(f"{what} puts {short(name)} around a text, which is none of its special_tokens")


def check_growth(growth: Iterable[float], what: str) -> None:
    factor = prod(growth)
    if factor > MOST_GROWTH:
        raise BestiaryError(f"{what} makes a text {factor:.4g} times as long; {MOST_GROWTH:g} times is the most")


def flat(step: Any, inner: str, what: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps, out of their nested sequences."""
    if step is None:
        return
    if not isinstance(step, dict) or not isinstance(step.get("type"), str) or depth > DEEPEST:
        raise BestiaryError(f"{what} has a step {short(step)}, which is not understood")
    if step["type"] != "Sequence":
        yield step
        return
    if not isinstance(step.get(inner), list):
        raise BestiaryError(f"{what}: a Sequence has no list of {inner}")
    for entry in step[inner]:
        yield from flat(entry, inner, what, depth + 1)


def growth_of(step: Mapping[str, Any], what: str) -> float:
    """How many times as long a text may become by the step."""
    match step:
        case {"type": "Precompiled", "precompiled_charsmap": charsmap}:
            return longest_replacement(charsmap, what)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return max(len(new) / len(old), 1.0)
        case {"type": "Replace", "content": str(new)}:
            return 1.0 + len(new)  # an expression may match where nothing is
        case {"type": "Prepend", "prepend": str(new)} if len(new) > MAX_PIECE:
            raise BestiaryError(f"{what} puts {len(new)} characters before a text; {MAX_PIECE} are the most")
        case {"type": "ByteLevel"}:
            return 2.0  # bytes are spelled as characters of two bytes at most
    return 1.0


def longest_replacement(charsmap: Any, what: str) -> float:
    """Of sentencepiece's precompiled map: u32 size, a trie of that many bytes, and texts that end in NULs."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise BestiaryError(f"{what}: precompiled_charsmap is no base64") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or size > len(data) - 4:
        raise BestiaryError(f"{what}: precompiled_charsmap claims a trie of {size} bytes and has {len(data)} in all")
    return float(max(map(len, data[4 + size:].split(b"\0"))) or 1)
