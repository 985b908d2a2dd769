"""Random rows of any encoding that is data, for tests that need weights and not a quantizer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.tensor import BlockTensor, encode_plain


def blocks(encoding: Encoding, rows: int, columns: int, seed: int = 0) -> BlockTensor:
    """Random bytes, with scales and minimums that are ordinary numbers."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, encoding.row_bytes(columns)), dtype=np.uint8)
    if encoding.number:
        data = encode_plain(random.standard_normal((rows, columns)).astype(np.float32), encoding)
    elif encoding.layout is not None:
        starts = np.cumsum([0, *encoding.plane_bytes(columns)])
        group = encoding.layout.group or columns
        for factor in (encoding.layout.scale, encoding.layout.minimum):
            if factor is None:
                continue
            for g in range(columns // group):
                bit = factor.at.offsets[g % len(factor.at.offsets)] + g // len(factor.at.offsets) * factor.at.stride
                at = int(starts[factor.at.plane]) + bit // 8
                field = number_bytes(random.uniform(0.01, 0.1, rows), factor.number)
                data[:, at:at + field.shape[1]] = field
    return BlockTensor(data, (rows, columns), encoding)


def number_bytes(values: NDArray[np.float64], number: str) -> NDArray[np.uint8]:
    """(count,) -> (count, bytes of the number); e8m0 takes the power of two below."""
    count = len(values)
    match number:
        case "f16":
            return values.astype(np.float16).view(np.uint8).reshape(count, 2)
        case "f32":
            return values.astype(np.float32).view(np.uint8).reshape(count, 4)
        case "bf16":
            return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(count, 2)
        case "e8m0":
            return (np.floor(np.log2(values)) + 127).astype(np.uint8).reshape(count, 1)
    raise ValueError(number)


class Drawn:
    """In the place of a quantizer where nothing writes an encoding any more: blocks are drawn, of the size of the
    weights that are given."""

    def __init__(self, encoding: Encoding) -> None:
        self.name, self.encoding = encoding.name, encoding

    def quantize(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        count, columns = rows.shape
        tensor = blocks(self.encoding, count, columns, seed=rows.size)
        layout = self.encoding.layout
        if layout is None:
            raise TypeError(f"{self.name} has no layout")
        factor = float(rows.std() / tensor.decode().std())
        data = tensor.read(0, tensor.rows).copy()
        for of in (layout.scale, layout.minimum):
            if of is not None:
                self._times(data, of.at.offsets, of.number, factor)
        return data

    def _times(self, data: NDArray[np.uint8], offsets: tuple[int, ...], number: str, factor: float) -> None:
        """Every such number times the factor, some with the other sign."""
        type_ = {"f16": np.float16, "f32": np.float32}[number]
        by_block = data.reshape(-1, self.encoding.block_bytes[0])
        for at in sorted(set(offsets)):
            part = slice(at // 8, at // 8 + np.dtype(type_).itemsize)
            values = np.ascontiguousarray(by_block[:, part]).view(type_)[:, 0] * factor
            values[::3] *= -1
            by_block[:, part] = values.astype(type_).view(np.uint8).reshape(len(values), -1)
