"""compressed-tensors: integers packed into words along the input, or bytes and floats of 8 bits as they are.

Source: the compressed-tensors package. weight_packed: (out, in * bits / 32) words of 32 bits, codes in order from the
lowest bit, each more by half its range than the signed integer that it means; weight_scale: (out, groups);
weight_zero_point: packed as the codes, but along the output, (out * bits / 32, groups); weight_shape: (out, in);
weight_g_idx: the group of each input. weight[o, i] = scale[o, g] * (code - zero[o, g]).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.decoding import number_from_bits
from bestiary.encoding import PLAIN, Encoding
from bestiary.errors import BestiaryError, short
from bestiary.files import FileTensor
from bestiary.tensor import Ordered, Tensor, encode_plain
from bestiary_plugins.loaders.quantized.fp8 import OF_ACTIVATIONS, block_of, give_scaled
from bestiary_plugins.loaders.quantized.gptq import read_order
from bestiary_plugins.loaders.quantized.parts import FLOATS, Parts, Settings, raw
from bestiary_plugins.loaders.quantized.rows import NUMBER_BYTES, IntegerRows, columns_by_group, pack, unpack
from bestiary_plugins.loaders.quantized.scaled import E4M3, INT8

log = logging.getLogger("bestiary")
Bytes = NDArray[np.uint8]
PACKED, BYTES = ("pack-quantized",), ("int-quantized", "float-quantized", "naive-quantized")
BITS = (2, 4, 8)
LARGEST_GROUP = 1 << 20


def read_compressed(settings: Settings, parts: Parts) -> None:
    """Puts weights in place of their parts."""
    if sparse(settings):
        settings.refuse("sparsity_config", "sparse weights are not read")
    kind = settings.one_of("format", (*PACKED, *BYTES))
    weights = scheme_of(settings)
    if kind in PACKED:
        read_packed(weights, parts)
    else:
        give_scaled(parts, byte_blocks(weights), (INT8, E4M3))


def sparse(settings: Settings) -> bool:
    section = settings.values.get("sparsity_config")
    return bool(section) and (not isinstance(section, dict) or section.get("format") != "dense")


def scheme_of(settings: Settings) -> Settings:
    """What is said of weights: the same in all groups of modules."""
    groups: Any = settings.values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise BestiaryError(f"{settings.where}: config_groups = {short(groups)}; it must be an object, not empty")
    found: list[dict[str, Any]] = []
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise BestiaryError(f"{settings.where}: config_groups: {short(name)} says nothing of weights")
        if isinstance(group, dict) and group.get("format") not in (None, settings.values.get("format")):
            raise BestiaryError(f"{settings.where}: config_groups: {short(name)} has the format "
                                f"{short(group.get('format'))}; formats that differ by module are not read")
        found.append(weights)
    if any(weights != found[0] for weights in found):
        raise BestiaryError(f"{settings.where}: config_groups whose weights differ are not read: {short(list(groups))}")
    return Settings(found[0], f"{settings.where}: weights")


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


def read_packed(weights: Settings, parts: Parts) -> None:
    weights.one_of("type", ("int",), "int")
    bits, symmetric = weights.one_of("num_bits", BITS), weights.flag("symmetric", True)
    strategy = weights.one_of("strategy", ("group", "channel"))
    group = group_of(weights) if strategy == "group" else None
    decoded = 0
    for module in parts.ending(".weight_packed"):
        weight = take(parts, module, bits, group, symmetric)
        tensor = Packed(f"{module}.weight", weight)
        decoded += weight.order is not None and tensor.ordered is None
        parts.give(f"{module}.weight_packed", tensor.name, tensor)
    for name in [name for name in parts.left if name.endswith(OF_ACTIVATIONS)]:
        parts.drop(name)
    if decoded:
        log.warning("%s: the groups of %d weights are no runs of group_size inputs in any order (actorder), which no "
                    "layout describes: they are decoded", parts.folder, decoded)


@dataclass(frozen=True)
class Weight:
    """The parts of a weight, known to fit together. order: the group of each input, where these are no runs. moved: the
    order that inputs are put in, so that they are."""

    bits: int
    layout: IntegerRows
    codes: FileTensor
    scales: FileTensor
    zeros: FileTensor | None
    order: NDArray[np.int64] | None
    moved: NDArray[np.int64] | None = None


class Packed(Tensor):
    """A weight of packed integers."""

    def __init__(self, name: str, weight: Weight) -> None:
        self.name, self.shape, self._weight = name, (weight.codes.rows, weight.layout.columns), weight
        self.encoding: Encoding = weight.layout.encoding if weight.order is None else PLAIN[weight.layout.number]

    @property
    def ordered(self) -> Ordered | None:
        weight = self._weight
        moved = None if weight.order is None else columns_by_group(weight.order, weight.layout.group)
        return None if moved is None else Ordered(Packed(self.name, replace(weight, order=None, moved=moved)), moved)

    def read(self, start: int, stop: int) -> Bytes:
        weight = self._weight
        stream = raw(weight.codes, start, stop)
        if weight.moved is not None:
            stream = pack(unpack(stream, weight.bits).take(weight.moved, 1), weight.bits)
        scales = raw(weight.scales, start, stop).reshape(stop - start, weight.scales.columns,
                                                        weight.scales.encoding.block_bytes[0])
        zeros = None if weight.zeros is None else zeros_of(weight.zeros, weight.bits, start, stop)
        if weight.order is None:
            return weight.layout.fill(stream, scales, zeros)
        number = weight.layout.number
        values = np.ascontiguousarray(scales).view(np.uint16 if NUMBER_BYTES[number] == 2 else np.uint32)[:, :, 0]
        scale = number_from_bits(values.astype(np.uint32), number)[:, weight.order]
        zero = np.float32(1 << (weight.bits - 1)) if zeros is None else zeros[:, weight.order].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return encode_plain(scale * (unpack(stream, weight.bits) - zero), PLAIN[number])


def zeros_of(zeros: FileTensor, bits: int, start: int, stop: int) -> Bytes:
    """Those of rows start..stop-1, (rows, groups)."""
    first, last = start * bits // 32, -(-stop * bits // 32)
    words = raw(zeros, first, last).view(np.uint32)  # (words, groups)
    codes = unpack(np.ascontiguousarray(words.T).view(np.uint8), bits)  # (groups, rows from the first word on)
    skipped = start - first * 32 // bits
    return np.ascontiguousarray(codes[:, skipped:skipped + stop - start].T)


def take(parts: Parts, module: str, bits: int, group: int | None, symmetric: bool) -> Weight:
    """The parts of one weight, their shapes compared with one another and with the config."""
    codes = parts.take(f"{module}.weight_packed", ("I32",))
    scales = parts.take(f"{module}.weight_scale", FLOATS)
    rows, columns = codes.rows, codes.columns * 32 // bits
    shape = parts.take(f"{module}.weight_shape", ("I64", "I32"), (1,))
    parts.fits(shape, f"{module}.weight_shape", (2,), "a weight")
    said = raw(shape, 0, 1)[0].view(np.int64 if shape.encoding.name == "I64" else np.int32).tolist()
    if said != [rows, columns]:
        raise BestiaryError(f"{parts.folder}: tensor {module}.weight_shape holds {said}; {bits} bits in "
                            f"{module}.weight_packed of {list(codes.shape)} are {[rows, columns]}")
    groups = -(-columns // (group or columns))
    why = f"{module}.weight_packed of {list(codes.shape)} with num_bits = {bits}, group_size = {group}"
    parts.fits(scales, f"{module}.weight_scale", (rows, groups), why)
    zeros = None
    if not symmetric:
        zeros = parts.take(f"{module}.weight_zero_point", ("I32",))
        parts.fits(zeros, f"{module}.weight_zero_point", (-(-rows * bits // 32), groups), why)
    order = None
    if f"{module}.weight_g_idx" in parts.left:
        order = read_order(parts, f"{module}.weight_g_idx", columns, groups)
        if np.array_equal(order, np.arange(columns) // (group or columns)):
            order = None
    layout = IntegerRows(bits, columns, group or columns, scales.encoding.name, not symmetric)
    return Weight(bits, layout, codes, scales, zeros, order)
