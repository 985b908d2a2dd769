"""What the tokenizers of both libraries have in common: pieces in a table, special tokens split off before the text."""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bestiary.checkpoint import TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.spellings import Spellings
from bestiary.template import Segment
from bestiary.tokenizer import Tokenizer

MAX_PIECES = 1 << 20
MAX_PIECE = 1 << 14
"""Limits of a vocabulary, in pieces and in bytes of one: far above all real ones, and cheap to hold."""
MAX_ADDED, MAX_ADDED_TEXT = 1 << 18, 1 << 22
"""Of special and user-defined tokens, and of all their characters together: each is looked for in every prompt. The
largest known vocabularies have 65,536 of speech and 1,400 of other kinds."""
MAX_GAP = 1 << 16
"""How far an added token's id may lie beyond the pieces there are."""


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before the library sees it. special: only where special tokens are parsed, and it
    stands for no text. lstrip, rstrip: it swallows the white space before or after it. single_word: it stands alone."""

    id: int
    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Around:
    """The ids with a role: what begins and ends a prompt, and what ends a generation."""

    bos: int | None
    eos: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    ends: frozenset[int]


def around(material: TokenizerMaterial, size: int, bos: int | None, eos: int | None, before: tuple[int, ...],
           after: tuple[int, ...], more_ends: Iterable[int] = ()) -> Around:
    """The roles, checked against the vocabulary. before, after: what a prompt gets where the material does not say
    (add_bos, add_eos); bos, eos: as resolved by the caller. Raises BestiaryError for an id outside the vocabulary."""
    if material.add_bos is not None:
        before = (bos,) if material.add_bos and bos is not None else ()
    if material.add_eos is not None:
        after = (eos,) if material.add_eos and eos is not None else ()
    ends = {*material.ends, *more_ends, *(() if eos is None else (eos,))}
    for what, ids in (("bos", {bos, *before}), ("eos", {eos, *after}), ("end", ends)):
        for token in ids:
            if token is not None and not 0 <= token < size:
                raise BestiaryError(f"tokenizer: {what} id {token} lies outside the vocabulary of {size} pieces")
    return Around(bos, eos, before, after, frozenset(ends))


def check_added(count: int, characters: int, what: str) -> None:
    """Raises BestiaryError where there are more special and user-defined tokens than make sense."""
    for found, most, of in ((count, MAX_ADDED, ""), (characters, MAX_ADDED_TEXT, " characters of")):
        if found > most:
            raise BestiaryError(f"{what}: {found}{of} special and user-defined tokens; at most {most} make sense")


class TableTokenizer(Tokenizer):
    """A tokenizer over a table of pieces. Nothing changes after construction, so threads may share it; it pickles as
    the call that built it.

    Special tokens are found here and not by the libraries, because those cannot be told which part of a text may hold
    them. What stands between two special tokens is encoded as a text of its own, so one that puts a space before every
    text puts it there too: like the models' own code (and transformers' tokenizers of `legacy` behaviour;
    with `legacy: false` transformers leaves that space out, but the models were trained with it).
    """

    def __init__(self, names: Sequence[str], table: Sequence[bytes], added: Iterable[AddedToken],
                 roles: Around) -> None:
        self._names, self._table = names, table
        self.bos, self.eos, self.ends = roles.bos, roles.eos, roles.ends
        self._before, self._after = list(roles.before), list(roles.after)
        self.add_bos, self.add_eos = bool(roles.before), bool(roles.after)
        self._added: Mapping[str, AddedToken] = {token.text: token for token in added if token.text}
        # those that are no special tokens only hide shorter spellings inside themselves
        self._spellings = Spellings(self._added)
        self._source: tuple[Callable[..., Tokenizer], tuple[Any, ...]] | None = None

    def pickled_as(self, function: Callable[..., Tokenizer], *arguments: Any) -> TableTokenizer:
        """This tokenizer, which now pickles as that call."""
        self._source = function, arguments
        return self

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[Any, ...]]:
        if self._source is None:
            raise TypeError("this tokenizer was not made by build_tokenizer; it cannot be pickled")
        return self._source

    @abstractmethod
    def _ids(self, text: str, start: bool) -> list[int]:
        """The library's ids for a text that holds no special tokens; it is valid Unicode and not empty. start: no
        special token stands before it."""

    @property
    def size(self) -> int:
        return len(self._table)

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return self.encode_segments([Segment(text, special)], bos)

    def encode_segments(self, segments: Iterable[Segment], bos: bool = False) -> list[int]:
        """Ids of a prompt in segments. Special tokens are parsed in special segments only; what lies between two of
        them is one text even where it spans segments, as the model saw it in training. With `bos` a template that
        spells BOS itself gets no second one."""
        ids: list[int] = []
        text: list[str] = []
        parsed = False

        def flush() -> None:
            joined = "".join(text)
            text.clear()
            if joined:
                ids.extend(self._ids(_valid(joined), not ids))

        for segment in segments:
            parsed = parsed or segment.special
            for part in self._split(segment.text) if segment.special else [segment.text]:
                if isinstance(part, str):
                    text.append(part)
                else:
                    flush()
                    ids.append(part)
        flush()
        if not bos:
            return ids
        before, after = self._before, self._after
        if parsed:  # an ordinary text cannot spell them
            before = [] if ids[:len(before)] == before else before
            after = [] if after and ids[-len(after):] == after else after
        return before + ids + after

    def _split(self, text: str) -> list[str | int]:
        """The text between special tokens, and their ids."""
        parts: list[str | int] = []
        start = at = 0  # of the text not yet in parts; of the search
        while found := self._spellings.find(text, at):
            token, at = self._added[found[1]], found[0] + len(found[1])
            if not token.special or (token.single_word and _in_word(text, found[0], at)):
                continue
            between = text[start:found[0]]
            parts += [between.rstrip() if token.lstrip else between, token.id]
            if token.rstrip:
                at += len(text) - at - len(text[at:].lstrip())
            start = at
        return [*parts, text[start:]]

    def _check(self, token: int) -> int:
        if not 0 <= token < len(self._table):
            raise BestiaryError(f"token {token} lies outside the vocabulary of {len(self._table)} pieces")
        return token

    def piece(self, token: int) -> bytes:
        return self._table[self._check(token)]

    def name(self, token: int) -> str:
        return self._names[self._check(token)]

    @cached_property
    def _ids_by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self._names)}

    def find(self, name: str) -> int | None:
        return self._ids_by_name.get(name)


def _valid(text: str) -> str:
    """The text with lone surrogates, which no encoding of Unicode can hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _in_word(text: str, start: int, end: int) -> bool:
    return re.search(r"\w", text[max(start - 1, 0):start] + text[end:end + 1]) is not None


def byte_of(name: str) -> int | None:
    """The byte that a byte piece stands for: `<0x0A>`, in old files also `<0xA>`."""
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{1,2})>", name)
    return int(match[1], 16) if match else None


def checked_names(pieces: Sequence[bytes], what: str) -> list[str]:
    """The spellings of all pieces. Raises BestiaryError as `checked_name` does, for the first it finds wrong."""
    if max(map(len, pieces), default=0) <= MAX_PIECE:
        with contextlib.suppress(UnicodeDecodeError):
            return list(map(bytes.decode, pieces))
    return [checked_name(piece, i, what) for i, piece in enumerate(pieces)]


def checked_name(piece: bytes, index: int, what: str) -> str:
    """The spelling of a piece. Raises BestiaryError where it is not UTF-8, or absurdly long."""
    if len(piece) > MAX_PIECE:
        raise BestiaryError(f"{what}: piece {index} is {len(piece)} bytes long; at most {MAX_PIECE} make sense")
    try:
        return piece.decode()
    except UnicodeDecodeError:
        raise BestiaryError(f"{what}: piece {index} is not UTF-8: {piece[:40]!r}") from None
