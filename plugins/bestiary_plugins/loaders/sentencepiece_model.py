"""What a sentencepiece model file says: the few fields of its protobuf message that a vocabulary is made of.

Source: google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bestiary.errors import BestiaryError

ALGORITHMS = {1: "unigram", 2: "bpe"}


@dataclass(frozen=True)
class SentencePieceModel:
    """pieces, scores, kinds: one a token. charsmap: the normalizer's table of replacements, b"" for none."""

    algorithm: str
    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    unknown: int
    pad: int | None
    space_prefix: bool
    remove_extra_spaces: bool
    charsmap: bytes


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number and value (an integer, or bytes; fixed numbers are bytes). Raises
    ValueError where it is not one."""
    at, end = 0, len(message)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("a number is cut off")
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number is too long")

    while at < end:
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} is unknown")
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if size > end - at:
            raise ValueError("a field is cut off")
        yield tag >> 3, message[at:at + size]
        at += size


def parse(data: bytes, what: str) -> SentencePieceModel:
    """The model in the bytes of a file. Raises BestiaryError where they hold none."""
    try:
        return _parse(data)
    except (ValueError, TypeError, struct.error) as error:
        raise BestiaryError(f"{what} is no sentencepiece model: {error}") from None


def _parse(data: bytes) -> SentencePieceModel:
    pieces, scores, kinds = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if number == 1:
            piece = dict(fields(_bytes(value)))
            pieces.append(_bytes(piece.get(1, b"")))
            scores.append(float(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]))
            kinds.append(_integer(piece.get(3, 1)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(fields(_bytes(value)))
    algorithm = _integer(trainer.get(3, 1))
    if not pieces or algorithm not in ALGORITHMS:
        raise ValueError("it has no pieces" if not pieces else f"its model type is {algorithm}")
    pad = _integer(trainer.get(43, (1 << 64) - 1))
    return SentencePieceModel(
        ALGORITHMS[algorithm], tuple(pieces), tuple(scores), tuple(kinds), _integer(trainer.get(40, 0)),
        pad if pad < len(pieces) else None, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)),
        _bytes(normalizer.get(2, b"")))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field has the wrong type")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field has the wrong type")
    return value
