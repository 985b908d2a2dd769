"""Text as herons read it: in small letters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bestiary.plugin import Segment, Tokenizer


class SmallLetters(Tokenizer):
    """A tokenizer that sees its text in small letters; what is a special token's spelling stays as it is."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self.bos, self.eos, self.ends = inner.bos, inner.eos, inner.ends
        self.add_bos, self.add_eos = inner.add_bos, inner.add_eos

    @property
    def size(self) -> int:
        return self._inner.size

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return self._inner.encode(text if special else text.lower(), bos, special)

    def encode_segments(self, segments: Iterable[Segment], bos: bool = False) -> list[int]:
        return self._inner.encode_segments(
            [segment if segment.special else replace(segment, text=segment.text.lower()) for segment in segments], bos)

    def piece(self, token: int) -> bytes:
        return self._inner.piece(token)

    def first(self, token: int) -> tuple[bytes, bool]:
        return self._inner.first(token)

    def name(self, token: int) -> str:
        return self._inner.name(token)

    def special(self, token: int) -> bool:
        return self._inner.special(token)
