"""Tiny models of random weights, the same on every machine, as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor


def save_tiny_chatglm3(data: Path, host: Host, path: Path) -> None:
    """Writes a model with the vocabulary of ChatGLM3, padded to its 65,024 rows, and hardly any weights."""
    folder = data / "configs" / "chatglm3-6b"
    config = json.loads((folder / "config.json").read_text())
    files = {"tokenizer.model": (data / "tokenizers" / "chatglm2-3-tokenizer.model").read_bytes(),
             "tokenizer_config.json": (folder / "tokenizer_config.json").read_bytes()}
    save_random({**config, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "kv_channels": 16,
                 "ffn_hidden_size": 48, "multi_query_group_num": 1}, host, path, material=TokenizerMaterial(files))


def save_random(config: Mapping[str, Any], host: Host, path: Path, seed: int = 0,
                material: TokenizerMaterial | None = None) -> None:
    """Writes a model of that config, f32, by default without a tokenizer. Norms and biases are away from 1 and 0, and
    the matrices so large that the logits spread."""
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
    material = family.material(material or TokenizerMaterial(), normal)
    checkpoint = Checkpoint(path, normal, tensors, CANONICAL, material)
    host.writers["gguf"].save(checkpoint, path, host)
