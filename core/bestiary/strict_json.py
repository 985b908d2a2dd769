"""JSON of a file that nobody vouches for: an object without duplicate keys, and no crash whatever it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bestiary.errors import BestiaryError, short
from bestiary.files import DataFile

SURROGATE = r"\\u[dD][89a-fA-F]"
LARGEST, LARGEST_LIST = 4 << 20, 64 << 20
"""Bytes of a file of settings, and of one that lists all pieces of a vocabulary or all tensors of a model."""
MOST_PARTS = 1 << 22
"""Objects, arrays and commas: each may become 200 bytes of memory. A vocabulary of 262,144 pieces and its merges, the
largest known, has half as many."""

DEEPEST = 64
"""Objects and arrays in one another; a tokenizer's steps nest five deep."""
MOST_DIGITS = 40
"""Of a whole number, its sign included: enough for any of 128 bits. Python's own words come at thousands."""


def parse_object(text: bytes | str, what: str, constants: bool = True, largest: int = LARGEST,
                 most: int = MOST_PARTS) -> dict[str, Any]:
    """The object. what: names the text in the error. constants: NaN and Infinity are allowed, as Python writes them.
    largest: bytes (or characters) of it. most: objects, arrays and commas."""
    if len(text) > largest:
        raise BestiaryError(f"{what} has {len(text)} bytes of JSON; up to {largest} are read")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        parts = sum(map(text.count, "{[,"))
        if parts > most:
            raise BestiaryError(f"{what} has {parts} objects, arrays and commas; up to {most} are read")
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_int=_whole,
                           parse_constant=None if constants else _no_constant)
        if re.search(SURROGATE, text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character could never be written again
    except UnicodeEncodeError:
        raise BestiaryError(f"{what} holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise BestiaryError(f"{what} nests too deeply") from None
    except MemoryError:
        raise BestiaryError(f"{what} does not fit into memory") from None
    except UnicodeDecodeError as error:
        raise BestiaryError(f"{what} is no UTF-8 text: byte {error.start} is wrong") from None
    except ValueError as error:  # bad syntax, a duplicate key, or a number of too many digits
        raise BestiaryError(f"{what} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BestiaryError(f"{what} holds {_kind(value)}; it must be an object")
    if _too_deep(value):
        raise BestiaryError(f"{what} nests too deeply")
    return value


def _too_deep(value: dict[str, Any]) -> bool:
    """Whether objects and arrays nest deeper than who walks through them later can follow, on any Python."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)
                 if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def read_object(path: Path, largest: int = LARGEST, most: int = MOST_PARTS) -> dict[str, Any]:
    """The object that a file holds. largest, most: as for parse_object."""
    file = DataFile(path)
    if file.size > largest:
        raise BestiaryError(f"{path} has {file.size} bytes; files of JSON like it are read up to {largest}")
    return parse_object(file.read(0, file.size), str(path), largest=largest, most=most)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {short(twice)} stands there twice")
    return result


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number has {len(digits)} digits; up to {MOST_DIGITS} are read")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
