"""A writer of bloomz.cpp's and ggllm.cpp's files: as their converters and quantizers wrote them, and in odd ways."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MAGIC = {"ggml": 0x67676D6C, "ggmf": 0x67676D66, "ggjt": 0x67676A74, "ggcc": 0x67676363}


class Weight(NamedTuple):
    """A tensor as it is written. values: what it must read as."""

    code: int
    data: bytes
    values: Floats


def f32(values: Floats) -> Weight:
    return Weight(0, values.astype("<f4").tobytes(), values)


def f16(values: Floats) -> Weight:
    half = values.astype("<f2")
    return Weight(1, half.tobytes(), half.astype(np.float32))


def nibbles(codes: NDArray[Any], halves: bool) -> NDArray[np.uint8]:
    """(..., 32) codes -> (..., 16) bytes."""
    low, high = (codes[..., :16], codes[..., 16:]) if halves else (codes[..., ::2], codes[..., 1::2])
    joined: NDArray[np.uint8] = (low | high << 4).astype(np.uint8)
    return joined


def as_bytes(numbers: NDArray[Any], kind: str = "<f4") -> NDArray[np.uint8]:
    """(rows, blocks) -> (rows, blocks, bytes)."""
    return np.ascontiguousarray(numbers.astype(kind))[..., None].view(np.uint8)


def q4_0(values: Floats, era: int = 1) -> Weight:
    """era 1: f32 scale, codes in order. 2: f32 scale, codes in halves. 3: f16 scale, codes in halves."""
    blocks = values.reshape(len(values), -1, 32)
    kind = "<f2" if era == 3 else "<f4"
    scales = (np.abs(blocks).max(axis=2) / 7).astype(kind).astype(np.float32)
    codes = np.clip(np.rint(blocks / np.where(scales == 0, 1, scales)[..., None]) + 8, 0, 15).astype(np.uint8)
    data = np.concatenate([as_bytes(scales, kind), nibbles(codes, era > 1)], axis=2)
    return Weight(2, data.tobytes(), ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(values.shape))


def q4_1(values: Floats, planar: bool = True) -> Weight:
    """f32 scale and minimum, codes in order. planar: the minimums of a row, its scales, its codes."""
    blocks = values.reshape(len(values), -1, 32)
    low = blocks.min(axis=2)
    scales = ((blocks.max(axis=2) - low) / np.float32(15)).astype(np.float32)
    codes = np.rint((blocks - low[..., None]) / np.where(scales == 0, 1, scales)[..., None]).astype(np.uint8)
    parts = [as_bytes(low), as_bytes(scales), nibbles(codes, False)]
    if planar:
        data = b"".join(b"".join(part[i].tobytes() for part in parts) for i in range(len(values)))
    else:
        data = np.concatenate([parts[1], parts[0], parts[2]], axis=2).tobytes()
    return Weight(3, data, (codes * scales[..., None] + low[..., None]).reshape(values.shape))


def written(container: str, version: int, numbers: Sequence[int], pieces: Sequence[bytes],
            tensors: Mapping[str, Weight], merges: Sequence[str] | None = None, scored: bool | None = None) -> bytes:
    """The file. version: 0 for none. merges: "a b" in GPT-2's alphabet; their number is in the header too, which the
    caller gives."""
    data = struct.pack("<I", MAGIC[container]) + (struct.pack("<I", version) if version else b"")
    data += struct.pack(f"<{len(numbers)}i", *numbers)
    score = struct.pack("<f", 0.0) if (container != "ggml" if scored is None else scored) else b""
    data += b"".join(struct.pack("<I", len(piece)) + piece + score for piece in pieces)
    if merges is not None:
        data += struct.pack("<i", len(merges))
        data += b"".join(struct.pack("<I", len(part)) + part for merge in merges for part in merge.encode().split(b" "))
    for name, weight in tensors.items():
        shape = weight.values.shape
        data += struct.pack(f"<3i{len(shape)}i", len(shape), len(name), weight.code, *shape[::-1]) + name.encode()
        if container in ("ggjt", "ggcc"):
            data += bytes(-len(data) % 32)
        data += weight.data
    return data


def random(shape: tuple[int, ...], source: np.random.Generator) -> Floats:
    values: Floats = (source.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
    return values


# --- BLOOM ---

ROWS, WIDTH, HEADS, LAYERS = 320, 64, 4, 2
BLOOM_NUMBERS = (ROWS, WIDTH, 1, HEADS, LAYERS)
LOST = "\ufffd".encode()


def bloom_pieces(rows: int = ROWS, absent: Sequence[int] = ()) -> list[bytes]:
    """The four special tokens, the bytes in the order of GPT-2's alphabet (without those that are absent), merges of
    them, and nothing. As text: what is no whole character is lost."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    pieces = [b"<unk>", b"<s>", b"</s>", b"<pad>"]
    pieces += [bytes([byte]) if byte < 0x80 else LOST for byte in order if byte not in absent]
    pieces += [b"th", b"the", b" t", b" the", LOST, "\u00e9".encode(), b".", b"he", LOST, "\u4e2d".encode()]
    return [*pieces, *[b""] * (rows - len(pieces))]


def bloom_tensors(matrix: Any, seed: int = 0) -> dict[str, Weight]:
    """In the order of the converter. matrix: how matrices are written."""
    source = np.random.default_rng(seed)

    def norm(name: str) -> dict[str, Weight]:
        return {f"{name}.weight": f32(1 + random((WIDTH,), source)), f"{name}.bias": f32(random((WIDTH,), source))}

    def linear(name: str, rows: int, columns: int) -> dict[str, Weight]:
        return {f"{name}.weight": matrix(random((rows, columns), source)), f"{name}.bias": f32(random((rows,), source))}

    embedding = matrix(random((ROWS, WIDTH), source))
    found = {"tok_embeddings.weight": embedding, **norm("norm")}
    for i in range(LAYERS):
        found |= {**norm(f"layers.{i}.attention_norm"),
                  **linear(f"layers.{i}.attention.query_key_value", 3 * WIDTH, WIDTH),
                  **linear(f"layers.{i}.attention.wo", WIDTH, WIDTH), **norm(f"layers.{i}.ffn_norm"),
                  **linear(f"layers.{i}.feed_forward.w1", 4 * WIDTH, WIDTH),
                  **linear(f"layers.{i}.feed_forward.w2", WIDTH, 4 * WIDTH)}
    return {**found, **norm("output_norm"), "output.weight": embedding}


def bloom(matrix: Any = f16, tensors: Mapping[str, Weight] | None = None,
          pieces: Sequence[bytes] | None = None) -> bytes:
    code = {f32: 0, f16: 1, q4_0: 2}.get(matrix, 3)
    return written("ggml", 0, (*BLOOM_NUMBERS, code), bloom_pieces() if pieces is None else pieces,
                   bloom_tensors(matrix) if tensors is None else tensors)


# --- Falcon ---

FALCON_ROWS, KV_HEADS = 276, {7: 1, 40: 2}
MERGES = ("t h", "th e", "\u0120 t", "\u0120 the", "\u00c3 \u00a9", "h e", "\u0120 a", "1 2")


def falcon_pieces() -> list[bytes]:
    """Special tokens, bytes, what the merges make: all as the bytes they stand for."""
    names = ("TITLE", "ABSTRACT", "INTRODUCTION", "SUMMARY", "COMMENT", "ANSWER", "QUESTION", "DOMAIN", "PREFIX",
             "SUFFIX", "MIDDLE")
    made = [b"th", b"the", b" t", b" the", b"\xc3\xa9", b"he", b" a", b"12"]
    return [*(f">>{name}<<".encode() for name in names), b"<|endoftext|>", *map(bytes, zip(range(256))), *made]


def falcon_tensors(kind: int, matrix: Any, seed: int = 1, rows: int = FALCON_ROWS) -> dict[str, Weight]:
    source, kv = np.random.default_rng(seed), KV_HEADS[kind]
    size = WIDTH // HEADS

    def norm(name: str) -> dict[str, Weight]:
        return {f"{name}.weight": f32(1 + random((WIDTH,), source)), f"{name}.bias": f32(random((WIDTH,), source))}

    found = {"transformer.word_embeddings.weight": matrix(random((rows, WIDTH), source))}
    for i in range(LAYERS):
        h = f"transformer.h.{i}"
        found[f"{h}.self_attention.query_key_value.weight"] = matrix(random(((HEADS + 2 * kv) * size, WIDTH), source))
        found[f"{h}.self_attention.dense.weight"] = matrix(random((WIDTH, WIDTH), source))
        found[f"{h}.mlp.dense_h_to_4h.weight"] = matrix(random((4 * WIDTH, WIDTH), source))
        found[f"{h}.mlp.dense_4h_to_h.weight"] = matrix(random((WIDTH, 4 * WIDTH), source))
        for name in ("input_layernorm",) if kind == 7 else ("ln_attn", "ln_mlp"):
            found |= norm(f"{h}.{name}")
    return {**found, **norm("transformer.ln_f"), "lm_head.weight": matrix(random((rows, WIDTH), source))}


def falcon_numbers(kind: int, code: int = 1, rows: int = FALCON_ROWS) -> tuple[int, ...]:
    return rows, WIDTH, HEADS, KV_HEADS[kind], LAYERS, kind, code


def falcon(container: str = "ggcc", version: int = 10, kind: int = 7, matrix: Any = f16,
           tensors: Mapping[str, Weight] | None = None) -> bytes:
    merges = MERGES if container == "ggcc" else None
    numbers = falcon_numbers(kind) if merges is None else (*falcon_numbers(kind), len(merges))
    return written(container, version, numbers, falcon_pieces(),
                   falcon_tensors(kind, matrix) if tensors is None else tensors, merges)


# --- LLaMA, whose files have the same magics ---

def llama(container: str, version: int, *, rows: int = 40, head: int = 40, width: int = 80, code: int = 1,
          claimed: int | None = None) -> bytes:
    """The beginning of a LLaMA file: its seven numbers, its vocabulary, some tensors. claimed: a vocabulary's size in
    the header other than that of the list."""
    source = np.random.default_rng(2)
    tensors = {"tok_embeddings.weight": f16(random((rows, width), source)),
               "norm.weight": f32(random((width,), source)),
               "output.weight": f16(random((rows, width), source)),
               "layers.0.attention.wq.weight": f16(random((width, width), source))}
    return written(container, version, (rows if claimed is None else claimed, width, 1, width // head, 1, head, code),
                   [bytes([97 + i % 26]) * (i % 5) for i in range(rows)], tensors)
