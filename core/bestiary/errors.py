"""The one exception that a user's mistake or a bad file raises, and the one that ends the program."""

from __future__ import annotations

LONGEST = 1000
"""Characters of a message: a file decides what is quoted, and a key or a name of it may be a megabyte."""


class BestiaryError(Exception):
    """What a user did, or what a file holds, is wrong; the message says what, the value, and what would be right.

    The message is one line of at most LONGEST characters, all of them printable. The command line prints it and exits
    with status 1. Anything else is a bug and keeps its traceback.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def printable(text: str) -> str:
    r"""The text with what is no character to show as its escape (\n, \x1b, \u202e): what a file holds may move the
    cursor, retitle the window, or end the line and write another."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as one printable line; of one that is too long the beginning and the end."""
    def cut(text: str) -> str:
        return text if len(text) <= longest else f"{text[:longest * 3 // 4]} ... {text[-(longest // 5):]}"

    return cut(printable(cut(text)))


def short(value: object, longest: int = 60) -> str:
    """A value of a file as a message quotes it."""
    if isinstance(value, (str, bytes)):
        value = value[:longest + 1]  # before it is spelled out: it may be all of the file
    text = repr(value)
    return text if len(text) <= longest else text[:longest - 3] + "..."


class Terminated(SystemExit):
    """The program was told to end. Unlike a plugin's own SystemExit it passes every guard."""


class ContextFull(BestiaryError):
    """A prompt that the context cannot hold; a shorter one may fit."""
