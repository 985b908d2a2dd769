"""Many spellings looked for at once: what is found is what an expression of all of them would find, at no such cost."""

from __future__ import annotations

import random
import re

import pytest

from bestiary.spellings import Spellings


def by_expression(words: list[str], text: str) -> list[tuple[int, str]]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return [(found.start(), found[0]) for found in re.finditer("|".join(map(re.escape, longest_first)), text)]


def by_spellings(words: list[str], text: str) -> list[tuple[int, str]]:
    spellings, found, at = Spellings(words), [], 0
    while (one := spellings.find(text, at)) is not None:
        found.append(one)
        at = one[0] + len(one[1])
    return found


@pytest.mark.parametrize("alphabet", ["ab", "abc", "<|>ab", "]^-\\a"])
def test_they_are_found_as_by_an_expression_with_the_longest_first(alphabet: str) -> None:
    source, some = random.Random(alphabet), 0
    for _ in range(1000):
        longest = source.choice((2, 5, 11))
        words = ["".join(source.choices(alphabet, k=source.randint(1, longest))) for _ in range(source.randint(1, 40))]
        text = "".join(source.choices(alphabet, k=60))
        found = by_spellings(words, text)
        assert found == by_expression(words, text)
        some += len(found)
    assert some > 1000


def test_none_and_empty_ones_are_never_found() -> None:
    assert Spellings([]).find("abc") is None and Spellings(["", ""]).find("abc") is None


def test_each_being_the_beginning_of_the_next_few_are_looked_at() -> None:
    """At each place the first is no more than a few comparisons away from the last, where there are thousands."""
    class Watched(str):
        compared = 0

        def startswith(self, *arguments: object) -> bool:
            Watched.compared += 1
            return super().startswith(*arguments)  # type: ignore[arg-type]

    spellings = Spellings(["a" * count for count in range(3, 5000)])
    text = Watched("aab" * 100 + "a" * 10)
    assert spellings.find(text) == (300, "a" * 10)
    assert Watched.compared < 201 * 60  # and not 201 * 5000
