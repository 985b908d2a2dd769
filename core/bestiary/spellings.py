"""Many spellings, looked for in a text at once: what a file lists, it may list by the hundred thousand."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable


class Spellings:
    """Texts to find in other texts. Takes memory for each spelling, whatever its length, and for each place of a text
    that one may begin at a time that grows with the logarithm of their number.

    In alphabetical order, all spellings that a text begins with stand before the text, each before those it is the
    beginning of. So the longest of them is either the last spelling not behind the text, or one that this begins with:
    `_within` leads from a spelling to the longest other one it begins with, `_far` skips many such steps.
    """

    def __init__(self, spellings: Iterable[str]) -> None:
        self._sorted = sorted({text for text in spellings if text})
        self._longest = max(map(len, self._sorted), default=0)
        firsts = dict.fromkeys(text[0] for text in self._sorted)
        self._begin = re.compile(f"[{''.join(map(re.escape, firsts))}]") if firsts else None
        self._within, self._far, depth = array("q"), array("q"), array("q")
        open_: list[int] = []  # the spellings, each the beginning of the next, that the last one begins with
        for i, text in enumerate(self._sorted):
            while open_ and not text.startswith(self._sorted[open_[-1]]):
                open_.pop()
            inner = open_[-1] if open_ else -1
            far = self._far[inner] if inner >= 0 else -1
            # Myers 1983, "An applicative random-access stack": of two jumps of one length one of twice that is made
            even = far >= 0 and depth[inner] - depth[far] == depth[far] - (
                depth[self._far[far]] if self._far[far] >= 0 else 0)
            self._within.append(inner)
            self._far.append(self._far[far] if even else inner)
            depth.append(depth[inner] + 1 if inner >= 0 else 1)
            open_.append(i)

    def longest(self, text: str, at: int) -> str | None:
        """The longest spelling that stands at this place of the text."""
        found = bisect_right(self._sorted, text[at:at + self._longest]) - 1
        while found >= 0:
            if text.startswith(self._sorted[found], at):
                return self._sorted[found]
            far = self._far[found]
            found = far if far >= 0 and not text.startswith(self._sorted[far], at) else self._within[found]
        return None

    def find(self, text: str, at: int = 0) -> tuple[int, str] | None:
        """The next place from `at` on where a spelling stands, and the longest that stands there."""
        while self._begin is not None and (place := self._begin.search(text, at)):
            at = place.start()
            if (found := self.longest(text, at)) is not None:
                return at, found
            at += 1
        return None
