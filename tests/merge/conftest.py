"""Tiny models of random weights, deltas between them, and adapters for them, as people publish such things."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bestiary.host import Host
from bestiary_plugins.demo.beasts import publish, tokenizer
from tests.cli.conftest import cli  # noqa: F401 - a fixture
from tests.loaders.conftest import TorchFiles

Array = NDArray[Any]
Arrays = dict[str, Array]
ROWS = 199
"""Of the tiny model's vocabulary."""
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
QUERY, KEY = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def arrays(folder: Path) -> Arrays:
    """The weights of a folder that was published."""
    return dict(load_file(folder / "model.safetensors"))


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def write(folder: Path, weights: Mapping[str, Array], config: Mapping[str, Any], pieces: int, shards: int = 1) -> Path:
    """A Hugging Face folder; its tokenizer has so many pieces. shards: above 1 the weights lie in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if pieces:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(pieces)))
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return folder
    names = sorted(weights)
    files = {name: f"model-{1 + i % shards:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def grown(array: Array, rows: int) -> Array:
    """The matrix with rows of zeros behind its own."""
    return np.concatenate([array, np.zeros((rows - len(array), array.shape[1]), array.dtype)]) if rows > len(array) \
        else array


def on_its_side(name: str) -> bool:
    """Whether GPT-2 keeps the matrix with its columns as rows; the two of an adapter lie as everywhere."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


class Zoo:
    """A folder of models; each is made when it is first asked for."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder, self.host = folder, host
        self.values: dict[str, Any] = {}
        """What all models have in place of the example's values."""

    def model(self, name: str, seed: int, family: str = "llama", **values: Any) -> Path:
        path = self.folder / name
        if not path.exists():
            publish(self.host.architectures[family], path, seed, **{**self.values, **values})
        return path

    def base(self) -> Path:
        return self.model("base", 1)

    def target(self, rows: int = ROWS + 1) -> Path:
        """What the deltas lead to."""
        return self.model(f"target{rows}", 2, vocab_size=rows)

    def delta(self, rows: int = ROWS + 1, shards: int = 1, base: Path | None = None, name: str = "") -> Path:
        """What a program makes of the target and the base: their difference in f16, of grown matrices."""
        path = self.folder / f"delta{rows}-{shards}{name}"
        if not path.exists():
            below, above = arrays(base or self.base()), arrays(self.target(rows))
            write(path, {key: (above[key].astype(np.float32) - grown(below[key], len(above[key])).astype(np.float32)
                               ).astype(np.float16) for key in above}, config_of(self.target(rows)), rows, shards)
        return path

    def adapter(self, name: str, seed: int = 3, *, rank: int = 4, targets: tuple[str, ...] = (QUERY, KEY, DOWN),
                saved: Mapping[str, Array] | None = None, model: Path | None = None, file: str = "safetensors",
                pieces: int = 0, changes: Mapping[str, Any] | None = None, **config: Any) -> Path:
        """As PEFT saves one. saved: whole tensors. changes: of its tensors, by their names in the file, None to leave
        one out."""
        path = self.folder / name
        random, base = np.random.default_rng(seed), arrays(model or self.base())
        tensors: Arrays = {f"base_model.model.{key}": value for key, value in (saved or {}).items()}
        for target in targets:
            rows, columns = base[target].shape
            if on_its_side(target):
                rows, columns = columns, rows
            module = f"base_model.model.{target.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((rank, columns)).astype(np.float32) * 0.2
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((rows, rank)).astype(np.float32) * 0.2
        for key, value in (changes or {}).items():
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "someone/base-hf", "r": rank,
            "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
            "enable_lora": None, "merge_weights": False, "modules_to_save": None,
            "target_modules": sorted(target.removesuffix(".weight") for target in targets), **config}))
        if file == "safetensors":
            save_file(tensors, path / "adapter_model.safetensors")
        else:
            (path / "adapter_model.bin").write_bytes(TorchFiles.zip(tensors))
        if pieces:
            (path / "tokenizer.json").write_text(json.dumps(tokenizer(pieces)))
        return path


@pytest.fixture
def zoo(tmp_path: Path, host: Host) -> Zoo:
    return Zoo(tmp_path, host)


def plain_sum(delta: Path, base: Path) -> Arrays:
    """A delta and its base added by numpy: in float32, rounded once to the delta's type."""
    above, below = arrays(delta), arrays(base)
    return {name: (array.astype(np.float32) + grown(below[name], len(array)).astype(np.float32)).astype(array.dtype)
            for name, array in above.items()}


def plain_merge(base: Mapping[str, Array], *adapters: Path, factor: float | None = None) -> Arrays:
    """A base and adapters, as the formula has it, in float64; not rounded."""
    found = {name: array.astype(np.float64) for name, array in base.items()}
    for path in adapters:
        tensors, config = load_file(path / "adapter_model.safetensors"), json.loads(
            (path / "adapter_config.json").read_text())
        for name, array in tensors.items():
            if ".lora_" not in name:
                found[name.removeprefix("base_model.model.")] = array.astype(np.float64)
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                up = tensors[name.replace("lora_A", "lora_B")].astype(np.float64)
                product = up @ down.astype(np.float64) * (factor or config["lora_alpha"] / len(down))
                target = name.removeprefix("base_model.model.").replace("lora_A.", "")
                found[target] = found[target] + (product.T if on_its_side(target) else product)
    return found


def copied(path: Path, name: str) -> Path:
    """The folder once more, to be damaged."""
    return Path(shutil.copytree(path, path.parent / name))
