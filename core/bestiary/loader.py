"""What a plugin provides to read a checkpoint format and to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.checkpoint import Checkpoint
    from bestiary.encoding import Encoding
    from bestiary.host import Host


class Loader(ABC):
    """A checkpoint format in. encodings: what its files may hold and no quantizer writes."""

    name: str
    encodings: tuple[Encoding, ...] = ()

    @abstractmethod
    def recognise(self, path: Path) -> int:
        """How sure it is that this format is at `path`: 0 not at all ... 100 certain. Looks at names and at the first
        bytes only, and never raises for what it finds there."""

    @abstractmethod
    def open(self, path: Path, host: Host) -> Checkpoint:
        """The checkpoint, its tensors unread. Raises BestiaryError for what is damaged or not understood."""

    def outline(self, path: Path, host: Host) -> Checkpoint | None:
        """As `open` where the weights may not be there yet: config and tokenizer, and tensors of the class Absent where
        their names are known (no tensors where they are not). None where there is nothing to know before `open`."""
        return None


class Writer(ABC):
    """A checkpoint format out. suffix: how its files are called; empty for a folder. stem: how a file's name begins
    that the user did not choose. rank: which writer is taken where nothing names one, the highest. marks: of a folder,
    files by any of which one is known that a new one may replace."""

    name: str
    suffix: str = ""
    stem: str = "model"
    rank: int = 0
    marks: tuple[str, ...] = ()

    @abstractmethod
    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        """Writes the canonical checkpoint, streaming: it reads each tensor once, in row ranges. Nothing stands under
        `path` before it is complete."""

    def holds(self, encoding: Encoding) -> bool:
        """Whether its files have a type of their own for the encoding, which other programs know too. Weights that are
        in another one, which no quantizer writes any more, `convert` puts into a type that they have. Here: yes;
        `save` refuses what it cannot write."""
        return True

    def size(self, checkpoint: Checkpoint, host: Host) -> int:
        """Bytes that `save` will write, no tensor being read: here those of the weights alone."""
        return sum(tensor.nbytes for tensor in checkpoint.tensors.values())
