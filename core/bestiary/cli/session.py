"""A text that grows on the terminal: what was given, what the model said, turn by turn."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bestiary.errors import ContextFull, printable

if TYPE_CHECKING:
    from bestiary.engine import Generation
    from bestiary.model import Model
    from bestiary.sampling import Sampling

GIVEN, TYPED, PLAIN = "\033[33m", "\033[1;32m", "\033[0m"  # the prompt, what the user types, the model's own
SPEAKS = "[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
"""What a terminal obeys: control characters (a return would let a line be written over), and the marks that turn the
direction of writing around."""


@dataclass(frozen=True)
class Turns:
    """How a conversation goes. prefix, suffix: what is put around what the user types. marker: shown where the user may
    type. first: whether the user begins. whole_lines: the end of the user's line is part of the text."""

    prefix: str = ""
    suffix: str = ""
    marker: str = ""
    first: bool = False
    whole_lines: bool = True


@dataclass
class Figures:
    """Tokens and seconds so far. The first token of an answer is the end of its prefill."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    reused: int = 0
    seed: int | None = None

    def add(self, generation: Generation) -> None:
        self.seed = generation.chooser.seed if self.seed is None else self.seed
        if generation.first_token is None or generation.last_token is None:
            return
        self.prefill_tokens += len(generation.request.ids) - generation.reused
        self.prefill_seconds += generation.first_token - generation.started
        self.decode_tokens += max(len(generation.tokens) - 1, 0)
        self.decode_seconds += generation.last_token - generation.first_token
        self.reused += generation.reused

    def lines(self) -> list[str]:
        return [f"{name:<9} {count} tokens in {seconds:.2f} s, {count / seconds if seconds else 0:.1f} tokens/s"
                for name, count, seconds in (("prefill", self.prefill_tokens, self.prefill_seconds),
                                             ("decode", self.decode_tokens, self.decode_seconds)) if count]


@dataclass
class Session:
    """One sequence of a model. reverse: texts at which it falls silent; they are shown and stay in the text."""

    model: Model
    sampling: Sampling
    max_tokens: int = -1
    reverse: Sequence[str] = ()
    ignore_eos: bool = False
    color: bool = False
    ids: list[int] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    def give(self, text: str) -> None:
        """Appends a text; the first one begins with what the model wants at a beginning."""
        self.ids += self.model.tokenizer.encode(text, bos=not self.ids)

    def show(self, text: str, color: str = "") -> None:
        """On a terminal, characters of the text that it obeys as their escapes: what a model says comes from a file
        that nobody vouches for, and could move the cursor or retitle the window. Elsewhere the text as it is."""
        if sys.stdout.isatty():
            text = re.sub(SPEAKS, lambda found: printable(found[0]), text.replace("\r\n", "\n"))
        self._write(f"{color}{text}{PLAIN}" if self.color and color and text else text)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def answer(self) -> str:
        """Lets the model speak, as it comes. Returns why it ended: a reason of TextStream, or "stop" after one of
        `reverse`. Whatever ends it, KeyboardInterrupt too, what was said so far stays in the text."""
        if not self.ids:
            self.give("")
        stream = self.model.generate_from(self.ids, self.max_tokens, self.sampling, ignore_eos=self.ignore_eos)
        longest, tail = max(map(len, self.reverse), default=0), ""
        try:
            for piece in stream:
                self.show(piece)
                tail = tail[-longest:] + piece if longest else ""
                if any(text in tail for text in self.reverse):
                    return "stop"
            return stream.reason or "cancelled"
        finally:
            stream.close()
            self.ids = list(stream.generation.ids)
            self.figures.add(stream.generation)

    def converse(self, turns: Turns, read: Callable[[str], str | None]) -> str:
        """The user's turn, the model's turn, and so on until the input ends ("input") or the context is full
        ("context"). read: shows the marker, gives a line without its end, or None at the end of the input."""
        users = turns.first or not self.ids
        while True:
            if users:
                text = self._typed(turns, read)
                if text is None:
                    return "input"
                if text.strip("\n"):
                    self.give(turns.prefix + text + turns.suffix)
                    self.show(turns.suffix, GIVEN)
            users = True
            try:
                reason = self.answer()
            except ContextFull:
                return "context"
            except KeyboardInterrupt:
                self.show("\n")  # the user has something to say
                continue
            if self.sampling.seed is not None:  # or every answer would draw the same numbers
                self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
            if reason == "context":
                return reason
            if reason == "end" and self.reverse:
                self.give("\n" + self.reverse[0])
                self.show("\n" + self.reverse[0])
            elif reason != "stop" or turns.marker:
                self.show("\n")

    def _typed(self, turns: Turns, read: Callable[[str], str | None]) -> str | None:
        """What the user types. A line that ends in a backslash goes on; one that ends in a slash has no end of line."""
        shown = turns.marker or turns.prefix
        text = ""
        with self._typing():
            while True:
                line = read(shown)
                if line is None:
                    return text or None
                shown = ""
                if line.endswith("\\"):
                    text += line[:-1] + "\n"
                    continue
                text += line.removesuffix("/")
                return text + "\n" if turns.whole_lines and not line.endswith("/") else text

    @contextlib.contextmanager
    def _typing(self) -> Iterator[None]:
        """What the terminal echoes meanwhile has its own colour."""
        if self.color:
            self._write(TYPED)
        try:
            yield
        finally:
            if self.color:
                self._write(PLAIN)


def reader() -> Callable[[str], str | None]:
    """Reads lines of stdin: with editing and a history on a terminal, plainly from a pipe."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it is what gives `input` its editing

    def read(marker: str) -> str | None:
        if sys.stdin.isatty():
            try:
                return input(marker)
            except EOFError:
                return None
        sys.stdout.write(marker)
        sys.stdout.flush()
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    return read
