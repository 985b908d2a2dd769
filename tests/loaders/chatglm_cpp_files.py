"""A writer of chatglm.cpp's files, in every form they had: what its convert.py wrote, from a published config and
tensors under published names."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.host import Host

Arrays = Mapping[str, NDArray[Any]]
CODES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
FORMS = ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 2))
"""(model, version of the record) of all that were ever written; version 0 stands for the first release."""


def first(value: Any, default: int = -1) -> int:
    return default if value is None else int(value[0] if isinstance(value, list) else value)


def record(model: int, version: int, c: Mapping[str, Any], kind: str) -> bytes:
    """What stands before the tokenizer."""
    dtype, sizes = CODES[kind], (c["hidden_size"], c["num_attention_heads"])
    ids = {name: first(c.get(f"{name}_token_id")) for name in ("bos", "eos", "gmask", "mask", "pad", "sep")}
    vocabulary, layers = c.get("vocab_size") or c["padded_vocab_size"], c["num_layers"]
    context = c.get("max_sequence_length") or c["seq_length"]
    if version == 0:
        return b"ggml" + struct.pack("<11i", vocabulary, *sizes, layers, context, *(
            ids[name] for name in ("bos", "eos", "gmask", "mask", "pad")), dtype)
    inner = c.get("inner_hidden_size") or c["ffn_hidden_size"]
    head = b"ggml" + struct.pack("<2i", model, version)
    if version == 1:
        head += struct.pack("<11i", dtype, vocabulary, *sizes, layers, inner, context, *(
            ids[name] for name in ("bos", "eos", "pad", "sep")))
        return head if model == 1 else head + struct.pack("<i", c["multi_query_group_num"])
    return head + struct.pack(
        "<7ifif3i", dtype, vocabulary, *sizes, c.get("multi_query_group_num") or sizes[1], layers, inner,
        c.get("layernorm_epsilon") or 1e-5, c.get("pre_seq_len") or 0, 10000.0 * (c.get("rope_ratio") or 1.0), context,
        ids["eos"], ids["pad"])


def encoded(array: NDArray[Any], kind: str, host: Host) -> bytes:
    rows = np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])
    return host.quantizers[kind].quantize(rows).tobytes()


def tensor(at: int, version: int, name: str, shape: tuple[int, ...], kind: str, data: bytes) -> bytes:
    """A tensor whose header begins at that offset of the file."""
    spelled, axes = name.encode(), struct.pack(f"<{len(shape)}i", *shape)
    if version == 0:
        head = struct.pack("<3i", len(shape), len(spelled), CODES[kind]) + axes + spelled
    else:
        head = struct.pack("<i", len(spelled)) + spelled + struct.pack("<i", len(shape)) + axes \
            + struct.pack("<i", CODES[kind])
    return head + bytes(-(at + len(head)) % 16) + data


def written(model: int, version: int, config: Mapping[str, Any], tensors: Arrays, kind: str, tokenizer: bytes,
            host: Host) -> bytes:
    """A whole file. Matrices are of that kind, vectors f32; a past, of four axes, is f16."""
    found = record(model, version, config, kind) + struct.pack("<i", len(tokenizer)) + tokenizer
    for name, array in tensors.items():
        own = {1: "f32", 2: kind}.get(array.ndim, "f16")
        found += tensor(len(found), version, name, array.shape, own, encoded(array, own, host))
    return found
