"""How much of a checkpoint has been written, for a bar of progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.tensor import Tensor

Done = Callable[[int, str], None]
"""Told the bytes of each piece that was written, and its tensor's name."""


def counting(tensors: Mapping[str, Tensor], progress: Progress | None) -> Done:
    """Adds the pieces up, and tells `progress` the sum and the bytes of all tensors."""
    total, written = sum(tensor.nbytes for tensor in tensors.values()), 0

    def done(count: int, name: str) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total, name)

    return done
