"""Chat formats: messages to segments of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]
"""role ("system", "user", "assistant") and content."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt that is encoded apart. special: its special tokens are parsed; never so in a user's text."""

    text: str
    special: bool


class Template(ABC):
    """A chat format."""

    name: str

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[Segment]:
        """The prompt that asks for the next answer. Raises BestiaryError for roles it has no place for."""
