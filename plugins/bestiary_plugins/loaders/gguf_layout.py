"""An encoding that GGUF has no code for, as JSON in its metadata and I8 tensors of its planes, and back.

The description is input like any other: see bestiary.layout_json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, short
from bestiary.layout_json import (
    LARGEST_BLOCK,
    MOST_PLANES,
    Fields,
    check_addresses,
    check_encoding,
    parse_layout,
    plain,
    whole,
)
from bestiary.registry import Registry
from bestiary.strict_json import LARGEST_LIST, parse_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.gguf_types import alike


def plane_name(tensor: str, plane: int) -> str:
    """What the tensor of a plane is called."""
    return f"{tensor}.plane{plane}"


def describe(encoding: Encoding, known: Mapping[str, Encoding]) -> dict[str, Any]:
    """The encoding as an object of JSON; of one without a layout only whose it is, because no other can read it. Raises
    BestiaryError where that is none of the `known`."""
    sizes = {"block_size": encoding.block_size, "block_bytes": list(encoding.block_bytes)}
    if encoding.layout is not None:
        check_encoding(encoding)  # else nobody could read what is written
        return {**sizes, "layout": plain(encoding.layout)}
    whose = [entry.origin for entry in known.providers(encoding.name) if entry.item == encoding] \
        if isinstance(known, Registry) else []
    if not whose:
        raise BestiaryError(f"{encoding.name} has no GGUF type code and no layout, and is no plugin's; "
                            "it cannot be written as GGUF")
    return {**sizes, "plugin": str(whose[0])}


def to_json(encodings: Mapping[str, Encoding], tensors: Mapping[str, Tensor], known: Mapping[str, Encoding]) -> str:
    """The metadata value: the encodings by name, and which tensors are in them."""
    return json.dumps({"encodings": {name: describe(encoding, known) for name, encoding in encodings.items()},
                       "tensors": {name: {"encoding": tensor.encoding.name, "columns": tensor.columns}
                                   for name, tensor in tensors.items()}},
                      allow_nan=False, default=float)  # a codebook may hold numpy's numbers


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
