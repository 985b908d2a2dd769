"""Scales that are f32 in a file and f16 numbers all the same: half of their bytes need not be read with every token."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import Encoding, Factor
from bestiary.tensor import Tensor, read_exactly

# The quantizers of late April and May 2023 divided the largest of 32 f16 weights by -8, which is an f16 number again.


class Wider(Exception):
    """A number that is no f16, in rows behind those that all are."""


@lru_cache(maxsize=256)
def halved(encoding: Encoding) -> Encoding | None:
    """The same blocks with f16 scales and minimums where they are f32, in the first half of their bytes; None where
    the kernels would hold no less. encoding: one that they hold."""
    layout = encoding.layout
    if layout is None or layout.codebook:  # its factor goes into the scales
        return None
    factors = [layout.scale, *([layout.minimum] if layout.minimum else [])]
    wide = [factor.at for factor in factors if factor.number == "f32"]
    if not wide or any(factor.integer or factor.number not in ("f16", "f32") for factor in factors) or any(
            len(at.offsets) > 1 or at.offsets[0] % 8 or at.stride % 8 for at in wide):
        return None
    return replace(encoding, layout=replace(
        layout, scale=_half(layout.scale), minimum=layout.minimum and _half(layout.minimum)))


def _half(factor: Factor) -> Factor:
    return replace(factor, number="f16", at=replace(factor.at, width=16))


def to_halves(rows: NDArray[np.uint8], encoding: Encoding, columns: int) -> NDArray[np.uint8]:
    """Rows of an encoding -> rows of `halved` of it. Raises Wider where a number is no f16."""
    layout, starts = encoding.layout, [0, *accumulate(encoding.plane_bytes(columns))]
    if layout is None:
        raise Wider
    rows = np.array(rows)
    for factor in (layout.scale, layout.minimum):
        if factor is None or factor.number != "f32":
            continue
        shape = len(rows), columns // (layout.group or columns)
        first, steps = starts[factor.at.plane] + factor.at.offsets[0] // 8, (rows.shape[1], factor.at.stride // 8)
        numbers: NDArray[np.float32] = np.ndarray(shape, "<f4", rows, first, steps)
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
