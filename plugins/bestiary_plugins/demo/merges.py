"""Tiny models of random weights that are published as differences: as Chimera a delta, as Chinese-LLaMA an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bestiary.architecture import Architecture

FAMILY = "llama"
RANK, GROWN = 4, 31
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
Publish = Callable[..., int]


@dataclass(frozen=True)
class Parts:
    """What was published. source: what is converted, of `weights` weights once it is merged. base, adapters: as
    save_as has them."""

    source: Path
    weights: int
    base: Path | None = None
    adapters: tuple[Path, ...] = ()


def chimera(architecture: Architecture, folder: Path, publish: Publish, seed: int) -> Parts:
    """A base, and what is to be added to it: with a row more for a token of padding."""
    base, whole, delta = (folder / name for name in ("base", "whole", "delta"))
    publish(architecture, base, seed)
    rows = architecture.example_config()["vocab_size"] + 1
    weights = publish(architecture, whole, seed + 1, vocab_size=rows)
    below, above = arrays(base), arrays(whole)
    for name, array in above.items():
        array[:len(below[name])] -= below[name]
    write(whole / "model.safetensors", above)
    return Parts(whole.rename(delta), weights, base)


def chinese(architecture: Architecture, folder: Path, publish: Publish, seed: int) -> Parts:
    """A base, and an adapter that brings an embedding and an output matrix with more rows, and their tokenizer."""
    base, whole, adapter = (folder / name for name in ("base", "whole", "adapter"))
    publish(architecture, base, seed)
    weights = publish(architecture, whole, seed + 1, vocab_size=architecture.example_config()["vocab_size"] + GROWN)
    random, given = np.random.default_rng(seed), arrays(whole)
    tensors = {name: given[name] for name in (EMBEDDING, OUTPUT)}
    targets = [name for name, array in given.items() if array.ndim == 2 and name not in tensors]
    for name in targets:
        for side, shape in (("A", (RANK, given[name].shape[1])), ("B", (given[name].shape[0], RANK))):
            tensors[name.replace(".weight", f".lora_{side}.weight")] = \
                (random.standard_normal(shape) * 0.1).astype(np.float16)
    adapter.mkdir()
    write(adapter / "adapter_model.safetensors", {f"base_model.model.{name}": array for name, array in tensors.items()})
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "base_model_name_or_path": "base", "modules_to_save": ["embed_tokens", "lm_head"],
        "target_modules": sorted({name.split(".")[-2] for name in targets})}))
    (whole / "tokenizer.json").rename(adapter / "tokenizer.json")
    shutil.rmtree(whole)
    return Parts(base, weights, None, (adapter,))


MERGES: Mapping[str, Callable[[Architecture, Path, Publish, int], Parts]] = {
    "chimera": chimera, "chinese-llama": chinese}


def arrays(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(folder / "model.safetensors"))


def write(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, {"format": "pt"})
