"""The vocabulary of a LLaMA file before GGUF, as sentencepiece's pieces again.

The converters of llama.cpp wrote what a piece looks like when it is printed: a space for each U+2581, byte pieces as
their byte, control pieces as nothing, the unknown piece as " U+2047 ". Those of the summer of 2023 that wrote a
vocabulary alone kept the spelling. Scores are there from 20 March 2023 on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from bestiary.checkpoint import Vocabulary
from bestiary.sentencepiece_model import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN

NAMES = (b"<unk>", b"<s>", b"</s>")
PRINTED = (" \u2047 ".encode(), b"", b"")
REPLACED = "\ufffd".encode()
"""What the first converter wrote for every byte piece that is no character by itself."""
FIRST_MERGE = 259
LLAMA = 32000
"""Pieces of LLaMA's own vocabulary; what its descendants added comes after them."""
SPACES_SCORE = -1e9
ADDED_SCORES = (0.0, -1000.0)
"""Of tokens that were added to the vocabulary: of the first converters, and of the later."""
MARKED = re.compile(rb"<[^<> ]+>|\[[^\[\] ]+\]")
"""How tokens are spelled that stand for no text."""


class Rebuilt(NamedTuple):
    """The vocabulary, and what had to be guessed or restored, in words. replaced: whether byte pieces were."""

    vocabulary: Vocabulary
    lacks: tuple[str, ...]
    replaced: bool


def is_llamas(pieces: Sequence[bytes]) -> bool:
    """Whether the vocabulary begins as that of a sentencepiece model does in these files."""
    return len(pieces) >= 3 and tuple(pieces[:3]) in (NAMES, PRINTED)


def rebuilt(pieces: Sequence[bytes], scores: Sequence[float]) -> Rebuilt:
    """scores: empty where the file has none; LLaMA's follow from the ids."""
    lacks = []
    if not scores:
        scores = [guessed_score(i, piece) for i, piece in enumerate(pieces)]
        lacks.append("scores of the vocabulary (taken as LLaMA's are, by the ids)")
    first = first_byte_piece(pieces)
    bytes_at = range(first, first + 256) if first is not None else range(0)
    replaced = any(pieces[i] == REPLACED for i in bytes_at)
    if replaced:
        lacks.append("the byte pieces from 0x80 on, written as U+FFFD (taken by the ids)")
    names, kinds, space = [], [], SPACE.encode()
    for i, piece in enumerate(pieces):
        if i < 3 and piece in (NAMES[i], PRINTED[i]):
            names.append(NAMES[i])
            kinds.append(CONTROL if i else UNKNOWN)
        elif i in bytes_at:
            names.append(b"<0x%02X>" % (i - bytes_at.start))
            kinds.append(BYTE)
        else:
            names.append(piece.replace(b" ", space))
            added = i > FIRST_MERGE and scores[i] in ADDED_SCORES and MARKED.fullmatch(piece)
            kinds.append(CONTROL if added or not piece else NORMAL)
    return Rebuilt(Vocabulary("bpe", names, scores, kinds, unknown=0), tuple(lacks), replaced)


def guessed_score(i: int, piece: bytes) -> float:
    """LLaMA's: by the order of merging; runs of spaces come last. Its descendants gave 0 to what they added."""
    if i < FIRST_MERGE or i >= LLAMA:
        return 0.0
    return SPACES_SCORE if not piece.strip(b" ") else float(FIRST_MERGE - i)


def first_byte_piece(pieces: Sequence[bytes]) -> int | None:
    """The id of the piece for byte 0, where those of all other bytes follow; None where there is no such run."""
    for i in range(min(len(pieces) - 255, FIRST_MERGE)):
        if pieces[i] in (b"\0", b"<0x00>") and all(
                pieces[i + byte] in (bytes([byte]), b"<0x%02X>" % byte)
                or byte > 127 and pieces[i + byte] == REPLACED for byte in range(256)):
            return i
    return None
