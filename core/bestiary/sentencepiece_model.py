"""The few fields of sentencepiece's model file that matter here, read and written.

Source: sentencepiece's src/sentencepiece_model.proto. A file is a protobuf message: (number << 3 | wire type, value)
pairs in any order; of a field that stands twice the last counts, and messages merge.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bestiary.errors import BestiaryError
from bestiary.table_tokenizer import MAX_PIECES, byte_of, checked_name
from bestiary.tokenizer_settings import refuse_pointer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ALGORITHMS = {"unigram": 1, "bpe": 2}
SPACE = "\u2581"
"""How a space is spelled in a piece."""
WHAT = "tokenizer.model"


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces with their scores and kinds (numbers of sentencepiece's), and how text is prepared for them.

    algorithm: trainer_spec.model_type. charsmap: the normalizer's compiled table of replacements. rest: the fields
    that are not pieces, as they stand in the file.
    """

    names: list[str]
    scores: list[float]
    kinds: list[int]
    rest: bytes
    algorithm: int = 1
    byte_fallback: bool = False
    unknown_surface: str = " \u2047 "
    dummy_prefix: bool = True
    squeeze_spaces: bool = True
    escape_spaces: bool = True
    charsmap: bytes = b""


def read_model(data: bytes) -> SentencePieceModel:
    """Raises BestiaryError for what is not a sentencepiece model, or a damaged one."""
    refuse_pointer(data, WHAT)
    names: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    rest = bytearray()
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}  # trainer_spec and normalizer_spec
    try:
        for number, wire, value in _fields(data):
            if number == 1 and wire == 2:
                piece, score, kind = _piece(value)
                names.append(checked_name(piece, len(names), WHAT))
                scores.append(score)
                kinds.append(kind)
            else:
                rest += _field(number, wire, value)
                if number in specs and wire == 2:
                    specs[number].update((field, content) for field, _, content in _fields(value))
    except (IndexError, struct.error):
        raise BestiaryError(f"{WHAT} is not a sentencepiece model, or it is truncated or damaged") from None
    check_pieces(names, scores, kinds, WHAT)
    trainer, normalizer = specs[2], specs[3]
    surface, charsmap = trainer.get(44, b" \xe2\x81\x87 "), normalizer.get(2, b"")
    if not isinstance(surface, bytes) or not isinstance(charsmap, bytes):
        raise BestiaryError(f"{WHAT} is not a sentencepiece model, or it is damaged")
    return SentencePieceModel(
        names, scores, kinds, bytes(rest), trainer.get(3, 1), bool(trainer.get(35, 0)),
        surface.decode("utf-8", "replace"), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)),
        bool(normalizer.get(5, 1)), charsmap)


def write_model(names: Sequence[str], scores: Sequence[float], kinds: Sequence[int], rest: bytes) -> bytes:
    """The file of these pieces. A spelling that stands twice is the last one's; those before it and empty ones, which
    the library refuses, become control pieces with spellings of their own, so that no text becomes them. So does a NUL
    beside byte pieces, which the library never takes, and complains of."""
    spelled = [f"<0x{byte_of(name):02X}>" if kind == BYTE else name for name, kind in zip(names, kinds, strict=True)]
    latest = {name: i for i, name in enumerate(spelled)}
    kinds, unspoken = list(kinds), {"", "\0"} if BYTE in kinds else {""}
    if len(latest) < len(spelled) or unspoken & latest.keys():
        for i, name in enumerate(spelled):
            if name in unspoken or latest[name] != i:
                spelled[i] = f"<piece {i} of {len(names)}>"
                while spelled[i] in latest:
                    spelled[i] += ">"
                kinds[i] = kinds[i] if kinds[i] == UNKNOWN else CONTROL
    numbers, data = struct.pack(f"<{len(names)}f", *scores), bytearray()
    for i, (name, kind) in enumerate(zip(spelled, kinds, strict=True)):
        piece, score = name.encode(), numbers[4 * i:4 * i + 4]
        size = len(piece)
        data += (b"\n%c\n%c%b\x15%b\x18%c" % (size + 9, size, piece, score, kind) if size < 119 else
                 _field(1, 2, _field(1, 2, piece) + b"\x15" + score + _field(3, 0, kind)))
    return bytes(data) + rest


def write_specs(algorithm: int, byte_fallback: bool, dummy_prefix: bool, squeeze_spaces: bool,
                charsmap: bytes) -> bytes:
    """The fields beside the pieces: the `rest` of a model."""
    trainer = _field(3, 0, algorithm) + _field(35, 0, int(byte_fallback))
    normalizer = _field(1, 2, b"user_defined" if charsmap else b"identity")
    normalizer += _field(2, 2, charsmap) if charsmap else b""
    normalizer += _field(3, 0, int(dummy_prefix)) + _field(4, 0, int(squeeze_spaces)) + _field(5, 0, 1)
    return _field(2, 2, trainer) + _field(3, 2, normalizer)


def check_pieces(names: Sequence[str], scores: Sequence[float], kinds: Sequence[int], what: str) -> None:
    """Raises BestiaryError where pieces are too few or many, or a score or kind is none."""
    if not 0 < len(names) <= MAX_PIECES:
        raise BestiaryError(f"{what}: {len(names)} pieces; between 1 and {MAX_PIECES} make sense")
    if not all(map(math.isfinite, scores)):
        i = next(i for i, score in enumerate(scores) if not math.isfinite(score))
        raise BestiaryError(f"{what}: the score of piece {i} is {scores[i]}")
    for i, kind in enumerate(kinds):
        if kind == NORMAL:
            continue
        if not NORMAL <= kind <= BYTE:
            raise BestiaryError(f"{what}: piece {i} is of kind {kind}; known: 1 to 6")
        if kind == BYTE and byte_of(names[i]) is None:
            raise BestiaryError(f"{what}: byte piece {i} is spelled {names[i][:20]!r} and not like <0x0A>")


def _piece(data: bytes) -> tuple[bytes, float, int]:
    """piece, score, kind of a record."""
    size = data[1] if len(data) > 1 else 0
    if size < 128 and len(data) >= size + 7 and data[0] == 10 and data[size + 2] == 21:  # as the library writes them
        (score,) = struct.unpack_from("<f", data, size + 3)
        if len(data) == size + 7:
            return data[2:size + 2], score, NORMAL
        if len(data) == size + 9 and data[-2] == 24:
            return data[2:size + 2], score, data[-1]
    piece, score, kind = b"", 0.0, NORMAL
    for number, wire, value in _fields(data):
        if (number, wire) == (1, 2):
            piece = value
        elif (number, wire) == (2, 5):
            (score,) = struct.unpack("<f", value)
        elif (number, wire) == (3, 0):
            kind = value
    return piece, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value); IndexError where the data ends early or is no protobuf."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: Any
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError
        if size > end - at or not number:
            raise IndexError
        yield number, wire, data[at:at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _written_varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _field(number: int, wire: int, value: Any) -> bytes:
    key = _written_varint(number << 3 | wire)
    if wire == 0:
        return key + _written_varint(value)
    return key + (_written_varint(len(value)) if wire == 2 else b"") + bytes(value)
