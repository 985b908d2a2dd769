"""A text that knows which of its characters came from a message, through everything a template does to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex


class Marked(str):
    """marks: a byte for each character, 1 where it came from a message. What a template cuts out of such a text, or
    puts together from it, keeps its marks; an operation not known here loses them, so whoever calls one marks the
    whole of its result (see `given`)."""

    __slots__ = ("marks",)
    marks: bytes

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        part = slice(key.__index__(), (key.__index__() + 1) or None) if isinstance(key, SupportsIndex) else key
        return marked(str.__getitem__(self, key), self.marks[part])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def marked(text: str, marks: bytes) -> str:
    """The text with its marks; a plain one where nothing of it came from a message."""
    if 1 not in marks:
        return str.__str__(text)
    made = Marked(text)
    made.marks = marks
    return made


def given(text: str) -> str:
    """The text, all of it from a message."""
    return marked(text, b"\x01" * len(text))


def marks_of(text: str) -> bytes:
    return text.marks if isinstance(text, Marked) else bytes(len(text))


def runs(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces: (piece, whether it came from a message)."""
    for run in re.finditer(rb"\x00+|\x01+", marks_of(text)):
        yield str.__str__(text)[run.start():run.end()], run[0][0] == 1


def joined(pieces: Iterable[str], between: str = "") -> str:
    pieces = list(pieces)
    return marked(str.__str__(between).join(pieces), marks_of(between).join(map(marks_of, pieces)))


def _parts(text: str, parts: Iterable[str], gap: int = 0) -> list[str]:
    """The marked parts of a text that was split; gap: the characters between two that are no part."""
    found, at = [], -gap
    for part in parts:
        at = str.index(text, part, at + gap)
        found.append(text[at:at + len(part)])
        at += len(part)
    return found


def lstrip(text: str, chars: str | None = None) -> str:
    return text[len(text) - len(str.lstrip(text, chars)):]


def rstrip(text: str, chars: str | None = None) -> str:
    return text[:len(str.rstrip(text, chars))]


def strip(text: str, chars: str | None = None) -> str:
    return rstrip(lstrip(text, chars), chars)


def removeprefix(text: str, prefix: str) -> str:
    return text[len(prefix):] if text.startswith(prefix) else text


def removesuffix(text: str, suffix: str) -> str:
    return text[:len(text) - len(suffix)] if text.endswith(suffix) else text


def split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _parts(text, str.split(text, sep, maxsplit), len(sep or ""))


def rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _parts(text, str.rsplit(text, sep, maxsplit), len(sep or ""))


def splitlines(text: str, keepends: bool = False) -> list[str]:
    return _parts(text, str.splitlines(text, keepends))


def partition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_parts(text, str.partition(text, sep)))


def rpartition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_parts(text, str.rpartition(text, sep)))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    if not isinstance(text, Marked) and not isinstance(new, Marked):
        return str.replace(text, old, new, count)
    if not old:
        return given(str.replace(text, old, new, count))
    return joined(split(text, old, count), new)


def cased(change: Any) -> Any:
    """A change of letters that nearly always keeps their number."""
    def changed(text: str) -> str:
        made: str = change(text)
        marks = marks_of(text)
        return marked(made, marks) if len(made) == len(text) else given(made) if 1 in marks else made

    return changed


upper, lower, capitalize, title, swapcase = map(cased, (
    str.upper, str.lower, str.capitalize, str.title, str.swapcase))
