"""Adapters beside a model that is whole: damaged in their weights and in their settings, and merged with it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.host import Host
from bestiary.saving import save_as
from bestiary.testing.damage import VALUES, damaged
from tests.hostile.formats.folders import arrays, file_of, restructured, tokenizer_json
from tests.hostile.formats.folders import safetensors as whole_model
from tests.hostile.formats.sample import Files, Refusals, Sample, look
from tests.hostile.formats.torch import Archive
from tests.loaders.ggml_lora_files import written

QUERY, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
RANK, ROWS = 4, 270
CONFIG: dict[str, Any] = {
    "base_model_name_or_path": "someone/model", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "lora_alpha": 8, "lora_dropout": 0.05, "modules_to_save": ["embed_tokens", "lm_head"],
    "peft_type": "LORA", "r": RANK, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {}, "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM", "use_rslora": False}
KEYS = (*CONFIG, "use_dora", "lora_bias", "layer_replication", "target_parameters", "x")
OTHERS: tuple[Any, ...] = (
    "LOHA", "IA3", None, 0, -1, 1e400, 10 ** 30, "", [], {}, {"q_proj": 4}, {"(a+)+$": 4}, {"^" * 999: 1}, True,
    ["q_proj"] * 3, [None], "pissa", "all", 0.5, {"q_proj": None}, {"q_proj": -3})


def tensors() -> dict[str, Any]:
    """A matrix that is added to, and two with more rows than the model's."""
    source, given = np.random.default_rng(5), arrays()
    rows, columns = given[f"{QUERY}.weight"].shape
    made = {f"{QUERY}.lora_A.weight": source.standard_normal((RANK, columns)),
            f"{QUERY}.lora_B.weight": source.standard_normal((rows, RANK)),
            f"{EMBEDDING}.weight": source.standard_normal((ROWS, columns)),
            "lm_head.weight": source.standard_normal((ROWS, columns))}
    return {f"base_model.model.{name}": (array * 0.2).astype(np.float16) for name, array in made.items()}


def settings() -> Files:
    return {"adapter_config.json": json.dumps(CONFIG).encode(), "tokenizer.json": json.dumps(tokenizer_json()).encode()}


def use(path: Path, loader: str, host: Host) -> None:
    """All that a user may do with an adapter. What is written can be read."""
    beside = (path if path.is_dir() else path.parent).parent
    model, out = beside / "model", beside / "merged.gguf"
    if not model.exists():
        model.mkdir()
        for name, data in whole_model().files.items():
            (model / name).write_bytes(data)
    refusals = Refusals()
    with refusals.step():
        host.recognise(path)
    with refusals.step():
        look(path, loader, host)
    opened = host.open(path, loader)
    added = opened.adapter.added if opened.adapter is not None else {}
    for tensor in (*opened.tensors.values(), *added.values()):
        with refusals.step(), np.errstate(all="ignore"):
            tensor.decode(0, min(tensor.rows, 1 << 10))
    with refusals.step(), np.errstate(all="ignore"):
        save_as(path, out, "f32", host, loader=loader, base=model, force=True)
        written = host.open(out)
        for tensor in written.tensors.values():
            tensor.decode(0, min(tensor.rows, 1 << 10))
    refusals.done()


def of_config(files: Files, seed: int) -> tuple[str, Files]:
    """Another value for a key, or damage to the bytes."""
    source, name = random.Random(f"adapter {seed}"), "adapter_config.json"
    if source.random() < 0.5:
        how, data = damaged(files[name], seed)
        return f"{name}: {how}", {**files, name: data}
    config, key = json.loads(files[name]), source.choice(KEYS)
    config[key] = source.choice((*OTHERS, *VALUES))
    return f"{name}: {key} = {config[key]!r:.40}", {**files, name: json.dumps(config).encode()}


def peft() -> Sample:
    name = "adapter_model.safetensors"

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"peft {seed}")
        if source.random() < 0.4:
            return of_config(files, seed)
        if source.random() < 0.5:
            how, data = restructured(files[name], source)
        else:
            how, data = damaged(files[name], seed, 8 + int.from_bytes(files[name][:8], "little"), ((0, 8),))
        return f"{name}: {how}", {**files, name: data}

    return Sample({**settings(), name: file_of(tensors())}, "peft", "", damage, use)


def peft_torch() -> Sample:
    archive, name = Archive(tensors()), "adapter_model.bin"

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        how, data = archive.damage(seed)
        return f"{name}: {how}", {**files, name: data}

    return Sample({**settings(), name: archive.data}, "peft", "", damage, use)


def ggml_lora() -> Sample:
    """llama.cpp's: the query's matrix and one of the feed forward's."""
    source, given, name = np.random.default_rng(6), arrays(), "ggml-adapter-model.bin"
    factors, fields, pieces = {}, [(at, 4) for at in range(4, 16, 4)], []
    for module in ("self_attn.q_proj", "mlp.up_proj"):
        rows, columns = given[f"model.layers.0.{module}.weight"].shape
        factors[f"0.{module}.A"] = (source.standard_normal((RANK, columns)) * 0.2).astype(np.float16)
        factors[f"0.{module}.B"] = (source.standard_normal((rows, RANK)) * 0.2).astype(np.float32)
    data = written(RANK, 8, factors)
    at = 0
    while (at := data.find(b"layers.0.", at + 1)) > 0:
        fields += [(place, 4) for place in range(at - 20, at, 4)]
        pieces.append((at - 20, 20 + data.index(b".lora", at) + 6 - at))

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        how, changed = damaged(data, seed, 16, fields, pieces)
        return how, {name: changed}

    return Sample({name: data}, "ggml-lora", name, damage, use)
