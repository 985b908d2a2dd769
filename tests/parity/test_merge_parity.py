"""Merged models: their logits are those of a delta added by torch, and of PEFT's own model with the same adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.saving import save_as

from .conftest import BACKENDS, Parity

pytestmark = pytest.mark.filterwarnings(*(f"ignore::{kind}Warning" for kind in ("Future", "Deprecation", "User")))
"""PEFT's own calls."""
BOUND = 1e-4
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 128, "tie_word_embeddings": False}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 160}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "rslora": {"target_modules": ALL, "use_rslora": True, "lora_alpha": 5},
    "patterns": {"target_modules": ALL, "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 7},
                 "alpha_pattern": {"self_attn.k_proj": 12, "^model.layers.0.mlp.down_proj": 1}},
    "saved modules": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "biases": {"target_modules": ALL, "bias": "all"},
    "some layers": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    "gaussian": {"target_modules": ALL, "init_lora_weights": "gaussian"},
}
Floats = NDArray[np.float32]


def difference(ours: Floats, wanted: Floats) -> float:
    assert ours.shape == wanted.shape and np.isfinite(ours).all()
    return float(np.abs(ours - wanted).max() / (wanted.max() - wanted.min()))


def adapter(model: Any, folder: Path, seed: int, rows: int | None = None, **config: Any) -> Any:
    """PEFT's model over the model, its adapter of random weights, saved. rows: of a grown vocabulary."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    whole = get_peft_model(model, LoraConfig(r=4, **{"lora_alpha": 8, "task_type": "CAUSAL_LM", **config})).eval()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            elif "modules_to_save" in name or "bias" in name and config.get("bias") == "all":
                parameter.add_(0.1 * torch.randn(parameter.shape))
    whole.save_pretrained(folder)
    return whole


def logits(model: Any, ids: NDArray[np.int64]) -> Floats:
    import torch

    with torch.no_grad():
        found: Floats = model(torch.from_numpy(ids)[None]).logits[0].float().numpy()
    return found


def check(parity: Parity, base: Path, adapters: list[Path], ids: NDArray[np.int64], wanted: Floats, name: str,
          delta: Path | None = None) -> None:
    """On every backend that is here."""
    out = parity.folder / f"{name.replace(' ', '-')}.gguf"
    save_as(delta or base, out, "f32", parity.host, base=base if delta else None, adapters=adapters, force=True)
    for backend in BACKENDS:
        if parity.host.backends[backend].available() is None:
            with parity.load(out, backend) as model:
                found = difference(model.logits(ids.tolist()), wanted)
            parity.measured[name, backend] = found
            assert found <= BOUND, (name, backend, found)


def plain(parity: Parity, name: str = "merge base", model_class: str = "LlamaForCausalLM",
          config: Mapping[str, Any] = LLAMA) -> Any:
    """A reference, and its model once more, to be changed."""
    import transformers

    reference = parity.reference(name, model_class, config)
    return reference, getattr(transformers, model_class).from_pretrained(reference.path, dtype="float32").eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_adapter_is_pefts_model(parity: Parity, variant: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    biased = variant == "biases"
    reference, model = plain(parity, f"merge base {'biased' if biased else ''}".strip(),
                             config={**LLAMA, "attention_bias": biased})
    whole = adapter(model, tmp_path / "lora", 1, **VARIANTS[variant])
    wanted = logits(whole, reference.ids)
    assert difference(wanted, reference.logits) > 0.05
    check(parity, reference.path, [tmp_path / "lora"], reference.ids, wanted, f"adapter, {variant}")


def test_a_vocabulary_that_grew_is_pefts(parity: Parity, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity)
    whole = adapter(model, tmp_path / "lora", 2, rows=LLAMA["vocab_size"] + 17, target_modules=ALL,
                    modules_to_save=["embed_tokens", "lm_head"])
    ids = reference.ids.copy()
    ids[::7] = LLAMA["vocab_size"] + np.arange(len(ids[::7])) % 17
    check(parity, reference.path, [tmp_path / "lora"], ids, logits(whole, ids), "adapter, grown vocabulary")


def test_matrices_that_lie_on_their_side_are_pefts(parity: Parity, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity, "merge gpt2", "GPT2LMHeadModel", GPT2)
    whole = adapter(model, tmp_path / "lora", 3, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    check(parity, reference.path, [tmp_path / "lora"], reference.ids, logits(whole, reference.ids), "adapter, gpt2")


TIED: dict[str, dict[str, Any]] = {
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved output": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output": {"target_modules": ["lm_head", "q_proj"]},
    "neither": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("variant", TIED)
def test_an_embedding_that_is_the_output_matrix_too_is_trained_alone(parity: Parity, variant: str,
                                                                     tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity, "merge tied", config={**LLAMA, "tie_word_embeddings": True})
    whole = adapter(model, tmp_path / "lora", 1, **TIED[variant])
    wanted = logits(whole, reference.ids)
    assert difference(wanted, reference.logits) > 0.05
    check(parity, reference.path, [tmp_path / "lora"], reference.ids, wanted, f"adapter, tied, {variant}")
    folder = tmp_path / "merged"
    folder.mkdir()
    save_as(reference.path, folder / "out", "f32", parity.host, adapters=[tmp_path / "lora"], format="huggingface")
    again = type(model).from_pretrained(folder / "out", dtype="float32").eval()
    assert difference(logits(again, reference.ids), wanted) <= BOUND


def test_a_vocabulary_that_grew_in_one_matrix_for_both_is_pefts(parity: Parity, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity, "merge tied", config={**LLAMA, "tie_word_embeddings": True})
    whole = adapter(model, tmp_path / "lora", 2, rows=LLAMA["vocab_size"] + 17, target_modules=ALL)
    ids = reference.ids.copy()
    ids[::7] = LLAMA["vocab_size"] + np.arange(len(ids[::7])) % 17
    check(parity, reference.path, [tmp_path / "lora"], ids, logits(whole, ids), "adapter, tied, grown vocabulary")


def test_an_output_matrix_on_gpt2_is_trained_alone(parity: Parity, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity, "merge gpt2", "GPT2LMHeadModel", GPT2)
    whole = adapter(model, tmp_path / "lora", 3, target_modules=["c_attn", "lm_head"], fan_in_fan_out=True)
    check(parity, reference.path, [tmp_path / "lora"], reference.ids, logits(whole, reference.ids), "gpt2, output")


@pytest.mark.parametrize(("family", "config", "square"), [("GPT2LMHeadModel", GPT2, "attn.c_proj"),
                                                          ("LlamaForCausalLM", LLAMA, "q_proj")])
@pytest.mark.parametrize("said", [True, False])
def test_what_is_said_of_a_modules_side_is_not_believed(parity: Parity, tmp_path: Path, family: str,
                                                        config: dict[str, Any], square: str, said: bool) -> None:
    """PEFT looks at the module, when it makes and when it loads an adapter."""
    peft = pytest.importorskip("peft")
    reference, model = plain(parity, f"merge side {family}", family, config)
    adapter(model, tmp_path / "lora", 3, target_modules=[square])
    file = tmp_path / "lora/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fan_in_fan_out": said}))
    _, model = plain(parity, f"merge side {family}", family, config)
    whole = peft.PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    check(parity, reference.path, [tmp_path / "lora"], reference.ids, logits(whole, reference.ids),
          f"adapter, {family}, {said}")


def test_several_are_as_if_put_on_one_after_the_other(parity: Parity, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reference, model = plain(parity)
    saved = ["embed_tokens", "lm_head"]
    model = adapter(model, tmp_path / "one", 4, rows=170, target_modules=ALL, modules_to_save=saved).merge_and_unload()
    whole = adapter(model, tmp_path / "two", 5, rows=171, target_modules=["q_proj", "down_proj"], modules_to_save=saved)
    check(parity, reference.path, [tmp_path / "one", tmp_path / "two"], reference.ids, logits(whole, reference.ids),
          "adapters, two")


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_delta_is_what_torch_adds(parity: Parity, tmp_path: Path, rows: int, dtype: str) -> None:
    """As the programs that come with deltas do it: the base's matrices grow by rows of zeros."""
    import torch

    reference, base = plain(parity)
    vocabulary = LLAMA["vocab_size"] + rows
    goal, model = plain(parity, f"merge goal {rows}", config={**LLAMA, "vocab_size": vocabulary})
    if rows:
        base.resize_token_embeddings(vocabulary, mean_resizing=False)
        for matrix in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
            matrix.data[-rows:] = 0
    below = base.state_dict()
    for name, tensor in model.state_dict().items():
        tensor.sub_(below[name])
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "delta")
    model = type(model).from_pretrained(tmp_path / "delta", dtype="float32").eval()  # its frequencies not rounded
    for name, tensor in model.state_dict().items():
        tensor.add_(below[name])
    wanted = logits(model, goal.ids)
    assert difference(wanted, goal.logits) < 0.02
    check(parity, reference.path, [], goal.ids, wanted, f"delta of {dtype}, {rows} new rows", delta=tmp_path / "delta")
    shutil.rmtree(tmp_path / "delta")
