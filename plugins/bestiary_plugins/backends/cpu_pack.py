"""Weights for the compiled kernels: an encoding's layout in their terms, and loading on all threads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Progress
from bestiary.encoding import BF16, Bits, Encoding, Factor
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.readahead import done_ahead
from bestiary.tensor import Tensor, encode_plain, read_exactly
from bestiary_kernels import Layout, Matrix, quantize_q8_0
from bestiary_plugins.backends.cpu_halves import Wider, fewest, halved, to_halves
from bestiary_plugins.encodings import Q8_0

log = logging.getLogger("bestiary")

Piece = tuple[str, int, int, Encoding]
"""A tensor's rows: name, first row, last + 1, and the encoding that the kernels get."""

PACKED = {"linear": "weight", "moe": "router"}
"""Operation -> the part that one packed matrix plays."""

KINDS = {2: "two", 3: "three", 5: "five", 6: "six"}
"""Bits of a code -> how the kernels pack it, if not in 4 or 8 bits."""

CHUNK_BYTES = 4 << 20
"""What one thread reads at a time."""


def why_not(encoding: Encoding) -> str | None:
    """None where the kernels hold this encoding as it is, or what they lack."""
    layout = encoding.layout
    if encoding.number in ("f32", "f16", "bf16"):
        return None
    if layout is None:
        return "there is code to decode it, and none to multiply with it"
    if layout.codebook and (layout.signed or not np.isfinite(np.asarray(layout.codebook, np.float32)).all()):
        return "its table of values has signed codes or infinite numbers"
    if layout.codebook and fall_together(layout.codebook):
        return "most of its small values would be lost in the 8 bits that products take"
    if layout.zero:
        return "its groups have zeros of their own"
    if sum(piece.width for piece in layout.codes) > 8:
        return "its codes have more than 8 bits"
    if layout.group % 32 and layout.group != 16:
        return "its rows or groups are no multiple of 32 columns"
    return None


def fall_together(codebook: tuple[float, ...]) -> bool:
    """Whether less than three quarters of its numbers are left once they are rounded: floats of 8 bits have most of
    theirs near 0. A row's own scales keep more of them."""
    return 4 * len(set(rounded(codebook)[0])) < 3 * len(set(codebook))


def rounded(codebook: tuple[float, ...]) -> tuple[tuple[int, ...], float]:
    """Integers of at most 127 that times one factor are nearly the codebook's numbers: off by at most 1/254 of the
    largest magnitude, and not at all where some such factor has them exactly (1 before any other)."""
    numbers = np.asarray(codebook, np.float32).astype(np.float64)
    most = float(np.abs(numbers).max())
    factors = [1.0] if most <= 127 else []
    factors += [float(np.float32(most / level)) for level in range(127, 0, -1)]
    integers = [np.rint(numbers / factor) if factor else np.zeros_like(numbers) for factor in factors]
    errors = [np.abs(whole * factor - numbers).max() for whole, factor in zip(integers, factors, strict=True)]
    best = int(np.argmin(errors))
    return tuple(int(level) for level in integers[best]), factors[best]


def kernel_layout(encoding: Encoding, columns: int) -> Layout:
    """The layout in the kernels' terms: every field with its plane's place in the row. Raises BestiaryError where a
    field leaves its plane; the encoding must be one that the kernels hold."""
    sizes = encoding.plane_bytes(columns)
    starts = [0, *accumulate(sizes)]
    row_bytes = encoding.row_bytes(columns)
    if encoding.number is not None:
        return Layout(encoding.number, columns, row_bytes)
    layout = encoding.layout
    if layout is None:
        raise BestiaryError(f"{encoding.name} has no layout")

    def bits(piece: Bits) -> tuple[int, tuple[int, ...], int, int, int]:
        return piece.width, piece.offsets, piece.stride, starts[piece.plane], sizes[piece.plane]

    def factor(given: Factor) -> tuple[str, Any, Any, int, bool]:
        return given.number, bits(given.at), tuple(map(bits, given.integer)), given.bias, given.signed

    width = sum(piece.width for piece in layout.codes)
    kind = KINDS.get(width, "nibble" if width < 5 else "byte")
    book: dict[str, Any] = {"signed": layout.signed, "zero": layout.offset}
    if layout.codebook:
        kind, levels = "book" if width <= 4 else "byte", rounded(layout.codebook)
        book = {"codebook": layout.codebook, "rounded": levels[0], "factor": levels[1]}
    try:
        return Layout(kind, columns, row_bytes, group=layout.group or columns, codes=[bits(p) for p in layout.codes],
                      scale=factor(layout.scale), minimum=factor(layout.minimum) if layout.minimum else None,
                      minimum_sign=layout.minimum_sign, **book)
    except (ValueError, IndexError) as error:
        raise BestiaryError(f"encoding {encoding.name}: {error}") from None


@dataclass(frozen=True)
class RawRows:
    """An embedding that is not packed: rows of bytes, decoded one by one."""

    layout: Layout
    rows: NDArray[np.uint8]  # (rows, row_bytes)

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes)


@dataclass
class Weights:
    """What a plan multiplies with, by canonical name. A weight may be held in two forms: `linear` wants it packed, a
    plugin's operation as numbers."""

    matrices: dict[str, Matrix] = field(default_factory=dict)
    stacks: dict[str, tuple[Matrix, ...]] = field(default_factory=dict)  # of experts
    tables: dict[str, RawRows] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for held in (self.matrices, self.tables, self.arrays) for w in held.values()) \
            + sum(matrix.nbytes for stack in self.stacks.values() for matrix in stack)


def stored_as(tensor: Tensor, matrix: bool) -> Encoding:
    """The encoding that the kernels get: the tensor's own, or what its rows are decoded into."""
    if why_not(tensor.encoding) is None:
        return tensor.encoding
    return Q8_0 if matrix and tensor.columns % 32 == 0 else BF16


def _read(tensor: Tensor, start: int, stop: int, encoding: Encoding) -> NDArray[np.uint8]:
    """Rows start..stop-1 as bytes of `encoding`."""
    if encoding is tensor.encoding:
        return np.ascontiguousarray(read_exactly(tensor, start, stop))
    if encoding is halved(tensor.encoding):
        return to_halves(read_exactly(tensor, start, stop), tensor.encoding, tensor.columns)
    values = tensor.decode(start, stop)
    return quantize_q8_0(values) if encoding is Q8_0 else encode_plain(values, encoding)


def roles(graph: Graph) -> tuple[set[str], set[str], set[str], set[str]]:
    """The weights that are packed, stacks of experts, embeddings that are not packed, and those held as numbers."""
    packed = {node.weights[PACKED[node.op]] for node in graph.nodes if node.op in PACKED}
    stacked = {node.weights[part] for node in graph.nodes if node.op == "moe" for part in ("gate", "up", "down")}
    looked_up = {node.weights["weight"] for node in graph.nodes if node.op == "embed"} - packed
    numbers = {name for node in graph.nodes for part, name in node.weights.items()
               if node.op not in ("embed", "moe") and (node.op != "linear" or part == "bias")}
    return packed, stacked, looked_up, numbers


def load(graph: Graph, tensors: Mapping[str, Tensor], threads: int, held: Weights | None,
         progress: Progress | None) -> Weights:
    """Packs what the graph uses, read in pieces by all threads. held: weights of an earlier plan, used again."""
    packed, stacked, looked_up, numbers = roles(graph)
    weights, held = Weights(), held or Weights()
    for name, shape in graph.weights.items():
        if name not in tensors:
            raise BestiaryError(f"the checkpoint has no tensor {name}")
        if tuple(tensors[name].shape) != tuple(shape):
            raise BestiaryError(f"tensor {name} has the shape {tuple(tensors[name].shape)}; the model needs "
                                f"{tuple(shape)}")

    def place(name: str, encoding: Encoding) -> list[Piece]:
        """Makes room, and says what is to be read into it."""
        tensor = tensors[name]
        layout = kernel_layout(encoding, tensor.columns)
        count = tensor.shape[0] if name in stacked else 1
        rows = tensor.rows // count
        if name in stacked:
            weights.stacks[name] = tuple(Matrix(layout, rows) for _ in range(count))
        elif name in packed:
            weights.matrices[name] = Matrix(layout, rows)
        else:
            weights.tables[name] = RawRows(layout, np.empty((tensor.rows, layout.row_bytes), np.uint8))
        own = encoding is tensor.encoding or encoding is halved(tensor.encoding)
        most = tensor.row_bytes if own else 4 * tensor.columns  # what is decoded is f32 on the way
        step = max(1, CHUNK_BYTES // max(1, most) // 16) * 16  # whole row groups
        return [(name, first + start, first + min(start + step, rows), encoding)
                for first in range(0, tensor.rows, rows) for start in range(0, rows, step)]

    work: list[Piece] = []
    decoded: dict[str, tuple[Encoding, set[str]]] = {}  # by name; and what such weights are kept as
    for name in graph.weights:
        tensor = tensors[name]
        if name in numbers:
            weights.arrays[name] = held.arrays[name] if name in held.arrays else np.ascontiguousarray(
                tensor.array(), np.float32)
        if name not in packed | looked_up | stacked:
            continue
        if name in held.matrices:
            weights.matrices[name] = held.matrices[name]
            continue
        if name in held.stacks:
            weights.stacks[name] = held.stacks[name]
            continue
        if name in held.tables and name in looked_up:
            weights.tables[name] = held.tables[name]
            continue
        encoding = stored_as(tensor, name not in looked_up)
        if encoding is not tensor.encoding:
            decoded.setdefault(tensor.encoding.name, (tensor.encoding, set()))[1].add(encoding.name)
        elif name not in looked_up:
            encoding = fewest(tensor)
        work += place(name, encoding)
    for of, (own, kept) in decoded.items():
        log.warning("the cpu backend's kernels do not hold %s (%s): such weights are decoded and kept as %s", of,
                    why_not(own), " and ".join(sorted(kept)))

    wide: set[str] = set()

    def one(item: Piece) -> int:
        name, start, stop, encoding = item
        try:
            rows = _read(tensors[name], start, stop, encoding)
        except Wider:
            wide.add(name)
            return (stop - start) * tensors[name].row_bytes
        if name in weights.stacks:
            stack = weights.stacks[name]
            expert, start = divmod(start, stack[0].rows)
            stack[expert].pack(rows, start)
        elif name in weights.matrices:
            weights.matrices[name].pack(rows, start)
        else:
            weights.tables[name].rows[start:stop] = rows
        return rows.nbytes

    total = sum(tensors[name].nbytes for name in {item[0] for item in work})
    done = 0
    for count in done_ahead(one, work, threads):
        done = min(total, done + count)
        if progress:
            progress(done, total, "loading")
    for _ in done_ahead(one, [item for name in sorted(wide) for item in place(name, tensors[name].encoding)], threads):
        pass
    return weights
