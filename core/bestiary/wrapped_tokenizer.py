"""A tokenizer over another one: what a family's own code does to text and ids around it."""

from __future__ import annotations

from collections.abc import Iterable

from bestiary.template import Segment
from bestiary.tokenizer import Tokenizer


class WrappedTokenizer(Tokenizer):
    """Passes everything on; an author overrides what a family does otherwise. Segments are encoded each by itself.

    before, after: ids that stand around a prompt, in place of what the tokenizer beneath would put there.
    """

    def __init__(self, inner: Tokenizer, before: Iterable[int] = (), after: Iterable[int] = ()) -> None:
        self.inner, self.before, self.after = inner, list(before), list(after)
        self.bos, self.eos, self.ends = inner.bos, inner.eos, inner.ends
        self.add_bos, self.add_eos = bool(self.before), bool(self.after)

    @property
    def size(self) -> int:
        return self.inner.size

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return self.encode_segments([Segment(text, special)], bos)

    def encode_segments(self, segments: Iterable[Segment], bos: bool = False) -> list[int]:
        ids = [token for segment in segments for token in self.segment(segment)]
        if not bos:
            return ids
        # A template may spell them itself.
        before = [] if ids[:len(self.before)] == self.before else self.before
        after = [] if self.after and ids[-len(self.after):] == self.after else self.after
        return before + ids + after

    def segment(self, segment: Segment) -> list[int]:
        """The ids of one segment."""
        return self.inner.encode(segment.text, special=segment.special)

    def piece(self, token: int) -> bytes:
        return self.inner.piece(token)

    def first(self, token: int) -> tuple[bytes, bool]:
        return self.inner.first(token)

    def name(self, token: int) -> str:
        return self.inner.name(token)

    def find(self, name: str) -> int | None:
        return self.inner.find(name)

    def special(self, token: int) -> bool:
        return self.inner.special(token)
