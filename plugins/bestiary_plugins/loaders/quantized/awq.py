"""AWQ: codes of 4 bits packed along the output, the transpose of a weight.

Sources: Lin et al. 2023 (arXiv 2306.00978); what AutoAWQ writes, the version "gemm". qweight: (in, out / 8) words of 32
bits, of which nibble i from the lowest is output ORDER[i] of the eight; qzeros: (groups, out / 8), as qweight; scales:
(groups, out). weight[o, i] = scales[g, o] * (code - zero[g, o]), g = i // group_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.files import FileTensor
from bestiary_plugins.loaders.quantized.panels import Panel, Panels, Transposed, columns
from bestiary_plugins.loaders.quantized.parts import FLOATS, Parts, Settings, check_middle, in_words
from bestiary_plugins.loaders.quantized.rows import IntegerRows, unpack

Bytes = NDArray[np.uint8]
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def read_awq(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Says how they are quantized."""
    for key in ("version", "format", "checkpoint_format"):  # of three programs
        settings.one_of(key, ("gemm",), "gemm")
    bits, size = ("w_bit", "q_group_size") if "w_bit" in settings.values else ("bits", "group_size")
    settings.one_of(bits, (4,))
    zero = settings.flag("zero_point", True)
    group = settings.group(size)
    panels = Panels()
    for module in parts.ending(".qweight"):
        weight = take(parts, module, group, zero)
        parts.give(f"{module}.qweight", f"{module}.weight", Transposed(
            f"{module}.weight", (weight.scales.columns, weight.layout.columns), weight.layout.encoding, panels,
            weight.load, weight.fill))
    return f"AWQ, {in_words(4, group, not zero)}"


@dataclass(frozen=True)
class Weight:
    """The parts of a weight, known to fit together."""

    layout: IntegerRows
    codes: FileTensor
    zeros: FileTensor
    scales: FileTensor
    where: str

    def load(self, first: int, last: int) -> Panel:
        """Words of codes, (inputs, words); scales, (groups, rows, bytes); zeros, (rows, groups)."""
        own = columns(self.zeros, first // 8, last // 8)
        zeros = np.empty((*own.shape[:2], 8), np.uint8)
        zeros[:, :, ORDER] = unpack(own, 4)
        return (columns(self.codes, first // 8, last // 8).view(np.uint32)[:, :, 0], columns(self.scales, first, last),
                zeros.reshape(len(own), -1).T)

    def fill(self, panel: Panel, start: int, stop: int) -> Bytes:
        words = panel[0][:, start // 8:-(-stop // 8)]
        packed = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], len(words) // 2, 2, 4)
        stream = np.empty((len(packed), 8, packed.shape[1]), np.uint8)
        for byte in range(4):  # of it, two outputs of two inputs: a nibble each of two rows' bytes
            even, odd = packed[:, :, 0, byte], packed[:, :, 1, byte]
            stream[:, ORDER[2 * byte]] = even & np.uint8(15) | odd << np.uint8(4)
            stream[:, ORDER[2 * byte + 1]] = even >> np.uint8(4) | odd & np.uint8(0xF0)
        skipped = start % 8
        rows = stream.reshape(8 * len(packed), packed.shape[1])[skipped:skipped + stop - start]
        scales, zeros = panel[1][:, start:stop].swapaxes(0, 1), panel[2][start:stop]
        if self.layout.zero:
            return self.layout.fill(rows, scales, zeros)
        check_middle(zeros, 4, self.where, "zero_point = false", "zero_point = true")
        return self.layout.fill(rows, scales)


def take(parts: Parts, module: str, group: int | None, zero: bool) -> Weight:
    """The parts of one weight, their shapes compared with one another and with the config. zero: whether each group has
    one of its own."""
    codes = parts.take(f"{module}.qweight", ("I32",))
    scales = parts.take(f"{module}.scales", FLOATS)
    zeros = parts.take(f"{module}.qzeros", ("I32",))
    inputs, words = codes.shape
    if inputs % 8:
        raise BestiaryError(f"{parts.folder}: tensor {module}.qweight has the shape {list(codes.shape)}; a multiple of "
                            "8 inputs is read")
    size = group or inputs
    why = f"{module}.qweight of {list(codes.shape)} with bits = 4, group_size = {group or -1}"
    parts.fits(scales, f"{module}.scales", (-(-inputs // size), 8 * words), why)
    parts.fits(zeros, f"{module}.qzeros", (-(-inputs // size), words), why)
    return Weight(IntegerRows(4, inputs, size, scales.encoding.name, zero), codes, zeros, scales,
                  f"{parts.folder}: tensor {module}.weight")
