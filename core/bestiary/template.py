"""Chat formats: messages to segments of a prompt."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bestiary.errors import BestiaryError

Message = Mapping[str, str]
"""role ("system", "user", "assistant") and content; the checkpoint's own template may know more."""
ROLES = frozenset(("system", "user", "assistant", "tool"))

MARK = re.compile(r"(?<!<)<[^<>\s]+>(?!>)")
"""A special token as most vocabularies spell it."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt that is encoded apart. special: its special tokens are parsed; never so in a user's text."""

    text: str
    special: bool


class Template(ABC):
    """A chat format. stop: texts, or special tokens by their spelling, that end an answer. tokens: the spellings in it
    that a model's vocabulary must have as tokens."""

    name: str
    stop: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[Segment]:
        """The prompt that asks for the next answer. Raises BestiaryError for roles it has no place for."""


@dataclass(frozen=True)
class TurnTemplate(Template):
    """A chat format as the texts around each turn.

    system: what begins the prompt, `{system}` standing for its text; default_system: that text where no message says
    one, None for no beginning at all. before_user, after_user, before_answer, after_answer: around what is said; the
    prompt ends after `before_answer`. answer_prefix: between that and an answer which the model gave before.
    first_user: in place of before_user in the first turn, after a beginning. strips: whether what is said loses the
    white space around it; strips_answers: whether answers do. with_input: the beginning and the turn where the first
    message of the user has an "input" beside its content.
    """

    name: str
    system: str
    before_user: str
    after_user: str
    before_answer: str
    after_answer: str = ""
    answer_prefix: str = ""
    default_system: str | None = None
    first_user: str | None = None
    strips: bool = False
    strips_answers: bool = True
    stop: tuple[str, ...] = ()
    with_input: str | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """What stands in angle brackets, one at each end, in the texts around turns."""
        texts = (self.system, self.before_user, self.after_user, self.before_answer, self.after_answer)
        return tuple(dict.fromkeys(MARK.findall("\n".join(texts))))

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        turns, system = list(messages), self.default_system
        if turns and turns[0].get("role") == "system":
            system = self._said(turns.pop(0), self.strips)
        for i, turn in enumerate(turns):
            if turn.get("role") != ("user", "assistant")[i % 2]:
                raise BestiaryError(f"chat template {self.name} has no place for the role "
                                    f"{str(turn.get('role'))[:40]!r} there: after the system's message the user and "
                                    "the assistant take turns")
        if len(turns) % 2 == 0:
            raise BestiaryError(f"chat template {self.name}: the last message must be the user's")
        pieces: list[Segment] = []
        for i, turn in enumerate(turns):
            if i % 2:
                pieces += [Segment(self.answer_prefix, True), Segment(self._said(turn, self.strips_answers), False),
                           Segment(self.after_answer, True)]
                continue
            if i == 0 and self.with_input is not None and "input" in turn:
                values = {"instruction": self._said(turn, self.strips), "input": str(turn["input"])}
                pieces += _filled(self.with_input, values)
                continue
            if i == 0 and system is not None:
                pieces += _filled(self.system, {"system": system})
            before = self.first_user if i == 0 and system is not None else None
            pieces += [Segment(self.before_user if before is None else before, True),
                       Segment(self._said(turn, self.strips), False),
                       Segment(self.after_user + self.before_answer, True)]
        return merged(pieces)

    def _said(self, turn: Message, strips: bool) -> str:
        content = turn.get("content")
        if not isinstance(content, str):
            what = "a message has no content" if content is None else "a message's content is no text"
            raise BestiaryError(f"chat template {self.name}: {what}")
        return content.strip() if strips else content


def _filled(text: str, values: Mapping[str, str]) -> list[Segment]:
    """The text with the places of `values` filled, in their order, each a segment of its own."""
    pieces = [Segment(text, True)]
    for name, value in values.items():
        before, _, after = pieces.pop().text.partition(f"{{{name}}}")
        pieces += [Segment(before, True), Segment(value, False), Segment(after, True)]
    return pieces


def merged(pieces: Sequence[Segment]) -> list[Segment]:
    """Without empty segments, and neighbours of a kind as one."""
    found: list[Segment] = []
    for piece in pieces:
        if found and found[-1].special == piece.special:
            found[-1] = Segment(found[-1].text + piece.text, piece.special)
        elif piece.text:
            found.append(piece)
    return found
