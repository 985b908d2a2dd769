"""llama.cpp's LoRA files: with any base they give what the adapter they were made of gives."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bestiary.canonical import to_canonical
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.inspection import inspect
from bestiary.model import load
from bestiary.saving import save_as
from bestiary_plugins.loaders.ggml_lora import GgmlLora
from tests.cli.conftest import Cli
from tests.contracts.samples import SAMPLES, arrays
from tests.loaders.ggml_lora_files import MODULES, tensor, written

RANK, ALPHA = 3, 7
IDS = [1, 5, 3, 8, 2, 9, 4]
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def factors() -> Arrays:
    """For every matrix of the tiny model's two layers; A of some as f16, as the script leaves them."""
    random, given, made = np.random.default_rng(6), arrays("huggingface"), Arrays()
    for layer in range(2):
        for i, module in enumerate(MODULES):
            rows, columns = given[f"model.layers.{layer}.{module}.weight"].shape
            made[f"{layer}.{module}.A"] = random.standard_normal((RANK, columns)).astype(
                np.float16 if i % 2 else np.float32)
            made[f"{layer}.{module}.B"] = random.standard_normal((rows, RANK)).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def wanted(factors: Arrays, host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    """The weights of the published model with PEFT's adapter."""
    folder, base = tmp_path_factory.mktemp("peft"), tmp_path_factory.mktemp("base")
    save_file({f"base_model.model.model.layers.{name[:-2]}.lora_{name[-1]}.weight": array
               for name, array in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    save_as(SAMPLES["huggingface"](base), base / "merged.gguf", "f32", host, adapters=[folder])
    return {name: tensor.array() for name, tensor in host.open(base / "merged.gguf").tensors.items()}


@pytest.mark.parametrize("later", [False, True], ids=["Meta's names", "GGUF's names"])
@pytest.mark.parametrize("base", ["llama2.c", "meta", "gguf", "huggingface"])
def test_it_gives_what_peft_s_adapter_gives(base: str, later: bool, host: Host, tmp_path: Path, factors: Arrays,
                                            wanted: dict[str, NDArray[np.float32]]) -> None:
    file = tmp_path / "ggml-adapter-model.bin"
    file.write_bytes(written(RANK, ALPHA, factors, later))
    old, merged = SAMPLES[base](tmp_path), tmp_path / "merged.gguf"
    save_as(old, merged, "f32", host, adapters=[file])
    found = {name: tensor.array() for name, tensor in host.open(merged).tensors.items()}
    before = to_canonical(host.open(old), host.architectures["llama"])[0].tensors
    assert found.keys() == wanted.keys()
    changed = [name for name, array in found.items() if not np.array_equal(array, before[name].array())]
    assert len(changed) == 2 * len(MODULES)
    for name, array in wanted.items():
        assert np.array_equal(found[name], array), name


def test_the_command_line_takes_it(cli: Cli, tmp_path: Path, host: Host, factors: Arrays) -> None:
    file, base, out = tmp_path / "ggml-adapter-model.bin", SAMPLES["llama2.c"](tmp_path), tmp_path / "x.gguf"
    file.write_bytes(written(RANK, ALPHA, factors))
    assert cli("convert", "--base", base, "--lora", file, out, "--outtype", "f32").status == 0
    assert cli("convert", file, tmp_path / "y.gguf", "--base", base, "--outtype", "f32").status == 0
    assert out.read_bytes() == (tmp_path / "y.gguf").read_bytes()
    with load(base, host=host) as without, load(out, host=host) as merged:
        assert np.abs(without.logits(IDS) - merged.logits(IDS)).max() > 0.1
    assert "adds to 14 tensors" in str(inspect(file, host)["problems"])
    alone = cli("run", "-m", file, "-p", "x")
    assert alone.status == 1 and "is an adapter and no model by itself" in alone.err


def test_it_is_read_from_the_file_when_it_is_asked_for(host: Host, tmp_path: Path, factors: Arrays) -> None:
    file = tmp_path / "x"
    file.write_bytes(written(RANK, ALPHA, factors))
    assert {name for name, loader in host.loaders.items() if loader.recognise(file)} == {"ggml-lora"}
    checkpoint = pickle.loads(pickle.dumps(host.open(file)))
    said = checkpoint.provenance
    assert said is not None and "convert-lora" in said.program and said.lacks
    name = "1.mlp.down_proj"
    added = checkpoint.adapter.added[f"model.layers.{name}.weight"]
    product = factors[f"{name}.B"].astype(np.float64) @ factors[f"{name}.A"] * (ALPHA / RANK)
    assert np.array_equal(added.decode(2, 5), product[2:5].astype(np.float32))


def test_no_other_file_is_taken_for_one(data: Path) -> None:
    loader, others = GgmlLora(), [path for folder in ("legacy-models", "legacy", "tokenizers")
                                  for path in (data / folder).rglob("*") if path.is_file()]
    assert len(others) > 40 and not any(loader.recognise(path) for path in others)


A, B = np.ones((RANK, 16), np.float32), np.ones((16, RANK), np.float32)
WHOLE = {"0.self_attn.q_proj.A": A, "0.self_attn.q_proj.B": B}
START = struct.pack("<I3i", 0x67676C61, 1, RANK, ALPHA)
NAME = "layers.0.attention.wq.weight.lora"


@pytest.mark.parametrize(("data", "match"), [
    (lambda: written(RANK, 1, WHOLE, version=2), "of version 2; known: 1"),
    (lambda: written(0, 1, WHOLE), "r = 0; it must be from 1"),
    (lambda: written(-1, 1, WHOLE), "r = -1"),
    (lambda: written(4, 1, WHOLE), r"loraA is of \[16, 3\]; with r = 4 it is of \[columns, 4\]"),
    (lambda: written(RANK, 1, {"0.self_attn.q_proj.A": A}), "q_proj.weight there is loraA alone"),
    (lambda: written(RANK, 1, {}), "holds no tensors"),
    (lambda: written(RANK, 1, WHOLE)[:-1], "outside the file of"),
    (lambda: written(RANK, 1, WHOLE) + b"x", "no tensor begins at byte"),
    (lambda: START + tensor(16, f"{NAME}A", A.T) * 2, "is there twice|no tensor begins"),
    (lambda: START + tensor(16, "token_embd.weight.loraA", A.T), "token_embd.weight.loraA' .*finetune, are not"),
    (lambda: START + tensor(16, "layers.0.attention.wx.weight.loraA", A.T), "attention.wx.weight.loraA' is of no"),
    (lambda: START + tensor(16, f"{NAME}A", np.ones(5, np.float32)), r"is of \[5\]; with r = 3"),
    (lambda: START + struct.pack("<3i", 2, 4, 2) + bytes(60), "no tensor begins"),
    (lambda: START + struct.pack("<5i", 2, len(NAME) + 1, 2, RANK, 32) + f"{NAME}A".encode() + bytes(600),
     "has type 2; known: 0"),
    (lambda: START + struct.pack("<5i", 2, len(NAME) + 1, 0, (1 << 31) - 1, (1 << 31) - 1) + f"{NAME}A".encode(),
     "outside the file")])
def test_what_is_damaged_or_of_another_kind_is_refused(host: Host, tmp_path: Path, data: Callable[[], bytes],
                                                       match: str) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(data())
    with pytest.raises(BestiaryError, match=match) as error:
        host.open(file)
    assert "\n" not in str(error.value)


def test_another_model_is_refused(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(written(RANK, 1, {"5.self_attn.q_proj.A": A, "5.self_attn.q_proj.B": B}))
    with pytest.raises(BestiaryError, match="made for another model"):
        save_as(SAMPLES["gguf"](tmp_path), tmp_path / "y.gguf", "f32", host, adapters=[file])


def test_factors_that_are_no_numbers_are_added_without_a_word(host: Host, tmp_path: Path,
                                                              recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(written(RANK, 1, {"0.self_attn.q_proj.A": A * np.float32(np.inf), "0.self_attn.q_proj.B": B * 0}))
    added = host.open(file).adapter
    assert added is not None and np.isnan(added.added["model.layers.0.self_attn.q_proj.weight"].array()).all()
    assert not [found for found in recwarn if found.category is RuntimeWarning]
