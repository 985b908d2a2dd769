"""Tiny models of random weights, the same on every machine, as GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor


def save_random(config: Mapping[str, Any], host: Host, path: Path, seed: int = 0) -> None:
    """Writes a model of that config, f32, without a tokenizer. Norms and biases are away from 1 and 0, and the matrices
    so large that the logits spread."""
    family = host.architecture_of(config, TokenizerMaterial())
    normal = family.normalise(config, {})
    derived = family.derived(normal)
    random = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in family.graph(normal, normal["max_position_embeddings"]).weights.items():
        noise = random.standard_normal(shape, np.float32)
        scaled = 1.5 * noise / np.float32(shape[-1]) ** 0.5 if len(shape) > 1 else \
            0.3 * noise + float(not name.endswith("bias"))
        tensors[name] = derived.get(name) or ArrayTensor(scaled.astype(np.float32))
    checkpoint = Checkpoint(path, normal, tensors, CANONICAL)
    host.writers["gguf"].save(checkpoint, path, host)
