"""bitsandbytes: places in a codebook of 16 (NF4, FP4), a scale a block of the flattened weight; and signed bytes.

Sources: Dettmers et al. 2023 (arXiv 2305.14314) and 2022 (arXiv 2208.07339); the bitsandbytes package. weight: (n / 2,
1) bytes, the earlier code in the high nibble, or as many bytes that are said to be numbers (bnb_4bit_quant_storage);
weight.absmax: a scale a block, f32, or bytes that are places in
weight.nested_quant_map times weight.nested_absmax of their block, plus an offset; weight.quant_state.*: JSON, which
holds the shape, the sizes of blocks and the offset. Signed bytes: weight = code * SCB / 127, SCB one a row.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError, short
from bestiary.files import FileTensor
from bestiary.strict_json import parse_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.quantized.parts import FLOATS, Parts, Settings, raw
from bestiary_plugins.loaders.quantized.rows import CodedRows
from bestiary_plugins.loaders.quantized.scaled import INT8, Scaled, take_scales

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
STORAGE = ("U8", "I8", *FLOATS)
STATE = ".quant_state.bitsandbytes__"
LARGEST_STATE = 4096
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
"""Quantiles of a normal distribution, over the largest (appendix E of the paper)."""
FP4 = tuple((np.asarray([sign * size for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3)], np.float32)
             / np.float32(12)).tolist())
CODEBOOKS = {"nf4": NF4, "fp4": FP4}


def read_bitsandbytes(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts: what a weight is, its parts say. Says how they are quantized."""
    found: dict[str, None] = {}
    for kind, codebook in CODEBOOKS.items():
        for name in parts.ending(STATE + kind):
            weight = four_bits(parts, name, kind, codebook)
            parts.give(name, name, weight)
            found[f"{kind.upper()}, groups of {weight.block}"] = None
    for module in parts.ending(".SCB"):
        codes = parts.take(f"{module}.weight", (INT8,))
        scales = take_scales(parts, f"{module}.SCB", codes, types=("f32",))
        if f"{module}.weight_format" in parts.left:
            order = parts.take(f"{module}.weight_format", ("U8",), (0, 1))
            if raw(order, 0, 1).any():
                raise BestiaryError(f"{parts.folder}: tensor {module}.weight_format is {int(raw(order, 0, 1).max())}; "
                                    "only 0, whole rows, is read")
        times = np.float32(1) / np.float32(127)
        tensor = Scaled(f"{module}.weight", codes, replace(scales, factor=times))
        tensor.outputs_first = True
        parts.give(f"{module}.weight", tensor.name, tensor)
        found["int8, a scale a row"] = None
    return f"bitsandbytes, {' or '.join(found) or 'nothing'}"


def four_bits(parts: Parts, name: str, kind: str, codebook: tuple[float, ...]) -> FourBits:
    """The weight `name`, its parts compared with one another."""
    state = parts.take(name + STATE + kind, ("U8",), (1,))
    if state.columns > LARGEST_STATE:
        raise BestiaryError(f"{parts.folder}: tensor {state.name} has {state.columns} bytes; {LARGEST_STATE} are the "
                            "most")
    settings = Settings(parse_object(raw(state, 0, 1).tobytes(), f"{parts.folder}: tensor {state.name}"),
                        f"{parts.folder}: tensor {state.name}")
    settings.one_of("quant_type", (kind,))
    shape, block = shape_of(settings), settings.whole("blocksize", 8, 1 << 16)
    codes = parts.take(name, STORAGE, (1, 2))
    count = prod(shape)
    if codes.nbytes != count // 2 or shape[1] % 8 or block % 8:
        raise BestiaryError(f"{parts.folder}: tensor {name} has the shape {list(codes.shape)}, {codes.nbytes} bytes; a "
                            f"weight of {list(shape)} asks for {count // 2} bytes, in rows and blocks of multiples of "
                            "8 weights")
    check_map(parts, f"{name}.quant_map", np.asarray(codebook, np.float32))
    return FourBits(name, kind, codebook, shape, block, codes, absmax_of(parts, name, settings, -(-count // block)))


def shape_of(settings: Settings) -> tuple[int, int]:
    shape = settings.values.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise BestiaryError(f"{settings.where}: shape = {short(shape)}; it must be two sizes")
    return shape[0], shape[1]


def check_map(parts: Parts, name: str, wanted: Floats) -> None:
    """Raises BestiaryError where the codebook is another than its name says."""
    given = parts.take(name, ("f32",), (1,))
    parts.fits(given, name, wanted.shape, "its codebook")
    if not np.array_equal(given.array(), wanted):
        raise BestiaryError(f"{parts.folder}: tensor {name} holds another codebook than its type has")


class Absmax:
    """The scales of blocks first..last-1, f32, without those before them."""

    def __init__(self, values: FileTensor, nested: tuple[Floats, Floats, int, np.float32] | None) -> None:
        self._values, self._nested = values, nested

    def blocks(self, first: int, last: int) -> Floats:
        values, size = self._values, self._values.encoding.block_bytes[0]
        given = values.file.read_array(values.offset + first * size, (last - first) * size, f"tensor {values.name}")
        if self._nested is None:
            return given.view(np.float32)
        table, scales, block, offset = self._nested
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be infinite or no number
            found: Floats = table[given] * scales[np.arange(first, last) // block] + offset
        return found


def absmax_of(parts: Parts, name: str, settings: Settings, blocks: int) -> Absmax:
    nested = f"{name}.nested_absmax" in parts.left
    values = parts.take(f"{name}.absmax", ("U8",) if nested else ("f32",), (1,))
    parts.fits(values, f"{name}.absmax", (blocks,), name)
    if not nested:
        return Absmax(values, None)
    block = settings.whole("nested_blocksize", 1, 1 << 20)
    offset: Any = settings.values.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not abs(offset) < 1e30:
        raise BestiaryError(f"{settings.where}: nested_offset = {short(offset)}; it must be a number")
    scales = parts.take(f"{name}.nested_absmax", ("f32",), (1,))
    parts.fits(scales, f"{name}.nested_absmax", (-(-blocks // block),), f"{name}.absmax")
    table = parts.take(f"{name}.nested_quant_map", ("f32",), (1,))
    parts.fits(table, f"{name}.nested_quant_map", (256,), f"{name}.absmax")
    return Absmax(values, (table.array(), scales.array(), block, np.float32(offset)))


class FourBits(Tensor):
    """A weight whose codes and blocks run on from row to row."""

    outputs_first = True

    def __init__(self, name: str, kind: str, codebook: tuple[float, ...], shape: tuple[int, int], block: int,
                 codes: FileTensor, absmax: Absmax) -> None:
        self.name, self.shape, self.block, self._codes, self._absmax = name, shape, block, codes, absmax
        self._part = gcd(shape[1], block)  # columns that are in one block, wherever their row begins
        self._layout = CodedRows(kind, codebook, shape[1], self._part, "f32")
        self.encoding = self._layout.encoding

    def read(self, start: int, stop: int) -> Bytes:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} of tensor {self.name}, which has {self.rows}")
        size, file = self.columns // 2, self._codes.file
        codes = file.read_array(self._codes.offset + start * size, (stop - start) * size, f"tensor {self.name}")
        places = np.arange(start * self.columns, stop * self.columns, self._part) // self.block
        first = start * self.columns // self.block
        scales = self._absmax.blocks(first, -(-stop * self.columns // self.block))[places - first]
        return self._layout.fill((codes >> np.uint8(4) | codes << np.uint8(4)).reshape(stop - start, size),
                                 scales.view(np.uint8).reshape(stop - start, self.columns // self._part, 4))
