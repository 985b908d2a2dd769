"""The compiled twin of a quantizer, where the kernels were built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kernel(name: str) -> Callable[..., Any] | None:
    """A function of bestiary_kernels, or None where there are none."""
    try:
        import bestiary_kernels
    except ImportError:
        return None
    return getattr(bestiary_kernels, name, None)


def quantized(name: str, reference: Callable[[NDArray[np.float32]], NDArray[np.uint8]],
              rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The blocks of the quantizer `name`: by its compiled twin, else by the algorithm in numpy."""
    compiled = kernel(f"quantize_{name}")
    blocks: NDArray[np.uint8] = reference(rows) if compiled is None else compiled(rows)
    return blocks
