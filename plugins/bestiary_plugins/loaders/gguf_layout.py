"""An encoding that GGUF has no code for, as JSON in its metadata and I8 tensors of its planes, and back.

The description is input like any other: each field is checked, and before a tensor is used the largest address of each
field in its row is compared with the plane.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError, short
from bestiary.registry import Registry
from bestiary.strict_json import LARGEST_LIST, parse_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.gguf_types import alike

MOST_OFFSETS, MOST_PIECES, MOST_PLANES, LARGEST_BLOCK = 1 << 16, 16, 8, 1 << 20
MOST_CODE_BITS, MOST_FIELD_BITS = 16, 24
SMALL = (-(1 << 24), 1 << 24)
NUMBER_BITS = {"f32": 32, "f16": 16, "bf16": 16, "e8m0": 8}


def plane_name(tensor: str, plane: int) -> str:
    """What the tensor of a plane is called."""
    return f"{tensor}.plane{plane}"


def describe(encoding: Encoding, known: Mapping[str, Encoding]) -> dict[str, Any]:
    """The encoding as an object of JSON; of one without a layout only whose it is, because no other can read it. Raises
    BestiaryError where that is none of the `known`."""
    sizes = {"block_size": encoding.block_size, "block_bytes": list(encoding.block_bytes)}
    if encoding.layout is not None:
        return {**sizes, "layout": plain(encoding.layout)}
    whose = [entry.origin for entry in known.providers(encoding.name) if entry.item == encoding] \
        if isinstance(known, Registry) else []
    if not whose:
        raise BestiaryError(f"{encoding.name} has no GGUF type code and no layout, and is no plugin's; "
                            "it cannot be written as GGUF")
    return {**sizes, "plugin": str(whose[0])}


def plain(value: Any) -> Any:
    """A layout as JSON's own types; fields at their defaults are left out."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclass_fields(value)
                if getattr(value, field.name) != field.default}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def to_json(encodings: Mapping[str, Encoding], tensors: Mapping[str, Tensor], known: Mapping[str, Encoding]) -> str:
    """The metadata value: the encodings by name, and which tensors are in them."""
    return json.dumps({"encodings": {name: describe(encoding, known) for name, encoding in encodings.items()},
                       "tensors": {name: {"encoding": tensor.encoding.name, "columns": tensor.columns}
                                   for name, tensor in tensors.items()}},
                      allow_nan=False, default=float)  # a codebook may hold numpy's numbers


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


def parse_encoding(name: str, value: Any, known: Mapping[str, Encoding]) -> Encoding:
    """The encoding that an object describes; one among the `known` that has the same description in place of it. Raises
    BestiaryError for what does not fit together, and for one without a layout that is not known."""
    what = f"encoding {name}"
    with Fields(value, what) as fields:
        size = fields.whole("block_size", 1, LARGEST_BLOCK)
        planes = fields.array("block_bytes", 1, MOST_PLANES, lambda entry, at: whole(entry, 1, LARGEST_BLOCK, at))
        plugin = fields.take("plugin", None)
        layout = parse_layout(fields.take("layout"), what, len(planes)) if plugin is None else None
    for other in alike(name, known):
        if (other.block_size, other.block_bytes, other.layout) == (size, planes, layout) and other.number is None:
            return other
    if layout is None:
        raise BestiaryError(f"{what} has no layout, so only the plugin that wrote it can read it: {short(plugin)}, "
                            "which is not installed here")
    return Encoding(name, size, planes, layout)


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


class PlanesTensor(Tensor):
    """A weight whose planes are tensors of bytes of their own."""

    def __init__(self, planes: list[Tensor], shape: tuple[int, ...], encoding: Encoding) -> None:
        self.shape, self.encoding, self._planes = shape, encoding, planes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.concatenate([plane.read(start, stop) for plane in self._planes], axis=1)


def join_planes(text: str, tensors: Mapping[str, Tensor], known: Mapping[str, Encoding],
                what: str) -> dict[str, Tensor]:
    """The tensors of a file with the planes put together that the metadata value `text` describes."""
    with Fields(parse_object(text, what, False, LARGEST_LIST), what) as fields:
        described, members = fields.take("encodings"), fields.take("tensors")
    Fields(members, f"{what}: tensors")
    try:
        encodings = {name: parse_encoding(name, value, known) for name, value in described.items()} \
            if isinstance(described, dict) else {}
    except BestiaryError as error:
        raise BestiaryError(f"{what}: {error}") from None
    left, joined = dict(tensors), dict[str, Tensor]()
    for name, value in members.items():
        with Fields(value, f"{what}: tensor {name}") as fields:
            chosen, columns = fields.take("encoding"), fields.whole("columns", 1, 1 << 40)
        if not isinstance(chosen, str) or chosen not in encodings:
            raise BestiaryError(f"{what}: tensor {name} is in {short(chosen)}, which is not described")
        if name in left:
            raise BestiaryError(f"{what}: tensor {name} stands there as itself and as planes")
        joined[name] = join(name, encodings[chosen], columns, left, what)
    # Where the first plane stood, so that the order of the tensors survives.
    first = {plane_name(name, 0): name for name in joined}
    planes = {plane_name(name, i) for name in joined for i in range(len(joined[name].encoding.block_bytes))}
    return {first.get(name, name): joined[first[name]] if name in first else tensor
            for name, tensor in tensors.items() if name in first or name not in planes}


def join(name: str, encoding: Encoding, columns: int, tensors: dict[str, Tensor], what: str) -> Tensor:
    """The tensor made of its planes."""
    sizes = encoding.plane_bytes(columns)
    check_addresses(encoding, columns)
    planes: list[Tensor] = []
    for i, size in enumerate(sizes):
        plane = tensors.pop(plane_name(name, i), None)
        if plane is None:
            raise BestiaryError(f"{what}: tensor {plane_name(name, i)} is missing")
        lead = planes[0].shape[:-1] if planes else plane.shape[:-1]
        if plane.encoding.name != "i8" or plane.columns != size or plane.shape[:-1] != lead:
            raise BestiaryError(f"{what}: tensor {plane_name(name, i)} is {plane.encoding.name} of shape "
                                f"{list(plane.shape)}; it must be i8 in rows of {size}")
        planes.append(plane)
    return PlanesTensor(planes, (*planes[0].shape[:-1], columns), encoding)


def plane_shape(tensor: Tensor, plane: int) -> tuple[int, ...]:
    """The shape of a plane's tensor."""
    return (*tensor.shape[:-1], tensor.encoding.plane_bytes(tensor.columns)[plane])
