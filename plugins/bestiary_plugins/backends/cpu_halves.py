"""Scales that are f32 or bf16 in a file and f16 numbers all the same: the kernels hold f16, and everything else as f32,
of which half the bytes need not be read with every token."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from bestiary.decoding import number_from_bits
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.tensor import Tensor, read_exactly

SIZES = {"f32": "<u4", "bf16": "<u2"}
"""Numbers that may be f16, and their bits."""

# The quantizers of late April and May 2023 divided the largest of 32 f16 weights by -8, which is an f16 number again.


class Wider(Exception):
    """A number that is no f16, in rows behind those that all are."""


@lru_cache(maxsize=256)
def halved(encoding: Encoding) -> Encoding | None:
    """The same blocks with f16 scales and minimums where they are f32 or bf16, in the first half of the bytes of f32;
    None where the kernels would hold no less. encoding: one that they hold."""
    layout = encoding.layout
    if layout is None or layout.codebook:  # its factor goes into the scales
        return None
    wide = places(layout)
    if not wide or any(factor.number not in ("f16", *SIZES) or factor.integer and factor.number == "f32"
                       for factor in factors(layout)) or any(
            len(set(at.offsets)) > 1 or at.offsets[0] % 8 or at.stride % 8 for at in wide):
        return None
    return replace(encoding, layout=replace(
        layout, scale=_half(layout.scale), minimum=layout.minimum and _half(layout.minimum)))


def factors(layout: Layout) -> list[Factor]:
    return [layout.scale, *([layout.minimum] if layout.minimum else [])]


def places(layout: Layout) -> dict[Bits, str]:
    """Where numbers stand that are to be f16, and what they are: once where a scale and a minimum share one."""
    return {factor.at: factor.number for factor in factors(layout) if factor.number in SIZES}


def _half(factor: Factor) -> Factor:
    return replace(factor, number="f16", at=replace(factor.at, width=16))


def to_halves(rows: NDArray[np.uint8], encoding: Encoding, columns: int) -> NDArray[np.uint8]:
    """Rows of an encoding -> rows of `halved` of it. Raises Wider where a number is no f16."""
    layout, starts = encoding.layout, [0, *accumulate(encoding.plane_bytes(columns))]
    if layout is None:
        raise Wider
    rows = np.array(rows)
    for at, number in places(layout).items():
        shape = len(rows), columns // (layout.group or columns) // len(at.offsets)
        first, steps = starts[at.plane] + at.offsets[0] // 8, (rows.shape[1], at.stride // 8)
        numbers = number_from_bits(np.ndarray(shape, SIZES[number], rows, first, steps), number)
        with np.errstate(over="ignore", invalid="ignore"):
            halves = numbers.astype(np.float16)
        if not (halves == numbers).all():
            raise Wider
        np.ndarray(shape, "<f2", rows, first, steps)[...] = halves
    return rows


def fewest(tensor: Tensor) -> Encoding:
    """`halved` of the tensor's encoding where it can hold the first rows, as it then mostly can all; else its own."""
    half = halved(tensor.encoding)
    if half is None:
        return tensor.encoding
    try:
        to_halves(read_exactly(tensor, 0, min(16, tensor.rows)), tensor.encoding, tensor.columns)
    except Wider:
        return tensor.encoding
    return half
