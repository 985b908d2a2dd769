"""Slopes of attention with linear biases (ALiBi; Press et al. 2021, arXiv 2108.12409)."""

from __future__ import annotations

import math


def slopes(heads: int) -> tuple[float, ...]:
    """One a head: 2 ** (-8 (k + 1) / p) for the first p, the largest power of two that is not above `heads`; the rest
    are every other slope of 2 p heads, from the first on."""
    power = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (k + 1) / power) for k in range(power)]
    return (*first, *(2 ** (-4 * (2 * k + 1) / power) for k in range(heads - power)))


def nearest(value: float) -> float:
    """The nearest number of 8 significant bits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)
