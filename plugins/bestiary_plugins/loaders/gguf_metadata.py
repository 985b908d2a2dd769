"""Metadata of a GGUF file: values by key, and getters that check what kind a value is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from bestiary.errors import BestiaryError

MOST_NUMBERS = 1 << 20
"""Of an array that becomes a list: one for each piece of a vocabulary is the longest known."""


@dataclass(frozen=True)
class Value:
    """A metadata value. kind: "u32", "str" ..., with "[]" for an array. Text is bytes, numbers in arrays numpy's."""

    kind: str
    value: Any


class Metadata(Mapping[str, Value]):
    """Metadata by key, with getters that check the kind. Each gives None where the key is missing, and raises
    BestiaryError, naming the key, where the value is of another kind."""

    def __init__(self, path: object, values: Mapping[str, Value]) -> None:
        self._path, self._values = path, values

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def wrong(self, key: str, why: str) -> BestiaryError:
        return BestiaryError(f"{self._path}: metadata {key} {why}")

    def _get(self, key: str, kinds: tuple[str, ...], wanted: str) -> Any:
        found = self._values.get(key)
        if found is None:
            return None
        if found.kind not in kinds:
            raise self.wrong(key, f"is {found.kind}; it must be {wanted}")
        return found.value

    def text(self, key: str) -> str | None:
        value = self._get(key, ("str",), "a string")
        return None if value is None else self._utf8(key, value)

    def integer(self, key: str, low: int = 0, high: int = (1 << 32) - 1) -> int | None:
        """Of whatever width it is stored in."""
        value = self._get(key, INTEGERS, "an integer")
        if value is not None and not low <= value <= high:
            raise self.wrong(key, f"is {value}; it must be from {low} to {high}")
        return None if value is None else int(value)

    def real(self, key: str) -> float | None:
        """A finite number; from 32 bits it gets the shortest decimal that means it (1e-05, not 9.99999974e-06)."""
        value = self._get(key, ("f32", "f64"), "a number")
        if value is not None and not isfinite(value):
            raise self.wrong(key, f"is {value}; it must be finite")
        return None if value is None else float(str(value))

    def flag(self, key: str) -> bool | None:
        value = self._get(key, ("bool",), "a boolean")
        return None if value is None else bool(value)

    def strings(self, key: str) -> list[bytes] | None:
        value: list[bytes] | None = self._get(key, ("str[]",), "an array of strings")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self.strings(key)
        if value is None:
            return None
        try:
            return list(map(bytes.decode, value))
        except UnicodeDecodeError:
            raise self.wrong(key, "holds what is no UTF-8 text") from None

    # Of an array of numbers the caller says how many there can be: a list takes forty times its bytes.

    def integers(self, key: str, count: int | None = None, most: int = MOST_NUMBERS) -> list[int] | None:
        """count: how many pieces it must match; most: the most there may be."""
        value = self._get(key, tuple(f"{kind}[]" for kind in INTEGERS), "an array of integers")
        if value is None:
            return None
        self._count(key, len(value), count, most)
        return list(value.tolist())

    def reals(self, key: str, count: int | None = None, most: int = MOST_NUMBERS) -> list[float] | None:
        value = self._get(key, ("f32[]", "f64[]"), "an array of numbers")
        if value is None:
            return None
        self._count(key, len(value), count, most)
        if not np.isfinite(value).all():
            raise self.wrong(key, "holds numbers that are not finite")
        return list(value.tolist())

    def flags(self, key: str) -> list[bool] | None:
        value = self._get(key, ("bool[]",), "an array of booleans")
        if value is None:
            return None
        self._count(key, len(value), None, MOST_NUMBERS)
        return [bool(item) for item in value.tolist()]

    def raw(self, key: str) -> bytes | None:
        value = self._get(key, ("u8[]", "i8[]"), "an array of bytes")
        return None if value is None else bytes(value.tobytes())

    def get_kind(self, key: str, kind: str) -> Any:
        """The value as `kind` ("u32", "f32", "bool", "str", or an array of them) wants it in Python."""
        return GETTERS[kind](self, key)

    def _count(self, key: str, found: int, wanted: int | None, most: int) -> None:
        if wanted is not None and found != wanted:
            raise self.wrong(key, f"has {found} entries; tokenizer.ggml.tokens has {wanted}")
        if found > most:
            raise self.wrong(key, f"has {found} entries; {most} are the most")

    def _utf8(self, key: str, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self.wrong(key, "is no UTF-8 text") from None


INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
LIMITS = {"u32": (0, (1 << 32) - 1), "i32": (-(1 << 31), (1 << 31) - 1), "u64": (0, (1 << 64) - 1),
          "i64": (-(1 << 63), (1 << 63) - 1)}
GETTERS: Mapping[str, Callable[[Metadata, str], Any]] = {
    "u32": lambda metadata, key: metadata.integer(key, *LIMITS["u32"]),
    "i32": lambda metadata, key: metadata.integer(key, *LIMITS["i32"]),
    "u64": lambda metadata, key: metadata.integer(key, *LIMITS["u64"]),
    "i64": lambda metadata, key: metadata.integer(key, *LIMITS["i64"]),
    "f32": Metadata.real, "f64": Metadata.real, "bool": Metadata.flag, "str": Metadata.text,
    "f32[]": Metadata.reals, "f64[]": Metadata.reals, "bool[]": Metadata.flags, "str[]": Metadata.texts,
    **{f"{kind}[]": Metadata.integers for kind in INTEGERS},
}
"""Kind of a key -> the getter for it."""
