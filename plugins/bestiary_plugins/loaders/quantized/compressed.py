"""compressed-tensors: integers packed into words along the input, or bytes and floats of 8 bits as they are.

Source: the compressed-tensors package. weight_packed: (out, in * bits / 32) words of 32 bits, codes in order from the
lowest bit, also across words, each more by half its range than the signed integer that it means; weight_scale: (out,
groups); weight_zero_point: packed as the codes, but along the output, (out * bits / 32, groups); weight_shape: (out,
in); weight_g_idx: the group of each input. weight[o, i] = scale[o, g] * (code - zero[o, g]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, short
from bestiary.files import FileTensor
from bestiary.tensor import Ordered, Tensor
from bestiary_plugins.loaders.quantized.act_order import Rows, read_groups, rows_of, say_uneven
from bestiary_plugins.loaders.quantized.fp8 import block_of, give_scaled, of_blocks
from bestiary_plugins.loaders.quantized.parts import FLOATS, Parts, Settings, distinct, fitting, in_words, raw
from bestiary_plugins.loaders.quantized.rows import IntegerRows, unpack
from bestiary_plugins.loaders.quantized.scaled import E4M3, INT8

Bytes = NDArray[np.uint8]
PACKED, BYTES = ("pack-quantized",), ("int-quantized", "float-quantized", "naive-quantized")
BITS = (2, 3, 4, 8)
LARGEST_GROUP = 1 << 20
ROTATED_BEFORE = ("weight_input", "weight_output")
"""Places of a rotation that are in the weights as they are stored."""


@dataclass(frozen=True)
class Scheme:
    """What the config says of packed weights. group: of columns; None for one group."""

    bits: int
    group: int | None
    symmetric: bool


def read_compressed(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Which of several groups of modules a weight is in, its parts say. Says how
    they are quantized."""
    if other_than_dense(settings):
        settings.refuse("sparsity_config", "sparse weights are not read")
    check_rotations(settings)
    packed: list[Scheme] = []
    blocks: list[tuple[int, int] | None] = []
    for kind, weights in schemes_of(settings):
        if kind in PACKED:
            packed.append(packed_scheme(weights))
        else:
            blocks.append(byte_blocks(weights))
    words = [in_words(scheme.bits, scheme.group, scheme.symmetric) for scheme in packed]
    act_order = read_packed(distinct(packed, settings.where), parts) if packed else False
    words += [f"8 bits, {of_blocks(block)}" for block in blocks]
    give_scaled(parts, distinct(blocks, settings.where), (INT8, E4M3) if blocks else ())
    return f"compressed-tensors, {' or '.join(dict.fromkeys(words))}{', act-order' * act_order}"


def other_than_dense(settings: Settings) -> bool:
    section = settings.values.get("sparsity_config")
    return bool(section) and (not isinstance(section, dict) or section.get("format") != "dense")


def check_rotations(settings: Settings) -> None:
    """Raises BestiaryError where activations are to be rotated before weights that were. What lies in weights alone is
    done."""
    section: Any = settings.values.get("transform_config") or {}
    groups: Any = section.get("config_groups") if isinstance(section, dict) else section
    for group in groups.values() if isinstance(groups, dict) else [groups] if groups else []:
        uses = group.get("apply") if isinstance(group, dict) else None
        if not isinstance(uses, list) or not all(isinstance(use, dict) and use.get("location") in ROTATED_BEFORE
                                                 for use in uses):
            settings.refuse("transform_config", "activations are rotated while the model runs, which is not done")


def schemes_of(settings: Settings) -> list[tuple[str, Settings]]:
    """The format of each group of modules, and what is said of its weights."""
    groups: Any = settings.values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise BestiaryError(f"{settings.where}: config_groups = {short(groups)}; it must be an object, not empty")
    found: list[tuple[str, Settings]] = []
    for name, group in groups.items():
        where = f"{settings.where}: config_groups: {short(name)}"
        weights = group.get("weights") if isinstance(group, dict) else group
        if isinstance(group, dict) and weights is None:  # it speaks of activations or of the cache
            continue
        if not isinstance(weights, dict):
            raise BestiaryError(f"{where}: weights = {short(weights)}; it must be an object")
        own = group if group.get("format") is not None else settings.values
        kind = Settings(own, where if own is group else settings.where).one_of("format", (*PACKED, *BYTES))
        found.append((kind, Settings(weights, f"{where}: weights")))
    if not found:
        raise BestiaryError(f"{settings.where}: config_groups: {short(list(groups))} say nothing of weights")
    return found


def byte_blocks(weights: Settings) -> tuple[int, int] | None:
    weights.one_of("num_bits", (8,))
    strategy = weights.one_of("strategy", ("tensor", "channel", "group", "block"))
    if strategy == "group":
        return 1, group_of(weights)
    return block_of(weights, "block_structure") if strategy == "block" else None


def group_of(weights: Settings) -> int:
    size = weights.whole("group_size", 8, LARGEST_GROUP)
    if size % 8:
        raise BestiaryError(f"{weights.where}: group_size = {size}; it must be a multiple of 8")
    return size


def packed_scheme(weights: Settings) -> Scheme:
    weights.one_of("type", ("int",), "int")
    strategy = weights.one_of("strategy", ("group", "channel"))
    return Scheme(weights.one_of("num_bits", BITS), group_of(weights) if strategy == "group" else None,
                  weights.flag("symmetric", True))


def read_packed(schemes: Sequence[Scheme], parts: Parts) -> bool:
    """Whether any of them has act-order."""
    act_order = False
    uneven: list[Encoding] = []
    for module in parts.ending(".weight_packed"):
        weight = take(parts, module, schemes)
        rows, moved = rows_of(weight.layout, weight.groups)
        offer = None if moved is None else Ordered(Packed(f"{module}.weight", weight, moved), moved.order)
        tensor = Packed(f"{module}.weight", weight, rows, offer)
        if offer is None and not rows.encoding.quantized:
            uneven.append(rows.encoding)
        act_order |= not rows.encoding.quantized
        parts.give(f"{module}.weight_packed", tensor.name, tensor)
    say_uneven(parts.folder, uneven)
    return act_order


@dataclass(frozen=True)
class Weight:
    """The parts of a weight, known to fit together. groups: of each column, where the file says that."""

    layout: IntegerRows
    codes: FileTensor
    scales: FileTensor
    zeros: FileTensor | None
    groups: NDArray[np.int64] | None


class Packed(Tensor):
    """A weight of packed integers."""

    def __init__(self, name: str, weight: Weight, rows: Rows, offer: Ordered | None = None) -> None:
        self.name, self.shape, self.encoding = name, (weight.codes.rows, weight.layout.columns), rows.encoding
        self._weight, self._rows, self._offer = weight, rows, offer

    @property
    def ordered(self) -> Ordered | None:
        return self._offer

    @property
    def quantized_as(self) -> Encoding:
        return self._weight.layout.encoding

    def read(self, start: int, stop: int) -> Bytes:
        weight, bits = self._weight, self._weight.layout.bits
        stream = raw(weight.codes, start, stop)[:, :self.columns * bits // 8]  # the last word may not be full
        scales = raw(weight.scales, start, stop).reshape(stop - start, weight.scales.columns,
                                                        weight.scales.encoding.block_bytes[0])
        zeros = None if weight.zeros is None else zeros_of(weight.zeros, bits, start, stop)
        return self._rows.fill(stream, scales, zeros)


def zeros_of(zeros: FileTensor, bits: int, start: int, stop: int) -> Bytes:
    """Those of rows start..stop-1, (rows, groups)."""
    begin = start // 32 * 32  # where a word begins, whatever the bits
    words = raw(zeros, begin * bits // 32, -(-stop * bits // 32)).view(np.uint32)  # (words, groups)
    codes = unpack(np.ascontiguousarray(words.T).view(np.uint8), bits)  # (groups, rows from the first word on)
    return np.ascontiguousarray(codes[:, start - begin:stop - begin].T)


def take(parts: Parts, module: str, schemes: Sequence[Scheme]) -> Weight:
    """The parts of one weight, in the scheme that their shapes fit."""
    codes = parts.take(f"{module}.weight_packed", ("I32",))
    scales = parts.take(f"{module}.weight_scale", FLOATS)
    shape = parts.take(f"{module}.weight_shape", ("I64", "I32"), (1,))
    parts.fits(shape, f"{module}.weight_shape", (2,), "a weight")
    rows, columns = raw(shape, 0, 1)[0].view(np.int64 if shape.encoding.name == "I64" else np.int32).tolist()
    if rows != codes.rows or columns < 8 or columns % 8:
        raise BestiaryError(f"{parts.folder}: tensor {module}.weight_shape holds {[rows, columns]}; {module}."
                            f"weight_packed of {list(codes.shape)} has {codes.rows} rows, and a multiple of 8 columns "
                            "is read")
    found = fitting(schemes, lambda scheme: check(parts, module, columns, (codes, scales), scheme))
    bits, group, symmetric = found[0].bits, found[0].group or columns, found[0].symmetric
    if len({scheme.bits for scheme in found}) > 1 or scales.columns > 1 and len({s.group for s in found}) > 1:
        raise BestiaryError(f"{parts.folder}: tensor {module}.weight_packed fits several of the config_groups")
    zeros = None if symmetric else parts.take(f"{module}.weight_zero_point", ("I32",))
    groups = read_groups(parts, f"{module}.weight_g_idx", columns, scales.columns)
    layout = IntegerRows(bits, columns, group, scales.encoding.name, not symmetric)
    return Weight(layout, codes, scales, zeros, groups)


def check(parts: Parts, module: str, columns: int, given: tuple[FileTensor, FileTensor], scheme: Scheme) -> None:
    """Compares the shapes of codes, scales and zeros with what weight_shape and the config say. Raises BestiaryError.
    """
    (codes, scales), bits = given, scheme.bits
    groups = -(-columns // (scheme.group or columns))
    why = f"a row of {columns} with num_bits = {bits}, group_size = {scheme.group}"
    parts.fits(codes, f"{module}.weight_packed", (codes.rows, -(-columns * bits // 32)), why)
    parts.fits(scales, f"{module}.weight_scale", (codes.rows, groups), why)
    name = f"{module}.weight_zero_point"
    zeros = parts.left.get(name)
    if scheme.symmetric != (zeros is None):
        raise BestiaryError(f"{parts.folder}: tensor {name} is " + (
            "missing" if zeros is None else "there, where the config says symmetric = true"))
    if zeros is not None:
        parts.fits(zeros, name, (-(-codes.rows * bits // 32), groups), why)
