"""A checkpoint that a loader gave: looked at before anybody uses it, its tensors read under guard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bestiary.checkpoint import Adapter, Checkpoint, Provenance, TokenizerMaterial, Vocabulary
from bestiary.contributions import one_line, shown
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, short
from bestiary.guard import calling
from bestiary.tensor import Ordered, Tensor, rows_of

FIELDS: Mapping[str, type] = {"path": Path, "config": Mapping, "tensors": Mapping, "naming": str,
                              "tokenizer": TokenizerMaterial, "metadata": Mapping, "spare": frozenset}
MATERIAL: Mapping[str, tuple[type, ...]] = {
    "files": (Mapping,), "vocabulary": (Vocabulary, type(None)), "bos": (int, type(None)), "eos": (int, type(None)),
    "ends": (tuple,), "chat_template": (str, type(None))}


class GuardedTensor(Tensor):
    """Another tensor, whose loader is named for its faults."""

    def __init__(self, base: Tensor, name: str, guard: calling) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base
        self.outputs_first = base.outputs_first is True
        self._name, self._outer, self._guard = name, guard, guard.also(f"read tensor {name}")

    @property
    def ordered(self) -> Ordered | None:
        with self._guard:
            offer: object = self._base.ordered
            if offer is None:
                return None
            if isinstance(offer, Ordered) and isinstance(offer.tensor, Tensor) and offer.tensor.shape == self.shape \
                    and isinstance(offer.tensor.encoding, Encoding) and is_order(offer.order, self.columns):
                return Ordered(GuardedTensor(offer.tensor, self._name, self._outer), offer.order)
        raise BestiaryError(f"tensor {self._name}: {self._guard.who} offers {shown(offer)} as the weight with its "
                            f"columns in another order, not a tensor of its shape and an order of {self.columns} "
                            "columns")

    @property
    def quantized_as(self) -> Encoding | None:
        with self._guard:
            found: object = self._base.quantized_as
            if found is None or isinstance(found, Encoding):
                return found
        raise BestiaryError(f"tensor {self._name}: {self._guard.who} gives {shown(found)} as the encoding that it was "
                            "quantized in, not an Encoding or None")

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        with self._guard:
            try:
                rows: object = self._base.read(start, stop)
            except OSError as error:  # of a disk; a writer would take it for one of what it writes
                said = f"tensor {self._name}: {self._guard.who} cannot read it: {one_line(error)}"
                raise BestiaryError(said) from error
        return rows_of(rows, self, start, stop, f"tensor {self._name}: {self._guard.who}")


def is_order(order: object, columns: int) -> bool:
    """Whether it is an array that has each of so many columns once."""
    return isinstance(order, np.ndarray) and order.dtype == np.int64 and order.shape == (columns,) \
        and np.array_equal(np.sort(order), np.arange(columns))


def guarded(checkpoint: object, path: Path, guard: calling) -> Checkpoint:
    """The checkpoint under guard; it pickles where it did. Raises BestiaryError for what is no checkpoint."""
    if not isinstance(checkpoint, Checkpoint):
        raise BestiaryError(f"{guard.who} opened {path} and gave {shown(checkpoint)}, not a Checkpoint")
    with guard:
        for fault in _faults(checkpoint):
            raise BestiaryError(f"{guard.who} opened {path} and gave a checkpoint whose {fault}")
        tensors, adapter = under_guard(checkpoint.tensors, guard), checkpoint.adapter
        if adapter is not None:
            adapter = replace(adapter, added=under_guard(adapter.added, guard))
    return checkpoint.having(tensors=tensors, adapter=adapter,
                             source=(_again, (checkpoint, path, guard.who, guard.what)))


def under_guard(tensors: Mapping[str, Tensor], guard: calling) -> dict[str, Tensor]:
    return {name: GuardedTensor(tensor, name, guard) for name, tensor in tensors.items()}


def _again(checkpoint: Checkpoint, path: Path, who: str, what: str) -> Checkpoint:
    return guarded(checkpoint, path, calling(who, what))


def _faults(checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong with its fields, in words."""
    for name, kind in FIELDS.items():
        if not isinstance(value := getattr(checkpoint, name), kind):
            yield f"{name} is {shown(value)}, not a {kind.__name__}"
    for name, kinds in MATERIAL.items():
        if not isinstance(value := getattr(checkpoint.tokenizer, name), kinds):
            yield f"tokenizer has {shown(value)} for {name}, not a {kinds[0].__name__}"
    adapter = checkpoint.adapter
    if adapter is not None and not (isinstance(adapter, Adapter) and isinstance(adapter.added, Mapping)
                                    and isinstance(adapter.base, str)):
        yield f"adapter is {shown(adapter)}, not an Adapter"
    said = checkpoint.provenance
    if said is not None and not (isinstance(said, Provenance) and isinstance(said.assumed, Mapping)
                                 and isinstance(said.lacks, tuple)
                                 and all(isinstance(text, str) for text in (
                                     said.program, said.era, said.container, said.quantized, *said.assumed,
                                     *said.lacks))):
        yield f"provenance is {shown(said)}, not a Provenance in words"
    for name, tensor in (*checkpoint.tensors.items(), *(adapter.added.items() if adapter else ())):
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            yield f"tensors have {shown(tensor)} for {short(name)}, not a name and a Tensor"
        if not isinstance(tensor.encoding, Encoding):
            yield f"tensor {name} has the encoding {shown(tensor.encoding)}, not an Encoding"
        if not isinstance(tensor.shape, tuple) or not all(type(size) is int and size >= 0 for size in tensor.shape):
            yield f"tensor {name} has the shape {shown(tensor.shape)}, not a tuple of whole numbers"
