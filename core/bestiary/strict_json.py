"""JSON of a file that nobody vouches for: an object without duplicate keys, and no crash whatever it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bestiary.errors import BestiaryError
from bestiary.files import DataFile

SURROGATE = r"\\u[dD][89a-fA-F]"
LARGEST = 64 << 20
"""Bytes of a JSON file; tokenizer.json, the largest known, has 35 MB."""


def parse_object(text: bytes | str, what: str, constants: bool = True) -> dict[str, Any]:
    """The object. what: names the text in the error. constants: NaN and Infinity are allowed, as Python writes them."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=None if constants else _no_constant)
        if re.search(SURROGATE if isinstance(text, str) else SURROGATE.encode(), text):  # type: ignore[arg-type]
            json.dumps(value, ensure_ascii=False).encode()  # half a character could never be written again
    except UnicodeEncodeError:
        raise BestiaryError(f"{what} holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise BestiaryError(f"{what} nests too deeply") from None
    except UnicodeDecodeError as error:
        raise BestiaryError(f"{what} is no UTF-8 text: byte {error.start} is wrong") from None
    except ValueError as error:  # bad syntax, a duplicate key, or a number of more digits than Python converts
        raise BestiaryError(f"{what} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BestiaryError(f"{what} holds {_kind(value)}; it must be an object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    file = DataFile(path)
    if file.size > LARGEST:
        raise BestiaryError(f"{path} has {file.size} bytes; JSON files of up to {LARGEST} are read")
    return parse_object(file.read(0, file.size), str(path))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} stands there twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
