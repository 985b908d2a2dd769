"""GPTQ: codes of 2, 3, 4 or 8 bits packed along the input, the transpose of a weight.

Sources: Frantar et al. 2022 (arXiv 2210.17323); what AutoGPTQ and GPTQModel write, "gptq" and "gptq_v2" of their
checkpoint_format. qweight: (in * bits / 32, out) words of 32 bits, codes of a column in order from the lowest bit;
scales: (groups, out); qzeros: (groups, out * bits / 32), in the first format one less than they mean; g_idx: (in,),
the group of each input. weight[o, i] = scales[g, o] * (code - zero[g, o]), g = g_idx[i].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, short
from bestiary.files import FileTensor
from bestiary.tensor import Ordered
from bestiary_plugins.loaders.quantized.act_order import Rows, read_groups, rows_of, say_uneven
from bestiary_plugins.loaders.quantized.panels import Panel, Panels, Transposed, columns
from bestiary_plugins.loaders.quantized.parts import (
    FLOATS,
    Once,
    Parts,
    Settings,
    check_middle,
    distinct,
    fitting,
    in_words,
)
from bestiary_plugins.loaders.quantized.rows import IntegerRows, unpack

Bytes = NDArray[np.uint8]
BITS = (2, 3, 4, 8)
OF_MODULES = ("bits", "group_size", "sym", "desc_act", "checkpoint_format", "format")
"""Settings that a module may have of its own."""
OF_WHOLE_WORDS = (
    "some zeros are stored as all ones. Taken for what GPTQModel writes, which makes zeros one less by whole words; of "
    "a file of Intel Neural Compressor, which does it zero by zero, the zeros after these come out one too large: it "
    "should be saved in the format gptq_v2, which stores zeros as they are")


@dataclass(frozen=True)
class Format:
    """What the config says of all weights. group: of inputs; None for one group."""

    bits: int
    group: int | None
    symmetric: bool
    one_less: bool
    act_order: bool


def read_formats(settings: Settings) -> list[Format]:
    """That of the folder, and those of single modules. Which is whose, the shapes say: names are not compared."""
    modules: Any = settings.values.get("dynamic") or {}
    if not isinstance(modules, dict) or not all(isinstance(said, dict) for said in modules.values()):
        raise BestiaryError(f"{settings.where}: dynamic = {short(modules)}; it must be an object of objects")
    usual = {key: settings.values.get(key) for key in OF_MODULES}
    others = (read_format(Settings({**usual, **said}, f"{settings.where}: dynamic: {short(name)}"))
              for name, said in modules.items() if not name.startswith("-:"))  # those are not quantized
    return distinct([read_format(settings), *others], settings.where)


def read_format(settings: Settings) -> Format:
    named = "checkpoint_format" if settings.values.get("checkpoint_format") else "format"
    format = settings.one_of(named, ("gptq", "gptq_v2"), "gptq")
    settings.refuse("is_marlin_format", "the order of codes that one kernel wants is not read")
    group = settings.group("group_size")
    return Format(settings.one_of("bits", BITS), group, settings.flag("sym", False),
                  format == "gptq", settings.flag("desc_act", False))


def read_gptq(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Says how they are quantized."""
    formats, panels = read_formats(settings), Panels()
    modules: list[str] = []
    uneven: list[Encoding] = []
    act_order = False
    doubt = Once(f"{parts.folder}: {OF_WHOLE_WORDS}")
    for module in parts.ending(".qweight"):
        weight = take(parts, module, formats, doubt)
        rows, moved = rows_of(weight.layout, weight.groups)
        offer = None if moved is None else Ordered(weight.tensor(f"{module}.weight", moved, panels), moved.order)
        tensor = weight.tensor(f"{module}.weight", rows, panels, offer)
        if offer is None and not rows.encoding.quantized:
            uneven.append(rows.encoding)
        act_order |= not rows.encoding.quantized
        parts.give(f"{module}.qweight", tensor.name, tensor)
        modules.append(module)
    parts.spare |= zero_biases(parts, modules)
    say_uneven(parts.folder, uneven)
    words = (in_words(format.bits, format.group, format.symmetric) for format in formats)
    return f"GPTQ, {' or '.join(dict.fromkeys(words))}{', act-order' * act_order}"


def zero_biases(parts: Parts, modules: Sequence[str]) -> set[str]:
    """Programs of 2023 wrote a bias for every weight: of zeros, in all layers, where the model has none."""
    alike: dict[str, set[str]] = {}
    filled: set[str] = set()
    for name in (f"{module}.bias" for module in modules):
        bias = parts.left.get(name)
        if bias is None or len(bias.shape) != 1:
            continue
        in_all_layers = re.sub("[0-9]+", "*", name)
        alike.setdefault(in_all_layers, set()).add(name)
        if bias.array().any():
            filled.add(in_all_layers)
    return set[str]().union(*(names for kind, names in alike.items() if kind not in filled))


@dataclass(frozen=True)
class Weight:
    """The parts of a weight, known to fit together. groups: of each input, where the file says that."""

    format: Format
    codes: FileTensor
    zeros: FileTensor
    scales: FileTensor
    groups: NDArray[np.int64] | None
    where: str
    doubt: Once

    @property
    def inputs(self) -> int:
        return self.codes.rows * 32 // self.format.bits

    @property
    def outputs(self) -> int:
        return self.codes.columns

    @property
    def layout(self) -> IntegerRows:
        return IntegerRows(self.format.bits, self.inputs, self.format.group or self.inputs, self.scales.encoding.name,
                           not self.format.symmetric)

    def tensor(self, name: str, rows: Rows, panels: Panels, offer: Ordered | None = None) -> Transposed:
        return Transposed(name, (self.outputs, self.inputs), rows.encoding, panels, self.load,
                          partial(self.fill, rows), offer, self.layout.encoding)

    def load(self, first: int, last: int) -> Panel:
        """Words of codes, (words of a row, rows); scales, (groups, rows, bytes); zeros, (rows, groups)."""
        bits = self.format.bits
        zeros = self.zeros_of(columns(self.zeros, first * bits // 32, last * bits // 32))
        return columns(self.codes, first, last).view(np.uint32)[:, :, 0], columns(self.scales, first, last), zeros

    def fill(self, rows: Rows, panel: Panel, start: int, stop: int) -> Bytes:
        words, scales, zeros = panel[0][:, start:stop], panel[1][:, start:stop].swapaxes(0, 1), panel[2][start:stop]
        stream = np.ascontiguousarray(words.T).view(np.uint8)
        if not self.format.symmetric:
            return rows.fill(stream, scales, zeros)
        check_middle(zeros, self.format.bits, self.where, "sym = true", "sym = false")
        return rows.fill(stream, scales)

    def zeros_of(self, packed: Bytes) -> Bytes:
        """(groups, words, 4) uint8 -> (outputs, groups)."""
        bits = self.format.bits
        words = packed.view(np.uint32)[:, :, 0]
        if self.format.one_less and bits != 3:  # as whole words: so a zero of 0, which took one of its neighbour, and
            fields = unpack(np.ascontiguousarray(words).view(np.uint8), bits).reshape(-1, 32 // bits)  # it, come back
            if (fields[:, :-1] == (1 << bits) - 1).any():
                self.doubt.say()
            words = words + np.uint32(sum(1 << at for at in range(0, 32, bits)))
        codes = unpack(np.ascontiguousarray(words).view(np.uint8), bits)
        if self.format.one_less and bits == 3:
            codes = (codes + np.uint8(1)) & np.uint8(7)
        return np.ascontiguousarray(codes.T)


def take(parts: Parts, module: str, formats: Sequence[Format], doubt: Once) -> Weight:
    """The parts of one weight, in the format that their shapes fit."""
    codes = parts.take(f"{module}.qweight", ("I32",))
    scales = parts.take(f"{module}.scales", FLOATS)
    zeros = parts.take(f"{module}.qzeros", ("I32",))
    found = fitting(formats, lambda format: check(parts, module, (codes, scales, zeros), format))
    format = next((format for format in found if not format.symmetric), found[0])  # that reads any zeros
    inputs, groups = codes.rows * 32 // format.bits, scales.rows
    if groups > 1 and len({format.group for format in found}) > 1:  # how many bits, the words of the zeros say
        raise BestiaryError(f"{parts.folder}: tensor {module}.qweight fits groups of "
                            f"{' and of '.join(str(format.group) for format in found)}")
    chosen = read_groups(parts, f"{module}.g_idx", inputs, groups)
    if chosen is None and groups > 1 and all(format.act_order for format in found):
        raise BestiaryError(f"{parts.folder}: tensor {module}.g_idx is missing: desc_act = true says that it tells "
                            f"which of the {groups} groups each input is in; without it only desc_act = false is read")
    return Weight(format, codes, zeros, scales, chosen, f"{parts.folder}: tensor {module}.weight", doubt)


def check(parts: Parts, module: str, given: tuple[FileTensor, FileTensor, FileTensor], format: Format) -> None:
    """Compares the shapes of codes, scales and zeros with one another and with the config. Raises BestiaryError."""
    (codes, scales, zeros), bits = given, format.bits
    inputs, outputs = codes.rows * 32 // bits, codes.columns
    if codes.rows * 32 % bits or inputs % 8 or outputs * bits % 32:
        raise BestiaryError(f"{parts.folder}: tensor {module}.qweight has the shape {list(codes.shape)}: that is no "
                            f"weight of {bits} bits packed into whole words")
    groups = -(-inputs // (format.group or inputs))
    why = f"{module}.qweight of {list(codes.shape)} with bits = {bits}, group_size = {format.group or -1}"
    parts.fits(scales, f"{module}.scales", (groups, outputs), why)
    parts.fits(zeros, f"{module}.qzeros", (groups, outputs * bits // 32), why)
