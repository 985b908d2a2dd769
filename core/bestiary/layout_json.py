"""A layout as JSON, and back with each field checked: in a file it is hostile input, from a plugin it may be wrong.

Before a tensor is used, the largest address of each field in its row is compared with the plane.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from math import isfinite, lcm
from typing import Any

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError, short

MOST_OFFSETS, MOST_PIECES, MOST_PLANES, LARGEST_BLOCK = 1 << 16, 16, 8, 1 << 20
MOST_CODE_BITS, MOST_FIELD_BITS = 16, 24
SMALL = (-(1 << 24), 1 << 24)
NUMBER_BITS = {"f32": 32, "f16": 16, "bf16": 16, "e8m0": 8}
NUMBERS = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of the numbers that a weight may be by itself."""


def plain(value: Any) -> Any:
    """A layout as JSON's own types; fields at their defaults are left out."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclass_fields(value)
                if getattr(value, field.name) != field.default}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


class Fields:
    """The fields of an object, taken one by one with a check. Raises BestiaryError naming the field."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise BestiaryError(f"{what} is {short(value)}; it must be an object")
        self._left, self._what = dict(value), what

    def __enter__(self) -> Fields:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None and self._left:
            raise BestiaryError(f"{self._what} has the unknown field {short(next(iter(self._left)))}")

    def take(self, name: str, default: Any = ...) -> Any:
        if name not in self._left and default is ...:
            raise BestiaryError(f"{self._what} has no {name}")
        return self._left.pop(name, default)

    def whole(self, name: str, low: int, high: int, default: Any = ...) -> int:
        return whole(self.take(name, default), low, high, f"{self._what}: {name}")

    def array(self, name: str, least: int, most: int, item: Callable[[Any, str], Any]) -> tuple[Any, ...]:
        value, what = self.take(name, ... if least else []), f"{self._what}: {name}"
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise BestiaryError(f"{what} is {short(value)}; it must be an array of {least} to {most} entries")
        return tuple(item(entry, what) for entry in value)

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise BestiaryError(f"{self._what}: {name} is {short(value)}; it must be true or false")
        return value


def whole(value: Any, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BestiaryError(f"{what} is {short(value)}; it must be an integer from {low} to {high}")
    return value


def finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 3.4e38 or not isfinite(value):
        raise BestiaryError(f"{what} holds {short(value)}; it must hold finite numbers")
    return float(value)


def parse_layout(value: Any, what: str, planes: int) -> Layout:
    def bits(value: Any, at: str) -> Bits:
        with Fields(value, at) as fields:
            return Bits(fields.whole("width", 1, 32),
                        fields.array("offsets", 1, MOST_OFFSETS, lambda entry, at: whole(entry, 0, 1 << 32, at)),
                        fields.whole("stride", 0, 1 << 32), fields.whole("plane", 0, planes - 1, 0))

    def pieces(fields: Fields, name: str, least: int, most_bits: int) -> tuple[Bits, ...]:
        found = fields.array(name, least, MOST_PIECES, bits)
        if sum(piece.width for piece in found) > most_bits:
            raise BestiaryError(f"{what}: {name} has more than {most_bits} bits")
        return found

    def factor(value: Any, at: str) -> Factor:
        with Fields(value, at) as fields:
            number = fields.take("number")
            if not isinstance(number, str) or number not in NUMBER_BITS:
                raise BestiaryError(f"{at}: number is {short(number)}; known: {', '.join(NUMBER_BITS)}")
            place = bits(fields.take("at"), f"{at}: at")
            if place.width != NUMBER_BITS[number]:
                raise BestiaryError(f"{at}: {number} has {NUMBER_BITS[number]} bits, not {place.width}")
            return Factor(number, place, pieces(fields, "integer", 0, MOST_FIELD_BITS), fields.whole("bias", *SMALL, 0),
                          fields.flag("signed"))

    with Fields(value, f"{what}: layout") as fields:
        codes = pieces(fields, "codes", 1, MOST_CODE_BITS)
        minimum = fields.take("minimum", None)
        layout = Layout(
            codes=codes, group=fields.whole("group", 0, LARGEST_BLOCK),
            scale=factor(fields.take("scale"), f"{what}: scale"), signed=fields.flag("signed"),
            offset=fields.whole("offset", *SMALL, 0), codebook=fields.array("codebook", 0, 1 << MOST_CODE_BITS, finite),
            zero=pieces(fields, "zero", 0, MOST_FIELD_BITS), zero_bias=fields.whole("zero_bias", *SMALL, 0),
            minimum=None if minimum is None else factor(minimum, f"{what}: minimum"),
            minimum_sign=fields.whole("minimum_sign", -1, 1, 1))
    width = sum(piece.width for piece in codes)
    if layout.codebook and len(layout.codebook) != 1 << width:
        raise BestiaryError(f"{what}: codes of {width} bits need a codebook of {1 << width}, not "
                            f"{len(layout.codebook)}")
    if layout.codebook and layout.signed:
        raise BestiaryError(f"{what}: codes are places in the codebook; they cannot be signed")
    if not layout.minimum_sign:
        raise BestiaryError(f"{what}: minimum_sign is 0; it must be 1 or -1")
    return layout


def check_addresses(encoding: Encoding, columns: int) -> None:
    """Raises BestiaryError unless, in a row of that many columns, each field lies inside its plane."""
    layout, sizes = encoding.layout, encoding.plane_bytes(columns)
    if layout is None:
        return
    if layout.group and columns % layout.group:
        raise BestiaryError(f"{encoding.name}: groups of {layout.group} do not divide a row of {columns}")
    if columns * sum(piece.width for piece in layout.codes) > 8 * sum(sizes):  # else few bytes become many weights
        raise BestiaryError(f"{encoding.name}: the codes of a row of {columns} do not fit into {sum(sizes)} bytes")
    groups = columns // layout.group if layout.group else 1
    factors = [layout.scale, *([layout.minimum] if layout.minimum is not None else [])]
    per_group = [*layout.zero, *(field for factor in factors for field in (factor.at, *factor.integer))]
    for field, entries in [*((piece, columns) for piece in layout.codes), *((piece, groups) for piece in per_group)]:
        end = last_bit(field, entries)
        if end > 8 * sizes[field.plane]:
            raise BestiaryError(f"{encoding.name}: a row of {columns} reaches bit {end} of plane {field.plane}, which "
                                f"has {8 * sizes[field.plane]}")


def last_bit(field: Bits, entries: int) -> int:
    """Where the entry that lies furthest back ends."""
    period = len(field.offsets)
    return max(offset + (entries - 1 - place) // period * field.stride
               for place, offset in enumerate(field.offsets[:entries])) + field.width


def check_encoding(encoding: Encoding) -> None:
    """Raises BestiaryError for an encoding of a plugin that no row could be decoded from, or none that is read back
    from a file."""
    if encoding.number is not None:
        if NUMBERS.get(encoding.number) != sum(encoding.block_bytes) or encoding.block_size != 1:
            raise BestiaryError(f"{encoding.name}: number is {short(encoding.number)} in {list(encoding.block_bytes)} "
                                f"bytes for {encoding.block_size} weights; known, each in a block of its own: "
                                + ", ".join(f"{name} in {size}" for name, size in NUMBERS.items()))
        return
    if encoding.layout is None:
        if not callable(encoding.decoder):
            raise BestiaryError(f"{encoding.name} has neither a layout nor a decoder")
        return
    if not isinstance(encoding.layout, Layout):
        raise BestiaryError(f"{encoding.name}: layout is {short(encoding.layout)}; it must be a Layout")
    try:
        text = json.dumps(plain(encoding.layout), allow_nan=False, default=float)
    except (TypeError, ValueError) as error:
        raise BestiaryError(f"{encoding.name}: layout is no data: {error}") from None
    parse_layout(json.loads(text), encoding.name, len(encoding.block_bytes))
    columns = lcm(encoding.block_size, encoding.layout.group or 1)
    for blocks in (1, 2):
        check_addresses(encoding, blocks * columns)
