"""A writer of llama.cpp's LoRA files ("ggla"), as its convert-lora-to-ggml.py made them of PEFT's tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
MODULES = {"self_attn.q_proj": ("attention.wq", "attn_q"), "self_attn.k_proj": ("attention.wk", "attn_k"),
           "self_attn.v_proj": ("attention.wv", "attn_v"), "self_attn.o_proj": ("attention.wo", "attn_output"),
           "mlp.gate_proj": ("feed_forward.w1", "ffn_gate"), "mlp.down_proj": ("feed_forward.w2", "ffn_down"),
           "mlp.up_proj": ("feed_forward.w3", "ffn_up")}
"""The names of modules until August 2023, and since."""


def tensor(at: int, name: str, array: NDArray[Any]) -> bytes:
    """A tensor whose header begins at that offset."""
    head = struct.pack("<3i", array.ndim, len(name.encode()), int(array.dtype == np.float16)) + struct.pack(
        f"<{array.ndim}i", *array.shape[::-1]) + name.encode()
    return head + bytes(-(at + len(head)) % 32) + np.ascontiguousarray(array).tobytes()


def written(rank: int, alpha: int, factors: Arrays, later: bool = False, version: int = 1) -> bytes:
    """factors: "3.self_attn.q_proj.A" -> lora_A, (rank, columns), or ".B" -> lora_B, (rows, rank)."""
    found = b"algg" + struct.pack("<3i", version, rank, alpha)
    for name, array in factors.items():
        layer, rest = name.split(".", 1)
        module, side = rest.rsplit(".", 1)
        spelled = f"{'blk' if later else 'layers'}.{layer}.{MODULES[module][later]}.weight.lora{side}"
        found += tensor(len(found), spelled, array.T if side == "A" else array.astype(np.float32))
    return found
