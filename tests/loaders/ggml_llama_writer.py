"""A writer of LLaMA files as llama.cpp wrote them from March to August 2023, so that each of their quirks can be made.

It knows nothing of the loader: the blocks stand here as C structures.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGICS = {"ggml": b"lmgg", "ggmf": b"fmgg", "ggjt": b"tjgg"}
FIELDS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
Block = tuple[int, "np.dtype[Any]"]


def block(weights: int, *fields: tuple[str, str, int]) -> Block:
    return weights, np.dtype([(name, kind, (count,)) for name, kind, count in fields])


D4, D2, M4, M2 = ("d", "<f4", 1), ("d", "<f2", 1), ("m", "<f4", 1), ("m", "<f2", 1)
PLAIN = {0: block(1, ("x", "<f4", 1)), 1: block(1, ("x", "<f2", 1))}
FIRST = {**PLAIN, 2: block(32, D4, ("q", "u1", 16)), 3: block(32, D4, M4, ("q", "u1", 16))}
FIVES = {6: block(32, D2, ("h", "u1", 4), ("q", "u1", 16)), 7: block(32, D2, M2, ("h", "u1", 4), ("q", "u1", 16))}
EIGHT = block(32, D4, ("q", "u1", 32))
BLOCKS: dict[tuple[str, int], dict[int, Block]] = {
    ("ggml", 0): FIRST, ("ggmf", 1): FIRST,
    ("ggjt", 1): {**FIRST, **FIVES, 4: block(16, D2, ("q", "u1", 8)), 5: block(16, D2, M2, ("q", "u1", 8)), 8: EIGHT},
    ("ggjt", 2): {**FIRST, **FIVES, 8: EIGHT},
    ("ggjt", 3): {**PLAIN, **FIVES, 2: block(32, D2, ("q", "u1", 16)), 3: block(32, D2, M2, ("q", "u1", 16)),
                  8: block(32, D2, ("q", "u1", 32)), 10: block(256, ("q", "u1", 80), D2, ("e", "<f2", 1)),
                  11: block(256, ("q", "u1", 108), D2), 12: block(256, D2, ("e", "<f2", 1), ("q", "u1", 140)),
                  13: block(256, D2, ("e", "<f2", 1), ("q", "u1", 172)), 14: block(256, ("q", "u1", 208), D2)}}
"""Container and version -> type code -> weights and fields of a block."""

WORDS = ["\u2581", "H", "e", "l", "o", "ll", "He", "llo", "Hello", "\u2581Hello", "\u2581\u2581", "\u00e9", "\u4f60"]
PIECES = (" \u2047 ".encode(), b"", b"", *(bytes([byte]) for byte in range(256)),
          *(word.replace("\u2581", " ").encode() for word in WORDS))
SCORES = (*[0.0] * 259, *(-float(i) for i in range(len(WORDS))))


class Weight(NamedTuple):
    """A tensor: its blocks as bytes. shape: rows first."""

    name: str
    shape: tuple[int, ...]
    code: int
    data: bytes


@dataclass(frozen=True)
class OldFile:
    """What stands in a file. sizes: the seven numbers of the header."""

    container: str
    version: int
    sizes: tuple[int, ...]
    tensors: tuple[Weight, ...]
    pieces: tuple[bytes, ...] = PIECES
    scores: tuple[float, ...] = SCORES

    def having(self, **sizes: int) -> OldFile:
        """With other numbers in the header."""
        return replace(self, sizes=tuple(sizes.get(name, old) for name, old in zip(FIELDS, self.sizes, strict=True)))

    def header(self) -> bytes:
        version = struct.pack("<I", self.version) if self.version else b""
        return MAGICS[self.container] + version + struct.pack("<7i", *self.sizes)

    def vocabulary(self) -> list[bytes]:
        scored = self.container != "ggml"
        return [struct.pack("<I", len(piece)) + piece + (struct.pack("<f", score) if scored else b"")
                for piece, score in zip(self.pieces, self.scores, strict=True)]

    def data(self) -> bytes:
        out = bytearray(self.header() + b"".join(self.vocabulary()))
        for weight in self.tensors:
            name = weight.name.encode()
            out += struct.pack(f"<3i{len(weight.shape)}i", len(weight.shape), len(name), weight.code,
                               *reversed(weight.shape)) + name
            if self.container == "ggjt":
                out += bytes(-len(out) % 32)
            out += weight.data
        return bytes(out)


def random_weight(name: str, shape: tuple[int, ...], code: int, made_of: Block, rng: np.random.Generator) -> Weight:
    """Any codes, with scales and minimums as the programs of the time computed them."""
    weights, fields = made_of
    blocks = np.zeros(int(np.prod(shape)) // weights, fields)
    for part in fields.names or ():
        count = blocks[part].shape
        if part == "x":
            blocks[part] = 1 + rng.standard_normal(count) / 8 if len(shape) == 1 else rng.standard_normal(count) / 8
        elif part == "m":
            blocks[part] = -7.5 * blocks["d"]
        elif part in "de":
            scale = {256: 1e-4}.get(weights, 0.02)
            blocks[part] = scale * rng.uniform(0.5, 1, count)
        else:
            blocks[part] = rng.integers(0, 256, count, np.uint8)
    return Weight(name, shape, code, blocks.tobytes())


def tensor_shapes(width: int, forward: int, layers: int, vocabulary: int, key_rows: int) -> dict[str, tuple[int, ...]]:
    """In the order of the converters."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings": (vocabulary, width), "norm": (width,), "output": (vocabulary, width)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in {
            "attention.wq": (width, width), "attention.wk": (key_rows, width), "attention.wv": (key_rows, width),
            "attention.wo": (width, width), "feed_forward.w1": (forward, width), "feed_forward.w2": (width, forward),
            "feed_forward.w3": (forward, width), "attention_norm": (width,), "ffn_norm": (width,)}.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def old_file(container: str = "ggjt", version: int = 3, code: int = 0, *, width: int = 64, forward: int = 128,
             heads: int = 2, key_heads: int | None = None, layers: int = 1, pieces: Sequence[bytes] = PIECES,
             scores: Sequence[float] | None = None, ftype: int = 1, seed: int = 0) -> OldFile:
    """A random model: matrices of the type, vectors in f32."""
    rng, blocks = np.random.default_rng(seed), BLOCKS[container, version]
    shapes = tensor_shapes(width, forward, layers, len(pieces), width // heads * (key_heads or heads))
    tensors = tuple(random_weight(name, shape, code if len(shape) > 1 else 0, blocks[code if len(shape) > 1 else 0],
                                  rng) for name, shape in shapes.items())
    if scores is None:
        scores = SCORES if len(pieces) == len(SCORES) else [0.0] * len(pieces)
    return OldFile(container, version, (len(pieces), width, 32, heads, layers, width // heads, ftype), tensors,
                   tuple(pieces), tuple(scores))


def blocks_of(file: OldFile, weight: Weight) -> NDArray[np.void]:
    """(rows, blocks of a row)"""
    weights, fields = BLOCKS[file.container, file.version][weight.code]
    return np.frombuffer(weight.data, fields).reshape(-1, weight.shape[-1] // weights)


def in_planes(file: OldFile) -> OldFile:
    """The same weights with rows in planes, as the first quantizers wrote them: minimums, scales, codes."""
    def planar(weight: Weight) -> Weight:
        if weight.code < 2:
            return weight
        blocks = blocks_of(file, weight)
        planes = [name for name in ("m", "d", "q") if name in (blocks.dtype.names or ())]
        return weight._replace(data=b"".join(row[name].tobytes() for row in blocks for name in planes))

    return replace(file, tensors=tuple(map(planar, file.tensors)))


def parts_of(file: OldFile, count: int) -> list[OldFile]:
    """The model in several files: some matrices divided by columns, others by rows, vectors in each."""
    def part(weight: Weight, i: int) -> Weight:
        if len(weight.shape) == 1:
            return weight
        axis = int(any(name in weight.name for name in ("tok_embeddings", "attention.wo", "feed_forward.w2")))
        shape = tuple(size // count if j == axis else size for j, size in enumerate(weight.shape))
        return weight._replace(shape=shape, data=np.split(blocks_of(file, weight), count, axis)[i].tobytes())

    return [replace(file, tensors=tuple(part(weight, i) for weight in file.tensors)) for i in range(count)]
