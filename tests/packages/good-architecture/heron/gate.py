"""The operation that herons bring: a gate in the feed-forward, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def gated(gate: NDArray[np.float32], up: NDArray[np.float32], *, slope: float) -> NDArray[np.float32]:
    """gate * sigmoid(slope * gate) * up; both (tokens, width)."""
    import numpy as np

    rows: NDArray[np.float32] = gate / (1 + np.exp(np.float32(-slope) * gate)) * up
    return rows
