"""The compiled twin of a quantizer, where the kernels were built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def kernel(name: str) -> Callable[..., Any] | None:
    """A function of bestiary_kernels, or None where there are none."""
    try:
        import bestiary_kernels
    except ImportError:
        return None
    return getattr(bestiary_kernels, name, None)
