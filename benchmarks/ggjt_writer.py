"""A LLaMA file as llama.cpp wrote them from April to August 2023, for timings: the product writes none."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.tensor import Tensor

MAGIC = 0x67676A74
ALIGNMENT = 32
CHUNK = 16 << 20
CODES = {"f32": 0, "q4_0": 2, "q4_0_v1": 2}
"""Encoding -> the tensor's type code; which layout it means is the version's to say."""
PARTS = {"attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
         "attn_output": "attention.wo", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
         "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3"}
WHOLE = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}


def metas_name(name: str) -> str:
    """Of a canonical tensor, whose rows are in the order of Meta's."""
    layer = re.fullmatch(r"blk\.([0-9]+)\.(\w+)\.weight", name)
    return f"layers.{layer[1]}.{PARTS[layer[2]]}.weight" if layer else f"{WHOLE[name.removesuffix('.weight')]}.weight"


def write(path: Path, version: int, config: Mapping[str, Any], pieces: list[bytes], scores: list[float],
          tensors: Mapping[str, Tensor]) -> None:
    """config: a normalised one of LLaMA's. tensors: by canonical names. There whole or not at all."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<2I7i", MAGIC, version, len(pieces), width, 256, heads, config["num_hidden_layers"],
                               width // heads, 2))
        for piece, score in zip(pieces, scores, strict=True):
            file.write(struct.pack("<I", len(piece)) + piece + struct.pack("<f", score))
        for name, tensor in tensors.items():
            theirs = metas_name(name).encode()
            axes = len(tensor.shape)
            file.write(struct.pack(f"<{3 + axes}i", axes, len(theirs), CODES[tensor.encoding.name],
                                   *tensor.shape[::-1]) + theirs)
            file.write(bytes(-file.tell() % ALIGNMENT))
            step = max(1, CHUNK // tensor.row_bytes)
            for start in range(0, tensor.rows, step):
                file.write(tensor.read(start, min(start + step, tensor.rows)).tobytes())
    partial.replace(path)
