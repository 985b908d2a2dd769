"""What a plugin provides to write an encoding: an algorithm from float rows to blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.encoding import Encoding


class Quantizer(ABC):
    """An algorithm that writes an encoding. aliases: further names it answers to (numbers of old command lines)."""

    name: str
    encoding: Encoding
    aliases: tuple[str, ...] = ()
    keeps: tuple[tuple[str, str], ...] = ()
    """(pattern of canonical names, quantizer) of what this one does better to leave at another type, unless the user
    wants every tensor alike: the output matrix, usually."""
    retired: Mapping[str, str] = {}
    """Names that are no more -> what became of them, in words: the error for who asks for one."""

    @abstractmethod
    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Rows of weights, (rows, columns) float32 -> (rows, row_bytes) uint8. importance: the mean square of the
        activation of each column, (columns,), where it is known."""
