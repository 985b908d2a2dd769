"""Text to token ids and back."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.template import Segment


class Tokenizer(ABC):
    """Text <-> ids. bos, eos: ids or None. ends: every id that ends a generation. add_bos, add_eos: what a prompt
    gets; BOS is added in exactly one place, `encode(..., bos=True)`."""

    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    ends: frozenset[int] = frozenset()

    @property
    @abstractmethod
    def size(self) -> int:
        """Pieces of the vocabulary."""

    @abstractmethod
    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        """Ids of the text. bos: what the model wants around a prompt is added. special: the spellings of special tokens
        in the text become those tokens (for templates); in a user's text they are ordinary characters."""

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes the token stands for inside a text; empty for a special one. Raises BestiaryError for an id
        outside the vocabulary."""

    def first(self, token: int) -> tuple[bytes, bool]:
        """The bytes the token stands for at the start of a text, where a tokenizer takes back the space it puts before
        every text; and whether what follows it is still at the start."""
        data = self.piece(token)
        return data, not data

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        pieces, start, done = [], True, 0
        while start and done < len(ids):
            data, start = self.first(ids[done])
            pieces.append(data)
            done += 1
        pieces += map(self.piece, ids[done:])
        return b"".join(pieces).decode("utf-8", "replace")

    def encode_segments(self, segments: Iterable[Segment], bos: bool = False) -> list[int]:
        """Ids of a prompt in segments, each parsed for special tokens or not. A tokenizer that can encodes neighbours
        as the one text they are; this one encodes each by itself and gives `bos` to the first."""
        ids: list[int] = []
        for i, segment in enumerate(segments):
            ids += self.encode(segment.text, bos=bos and i == 0, special=segment.special)
        return ids

    def name(self, token: int) -> str:
        """The token's spelling in the vocabulary, to show to people."""
        return self.piece(token).decode("utf-8", "replace")

    def find(self, name: str) -> int | None:
        """The token spelled so in the vocabulary."""
        return next((token for token in range(self.size) if self.name(token) == name), None)

    def special(self, token: int) -> bool:
        """Whether the token stands for no text."""
        return not self.piece(token)


class Stream:
    """Decodes ids one by one; never gives a part of a character, whatever the tokens. The pieces it gives add up to
    the decoding of all ids. start: the ids begin a text; False where they continue a prompt, whose end keeps the space
    before the first word."""

    def __init__(self, tokenizer: Tokenizer, start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain after this token; may be empty."""
        if self._start:
            data, self._start = self._tokenizer.first(token)
        else:
            data = self._tokenizer.piece(token)
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for the bytes of a character that was never completed."""
        return self._decoder.decode(b"", final=True)
