"""Matrices that a family keeps with inputs as rows: quantizers turn them before they pack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary.host import Host
from bestiary.saving import save_as
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_awq as awq
from tests.loaders import test_quantized_bitsandbytes as bitsandbytes
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders.quantized_folders import VOCABULARY, WIDTH, Folders, Pack, Stored, plain

CONFIG: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDTH, "n_layer": 1,
                          "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
LAYER = "transformer.h.0."
LINEARS = {"attn.c_attn": (3 * WIDTH, WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (4 * WIDTH, WIDTH),
           "mlp.c_proj": (WIDTH, 4 * WIDTH)}
WAYS: Mapping[str, tuple[Pack, Mapping[str, Any]]] = {
    "gptq": (gptq.packer(4, 64, False), gptq.section(4, 64, False)),
    "act-order": (gptq.packer(4, 64, False, True, True), gptq.section(4, 64, False, True, True)),
    "awq": (awq.packer(), awq.SECTION),
    "nf4": (bitsandbytes.packer(), bitsandbytes.FOUR),
    "int8": (bitsandbytes.bytes_and_scales, bitsandbytes.EIGHT)}


def write(folder: Path, way: str) -> Folders:
    rng = np.random.default_rng(1)
    pack, section = WAYS[way]
    packed = {f"{LAYER}{name}": pack(rng, *shape) for name, shape in LINEARS.items()}
    kept = {f"{name}.{part}": rng.standard_normal(WIDTH).astype(np.float32) for name in (
        f"{LAYER}ln_1", f"{LAYER}ln_2", "transformer.ln_f") for part in ("weight", "bias")}
    kept |= {"transformer.wte.weight": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
             "transformer.wpe.weight": rng.standard_normal((64, WIDTH)).astype(np.float32)}
    kept |= {f"{LAYER}{name}.bias": rng.standard_normal(shape[0]).astype(np.float32) for name, shape in LINEARS.items()}
    parts: dict[str, Stored] = {f"{name}{end}": stored for name, one in packed.items()
                                for end, stored in one.parts.items()}
    exact = {f"{name}.weight": one.values if one.exact is None else one.exact for name, one in packed.items()}
    turned = {name: np.ascontiguousarray(value.T) for name, value in exact.items()}
    for name, config in (("quantized", {**CONFIG, "quantization_config": dict(section)}), ("plain", CONFIG)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    folders.write_tensors(folder / "quantized" / "model.safetensors",
                          {**{name: plain(array) for name, array in kept.items()}, **parts})
    save_file({**kept, **turned}, folder / "plain" / "model.safetensors")
    return Folders(folder / "quantized", folder / "plain", {}, exact)


@pytest.mark.parametrize("way", WAYS)
def test_they_are_read_as_they_lie(tmp_path: Path, host: Host, way: str) -> None:
    folders.check_logits(write(tmp_path, way), host)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_made_of_them_has_inputs_as_rows_again(tmp_path: Path, host: Host, way: str) -> None:
    made = write(tmp_path, way)
    save_as(made.quantized, tmp_path / "back", "f32", host, format="huggingface")
    back, wanted = host.open(tmp_path / "back").tensors, host.open(made.plain).tensors
    for name in made.exact:
        off = 5e-4 * np.abs(made.exact[name]).max() if way == "act-order" else 0  # rounded to f16 as it is decoded
        np.testing.assert_allclose(back[name].array(), wanted[name].array(), 0, off)
