"""Texts and a tokenizer to try an architecture's handling of text with."""

from __future__ import annotations

from bestiary.errors import BestiaryError
from bestiary.tokenizer import Tokenizer

SAMPLES = ("Hello, world!", "It's 12:30; don't pay $3,456.78", "two  spaces, a tab\tand\nlines\n\n",
           "def f(x):\n    return x**2", "你好，世界！", "日本語 한국어 العربية", "👋🏽 emoji é")


class ByteTokenizer(Tokenizer):
    """Every byte is a token; then come two special ones, which begin and end a text."""

    bos, eos = 256, 257

    @property
    def size(self) -> int:
        return 258

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return [*[self.bos] * bos, *text.encode()]

    def piece(self, token: int) -> bytes:
        if not 0 <= token < self.size:
            raise BestiaryError(f"token id {token}; the vocabulary has {self.size}")
        return bytes([token]) if token < 256 else b""
