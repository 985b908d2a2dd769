"""What one rendering of a chat template may do, and the meter that what it does is counted on."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, KeysView, ValuesView
from typing import Any

from jinja2 import Undefined

from bestiary.errors import BestiaryError
from bestiary.marked_text import Marked, given

MAX_SOURCE = 1 << 17
MAX_NODES = 20_000
"""Of a template: characters, and nodes of its syntax tree. The longest of 70 in use has 17,000 and 1,300."""
MAX_STEPS = 400_000
"""What one rendering may do: operations, 1024 characters read counting as one more."""
MAX_TEXT = 1 << 24
"""Characters that one rendering may make, beside 32 for each of the messages'."""
MAX_SHOWN = 1 << 20
"""Size of a list or object that is turned into text."""
MAX_DEPTH = 40
MAX_BITS = 1 << 12
MAX_WIDTH = 1000
"""Of nested values and calls; of an integer; of what pads or repeats."""


class Refused(BestiaryError):
    """The template does what none should."""


class Meter:
    """What is left of one rendering's allowance."""

    def __init__(self, size: int) -> None:
        """size: characters of the messages."""
        self.steps, self.text, self.depth = MAX_STEPS + (size >> 4), MAX_TEXT + 32 * size, 0

    def spend(self, steps: int, text: int = 0) -> None:
        self.steps -= steps
        self.text -= text
        if self.steps < 0:
            raise Refused("the chat template does too much work")
        if self.text < 0:
            raise Refused("the chat template makes too much text")

    def weigh(self, *values: Any) -> tuple[int, bool]:
        """The size of values, that of a list being those of its items even where they are one object, and whether text
        of a message is in them. Reading them is paid for."""
        size, found, todo = 0, False, [(value, 0) for value in values]
        while todo:
            value, depth = todo.pop()
            self.spend(1)
            size += 1
            if isinstance(value, str):
                size += len(value)
                found = found or isinstance(value, Marked)
                self.spend(len(value) >> 10)
            elif isinstance(value, int):
                if value.bit_length() > MAX_BITS:
                    raise Refused("the chat template makes a number that is too large")
                size += 8
            elif isinstance(value, (list, tuple, dict, KeysView, ValuesView, ItemsView)):
                self.spend(len(value))
                if depth > MAX_DEPTH:
                    raise Refused(f"the chat template nests values deeper than {MAX_DEPTH}")
                inside = value.items() if isinstance(value, dict) else value
                todo.extend((item, depth + 1) for item in inside)
            elif isinstance(value, range):
                self.spend(len(value))
        return size, found

    def made(self, value: Any) -> Any:
        """The value, just made and now paid for."""
        if value is not None and not isinstance(value, bool):
            self.spend(1, self.weigh(value)[0])
        return value

    def expect(self, size: int) -> None:
        """Refuses to make what would be this large, before it is made."""
        if size > self.text:
            raise Refused("the chat template makes too much text")

    def each(self, values: Any) -> list[Any]:
        """The items of a loop."""
        if isinstance(values, Undefined):
            return list(values)
        found = []
        for value in values:
            self.spend(1)
            found.append(value)
        return found

    def shown(self, value: Any) -> str:
        """The value as text; that of a list or object is the message's where a part of it is."""
        if isinstance(value, str):
            self.spend(1 + (len(value) >> 10))
            return value
        if value is None or isinstance(value, (bool, float, Undefined)):
            self.spend(1)
            return str(value)
        if not isinstance(value, (int, list, tuple, dict, KeysView, ValuesView, ItemsView, range)):
            raise Refused(f"the chat template prints a {type(value).__name__}")
        return self.whole(str, value)

    def whole(self, change: Callable[[Any], str], value: Any) -> str:
        """The text that `change` makes of a value, marked as a whole."""
        size, found = self.weigh(value)
        if size > MAX_SHOWN:
            raise Refused("the chat template prints a value that is too large")
        text = change(value)
        self.spend(1, len(text))
        return given(text) if found else text
