"""Weights in encodings that only loaders know, of old files or of other programs, become weights of ours on their way
into a file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from bestiary.checkpoint import Checkpoint
from bestiary.convert import Quantized
from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.guard import calling
from bestiary.host import Host
from bestiary.loader import Writer
from bestiary.quantizer import Quantizer
from bestiary.recode import Recoded, Rounding, recoding
from bestiary.tensor import Tensor

log = logging.getLogger("bestiary")
DIGITS = {F32.name: 24, F16.name: 11, BF16.name: 8}
"""Bits of precision of plain numbers."""
MORE = 3
"""Bits that codes must have more to take the place of others by value: a weight is then moved by a sixteenth of the
step between two old codes at most, where the scale is the same. Five bits for four would add half of that step."""


def renewed(checkpoint: Checkpoint, writer: Writer, host: Host, rounding: Rounding,
            only: str | None = None) -> Checkpoint:
    """A view of the checkpoint in which each weight that nobody quantizes so any more, and that the writer has no type
    of its own for, is in one of the types that it has: with the same codes in the smallest that holds them, else by
    value in the nearest larger one. Says what becomes what. only: what would become another type than this stays."""
    try:
        replaced = successors(checkpoint, writer, host)
    except BestiaryError:
        if only is None:
            raise
        return checkpoint
    replaced = {name: quantizer for name, quantizer in replaced.items() if only in (None, quantizer.name)}
    if not replaced:
        return checkpoint
    guards: dict[str, calling] = {}
    tensors = dict(checkpoint.tensors)
    for name, quantizer in replaced.items():
        tensor = tensors[name]
        how = recoding(tensor.encoding, quantizer.encoding, tensor.columns)
        if how is not None:
            tensors[name] = Recoded(tensor, how, name, rounding)
        else:
            guard = guards.setdefault(quantizer.name, host.calling(quantizer, "quantize"))
            tensors[name] = Quantized(tensor, quantizer, name, guard)
    for line in in_words(checkpoint, replaced):
        log.warning("%s", line)
    again: Callable[[Checkpoint], Checkpoint] = partial(_again, writer, host, only)
    return checkpoint.having(tensors=tensors, source=(again, (checkpoint,)))


def _again(writer: Writer, host: Host, only: str | None, checkpoint: Checkpoint) -> Checkpoint:
    return renewed(checkpoint, writer, host, Rounding(), only)


def in_words(checkpoint: Checkpoint, replaced: Mapping[str, Quantizer]) -> list[str]:
    """What becomes of each encoding that is replaced, a line each."""
    kinds = Counter[tuple[str, str, bool]]()
    for name, quantizer in replaced.items():
        tensor = checkpoint.tensors[name]
        held = recoding(tensor.encoding, quantizer.encoding, tensor.columns) is not None
        kinds[tensor.encoding.name, quantizer.name, held] += 1
    return [f"{count} tensor{'s' * (count > 1)} of {old} become{'s' * (count == 1)} {new}, " + (
        "code by code" if held else "by value: no type of the output has room for its codes and scales")
        for (old, new, held), count in kinds.items()]


def successors(checkpoint: Checkpoint, writer: Writer, host: Host) -> dict[str, Quantizer]:
    """What writes each weight of the canonical checkpoint that needs another type. Raises BestiaryError where there is
    none that could."""
    written = [entry.item for entry in host.quantizers.entries()]
    alive = [quantizer.encoding for quantizer in written]
    old = [encoding for entry in host.loaders.entries() for encoding in entry.item.encodings
           if encoding not in alive]
    replaced = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.encoding in old}
    if not replaced:
        return {}
    with host.calling(writer, "say which encodings it holds"):
        candidates = [quantizer for quantizer in written if writer.holds(quantizer.encoding)]
        replaced = {name: tensor for name, tensor in replaced.items() if not writer.holds(tensor.encoding)}
    chosen: dict[tuple[str, int], Quantizer] = {}
    for name, tensor in replaced.items():
        kind = tensor.encoding.name, tensor.columns
        if kind not in chosen:
            chosen[kind] = successor(tensor, name, candidates)
    return {name: chosen[tensor.encoding.name, tensor.columns] for name, tensor in replaced.items()}


def successor(tensor: Tensor, name: str, quantizers: list[Quantizer]) -> Quantizer:
    """The quantizer of the smallest type that holds the codes; else of the smallest larger one that adds little to
    their error."""
    encoding, columns = tensor.encoding, tensor.columns
    fitting = [quantizer for quantizer in quantizers if recoding(encoding, quantizer.encoding, columns)]
    larger = [quantizer for quantizer in quantizers
              if quantizer.encoding.fits(columns) and quantizer.encoding.bits_per_weight > encoding.bits_per_weight
              and precision(quantizer.encoding) >= precision(encoding) + MORE]
    if not fitting and not larger:
        raise BestiaryError(f"tensor {name} is {encoding.name}, which the output has no type for, and none that could "
                            f"take its place in rows of {columns}; --outtype {F32.name} decodes it")
    return min(fitting or larger, key=lambda quantizer: (
        quantizer.encoding.bits_per_weight, -precision(quantizer.encoding)))


def precision(encoding: Encoding) -> int:
    """Bits of a code, or of a plain number; 0 where only a decoder knows."""
    if encoding.layout is not None:
        return sum(piece.width for piece in encoding.layout.codes)
    return DIGITS.get(encoding.number or "", 0)
