"""What plugins of one kind provide, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bestiary.errors import BestiaryError

T = TypeVar("T")


def normal(distribution: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from. distribution: of a one-file plugin, the file's name; its version is empty.
    entry_point: "module" or "module:object", or the file's path."""

    plugin: str
    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True)
class Provided(Generic[T]):
    """One item of one plugin. aliases: further names it answers to."""

    name: str
    item: T
    origin: Origin
    aliases: tuple[str, ...] = ()


class Registry(Mapping[str, T]):
    """name -> item, in the order in which plugins give them. Names count in any case.

    A name that two plugins provide is an error when it is asked for, unless one of their distributions is preferred;
    until then it is left out of iteration, so that it stands in nobody's way. retired: name -> what became of it.
    lacking: gives, once it is asked for, name -> why it is not provided; names that go on with "_" and up to three
    letters count as it.
    """

    def __init__(self, kind: str, provided: Iterable[Provided[T]], prefer: Sequence[str] = (),
                 retired: Mapping[str, str] | None = None, lacking: Callable[[], Mapping[str, str]] = dict) -> None:
        self._kind = kind
        self._provided = tuple(provided)
        self._prefer = tuple(normal(distribution) for distribution in prefer)
        self._retired = {name.casefold(): reason for name, reason in (retired or {}).items()}
        self._lacking = lacking
        self._order = tuple(dict.fromkeys(entry.name for entry in self._provided))
        self._by_key: dict[str, list[Provided[T]]] = {}
        for entry in self._provided:
            for key in dict.fromkeys(name.casefold() for name in (entry.name, *entry.aliases)):
                self._by_key.setdefault(key, []).append(entry)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted; also those with two providers."""
        return tuple(sorted(self._order))

    def providers(self, name: str) -> tuple[Provided[T], ...]:
        """Everything that answers to the name, preferred or not."""
        return tuple(self._by_key.get(name.casefold(), ()))

    def alike(self, name: str) -> tuple[T, ...]:
        """The items of all that answers to the name, for who can tell them apart by something else."""
        return tuple(entry.item for entry in self.providers(name))

    def candidates(self, name: str) -> tuple[Provided[T], ...]:
        """What the name may mean: one item where that is clear or settled by preference, none where it is unknown."""
        found = self.providers(name)
        for wanted in self._prefer if len(found) > 1 else ():
            if chosen := tuple(entry for entry in found if normal(entry.origin.distribution) == wanted):
                return chosen
        return found

    def entries(self) -> tuple[Provided[T], ...]:
        """Every item that a name may mean, for who chooses by something else than a name; of items with one name only
        the preferred ones."""
        return tuple({id(entry): entry for name in self.names for entry in self.candidates(name)}.values())

    def provider(self, name: str) -> Provided[T]:
        """The one that the name means. Raises BestiaryError where it is unknown, retired, or means two things."""
        found = self.candidates(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise BestiaryError(self._clash(name, found))
        if (why := self.why_not(name)) is not None:
            raise BestiaryError(f"{self._kind} {name!r}: {why}")
        raise BestiaryError(f"unknown {self._kind} {name!r}; known: {', '.join(self.names) or 'none'}")

    def why_not(self, name: str) -> str | None:
        """What is said of a name that nobody provides and many know; None of any other."""
        key = name.casefold()
        if key in self._retired:
            return self._retired[key]
        lacking = {known.casefold(): reason for known, reason in self._lacking().items()}
        reason = lacking.get(key) or lacking.get(re.sub("_[a-z]{1,3}$", "", key))
        return reason and f"{reason}; known: {', '.join(self.names) or 'none'}"

    def clashes(self) -> dict[str, tuple[Provided[T], ...]]:
        """What is said of each name that means two things -> the items that it may mean."""
        found = {name: self.candidates(name) for name in self._by_key}
        return {self._clash(next(way for way in (entries[0].name, *entries[0].aliases) if way.casefold() == name),
                            entries): entries for name, entries in found.items() if len(entries) > 1}

    def _clash(self, name: str, found: Sequence[Provided[T]]) -> str:
        who = " and by ".join(str(entry.origin) for entry in found)
        ways = " or ".join(f"--prefer {way}" for way in dict.fromkeys(entry.origin.distribution for entry in found))
        return f"{self._kind} {name!r} is provided by {who}; choose with {ways}"

    def __getitem__(self, name: str) -> T:
        return self.provider(name).item

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._by_key

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._order if len(self.candidates(name)) == 1)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, name: str, default: T | None = None) -> T | None:  # type: ignore[override]
        """The item, or the default where the name is unknown. Raises BestiaryError where it means two things."""
        if name not in self:
            return default
        return self[name]

    def __repr__(self) -> str:
        return f"<{self._kind} registry: {', '.join(self.names)}>"
