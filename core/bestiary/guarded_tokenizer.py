"""A tokenizer that a family put around another, whose faults are said to be the family's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from bestiary.contributions import shown
from bestiary.errors import BestiaryError
from bestiary.guard import calling
from bestiary.template import Segment
from bestiary.tokenizer import Tokenizer

T = TypeVar("T")


class GuardedTokenizer(Tokenizer):
    """Another tokenizer, called under guard, and what it gives looked at. Costs less than a microsecond a token."""

    def __init__(self, inner: object, who: str) -> None:
        """Raises BestiaryError where that is no tokenizer."""
        self._who, self._guard = who, calling(who, "tokenize")
        if not isinstance(inner, Tokenizer):
            raise BestiaryError(f"{who} wrapped the tokenizer and gave {shown(inner)}, not a Tokenizer")
        self.inner = inner
        with self._guard:
            self.bos, self.eos, self.ends = inner.bos, inner.eos, inner.ends
            self.add_bos, self.add_eos, self._size = inner.add_bos, inner.add_eos, inner.size
        self._is(self._size, int, "size")
        self._ids([token for token in (self.bos, self.eos) if token is not None], "bos and eos")
        self.ends = frozenset(self._ids(list(self._is(self.ends, frozenset, "ends")), "ends"))

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        with self._guard:
            ids = self.inner.encode(text, bos, special)
        return self._ids(ids, "ids")

    def encode_segments(self, segments: Iterable[Segment], bos: bool = False) -> list[int]:
        with self._guard:
            ids = self.inner.encode_segments(segments, bos)
        return self._ids(ids, "ids")

    def piece(self, token: int) -> bytes:
        with self._guard:
            data = self.inner.piece(token)
        return data if type(data) is bytes else self._is(data, bytes, "piece")

    def first(self, token: int) -> tuple[bytes, bool]:
        with self._guard:
            data, start = self.inner.first(token)
        return self._is(data, bytes, "first piece"), bool(start)

    def decode(self, ids: Sequence[int]) -> str:
        with self._guard:
            text = self.inner.decode(ids)
        return self._is(text, str, "text")

    def name(self, token: int) -> str:
        with self._guard:
            name = self.inner.name(token)
        return self._is(name, str, "name")

    def find(self, name: str) -> int | None:
        with self._guard:
            token = self.inner.find(name)
        return None if token is None else self._is(token, int, "token")

    def special(self, token: int) -> bool:
        with self._guard:
            return bool(self.inner.special(token))

    def _ids(self, ids: object, what: str) -> list[int]:
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise BestiaryError(f"{self._who}: its tokenizer gave {shown(ids)} for {what}, not a list of ids")
        return ids

    def _is(self, value: T, kind: type, what: str) -> T:
        if not isinstance(value, kind):
            raise BestiaryError(f"{self._who}: its tokenizer gave {shown(value)} as a {what}, not {kind.__name__}")
        return value
