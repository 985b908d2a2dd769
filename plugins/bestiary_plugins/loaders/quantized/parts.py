"""The tensors of a quantized folder: the parts of a weight are taken, and the weight put in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError, short
from bestiary.files import FileTensor
from bestiary.tensor import Tensor

log = logging.getLogger("bestiary")
FLOATS = ("f16", "bf16", "f32")
"""What scales may be."""
Way = TypeVar("Way")
MOST_WAYS = 64


class Parts:
    """What is left of a folder's tensors, and the weights made of those that were taken. spare: see Checkpoint."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        self.left, self.folder = dict(tensors), folder
        self.spare: set[str] = set()
        self._order = list(tensors)
        self._made: dict[str, tuple[str, Tensor]] = {}  # by the part whose place the weight takes

    def ending(self, suffix: str) -> list[str]:
        """Names of tensors that end so, without the end."""
        return [name.removesuffix(suffix) for name in self.left if name.endswith(suffix)]

    def take(self, name: str, types: Collection[str], dimensions: Collection[int] = (2,)) -> FileTensor:
        """A tensor of one of these types, whatever they mean. Raises BestiaryError where there is none."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise BestiaryError(f"{self.folder}: tensor {name} is missing")
        if tensor.encoding.name not in types:
            raise BestiaryError(f"{self.folder}: tensor {name} is {tensor.encoding.name}; it must be "
                                f"{' or '.join(types)}")
        if len(tensor.shape) not in dimensions or 0 in tensor.shape:
            raise BestiaryError(f"{self.folder}: tensor {name} has the shape {list(tensor.shape)}; it must have "
                                f"{' or '.join(map(str, dimensions))} dimensions, none of them 0")
        if not isinstance(tensor, FileTensor):
            raise BestiaryError(f"{self.folder}: tensor {name} does not lie in one piece")
        return tensor

    def drop(self, name: str) -> None:
        self.left.pop(name, None)

    def give(self, place: str, name: str, tensor: Tensor) -> None:
        """The weight `name`, where the part called `place` stood."""
        if name in self.left or any(name == made for made, _ in self._made.values()):
            raise BestiaryError(f"{self.folder}: tensor {name} stands there as itself and as {place}")
        self._made[place] = name, tensor

    def fits(self, tensor: Tensor, name: str, wanted: tuple[int, ...], why: str) -> None:
        """Raises BestiaryError where a part has another shape than what stands beside it, or the config, asks for."""
        if tensor.shape != wanted:
            raise BestiaryError(f"{self.folder}: tensor {name} has the shape {list(tensor.shape)}; {why} asks for "
                                f"{list(wanted)}")

    def result(self) -> dict[str, Tensor]:
        """All tensors, in the order of the folder."""
        places = ((self._made[name] if name in self._made else (name, self.left[name])) for name in self._order
                  if name in self._made or name in self.left)
        return dict(places)


def distinct(ways: Iterable[Way], where: str) -> list[Way]:
    """Each once. Raises BestiaryError for more than a config has use for: each is tried on each weight."""
    found = list(dict.fromkeys(ways))
    if len(found) > MOST_WAYS:
        raise BestiaryError(f"{where} has {len(found)} different settings of weights; {MOST_WAYS} are the most")
    return found


def fitting(ways: Iterable[Way], check: Callable[[Way], None]) -> list[Way]:
    """The ways to pack a weight, of those that a config speaks of, that its parts fit. `check` raises BestiaryError for
    one that they do not; raises that of the first where none fits."""
    found: list[Way] = []
    wrong: BestiaryError | None = None
    for way in ways:
        try:
            check(way)
        except BestiaryError as error:
            wrong = wrong or error
        else:
            found.append(way)
    if wrong is not None and not found:
        raise wrong
    return found


def raw(tensor: FileTensor, start: int, stop: int) -> Any:
    """Rows as bytes, (rows, row_bytes) uint8, of a type that nobody else reads too."""
    return FileTensor.read(tensor, start, stop)


def in_words(bits: int, group: int | None, symmetric: bool) -> str:
    """What a config says of weights. group: None for one a row."""
    return f"{bits} bits, {f'groups of {group}' if group else 'one group a row'}, " + (
        "symmetric" if symmetric else "a zero a group")


def check_middle(zeros: NDArray[np.uint8], bits: int, where: str, said: str, otherwise: str) -> None:
    """Raises BestiaryError where zeros are not the middle of such codes, though the config says that they are."""
    middle = 1 << (bits - 1)
    if (zeros != middle).any():
        raise BestiaryError(f"{where}: {said} asks for zeros of {middle}, and qzeros holds "
                            f"{int(zeros[zeros != middle][0])}; {otherwise} reads them as they are")


class Once:
    """A warning that is given once, whatever thread finds the reason first."""

    def __init__(self, line: str) -> None:
        self._line, self._lock = line, Lock()

    def say(self) -> None:
        with self._lock:
            line, self._line = self._line, ""
        if line:
            log.warning("%s", line)


class Settings:
    """A section of a config, each value checked by key. Raises BestiaryError naming key and value."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def one_of(self, key: str, known: Collection[Any], default: Any = ...) -> Any:
        value = self.values.get(key)
        if value is None and default is not ...:
            return default
        for item in known:
            if type(value) is type(item) and (value.lower() == item if isinstance(value, str) else value == item):
                return item
        raise BestiaryError(f"{self.where}: {key} = {short(value)} is not read; known: "
                            f"{', '.join(map(str, known))}")

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.one_of(key, (True, False), default))

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BestiaryError(f"{self.where}: {key} = {short(value)}; it must be an integer from {low} to {high}")
        return value

    def group(self, key: str) -> int | None:
        """Columns that share a scale; None for all, which is written as -1."""
        size = self.whole(key, -1, 1 << 20)
        if size == 0 or size > 0 and size % 8:
            raise BestiaryError(f"{self.where}: {key} = {size}; it must be -1 or a multiple of 8")
        return None if size < 0 else size

    def refuse(self, key: str, why: str) -> None:
        """Raises BestiaryError where the key has a value that is not nothing."""
        if self.values.get(key):
            raise BestiaryError(f"{self.where}: {key} = {short(self.values[key])}: {why}")
