"""LLaMA: our logits are those of transformers, in every variant of the family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from tests.parity.conftest import Parity, Reference

# Sizes that no tile of a kernel divides.
BASE: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 6, "vocab_size": 199, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
# A short original context, so that a prompt of 60 tokens has frequencies of all three kinds: kept, mixed, divided.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama 1": {},
    "grouped heads": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "tied embeddings": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True, "num_key_value_heads": 3},
    "mlp bias": {"mlp_bias": True},
    "both biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "head_dim apart": {"head_dim": 20, "num_key_value_heads": 2},
    "head_dim apart, smaller, with bias": {"head_dim": 6, "attention_bias": True},
    "rope linear": {"rope_parameters": LINEAR, "num_key_value_heads": 2},
    "rope llama3": {"rope_parameters": LLAMA3, "num_key_value_heads": 2},
    "rope llama3, long": {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 24},
                          "head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1,
                          "tie_word_embeddings": True},
    "rope of llama 3.1": {"num_key_value_heads": 2, "rope_parameters": {
        **LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192}},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "rope theta below 1": {"rope_parameters": {"rope_type": "default", "rope_theta": 0.5}},
    "another epsilon": {"rms_norm_eps": 0.3},
    "odd sizes": {"hidden_size": 70, "intermediate_size": 101, "num_attention_heads": 5, "num_key_value_heads": 5,
                  "vocab_size": 131},
    "wide feed forward": {"intermediate_size": 1111, "num_hidden_layers": 1},
    "one layer": {"num_hidden_layers": 1, "num_key_value_heads": 3},
    "large heads": {"hidden_size": 264, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2},
}
LONGER = {"rope llama3, long": 120}  # tokens, where 60 are too few
variants = pytest.mark.parametrize("variant", VARIANTS)


def made(parity: Parity, variant: str, **options: Any) -> Reference:
    name = " ".join((variant, *map(str, options.values())))
    return parity.reference(name, "LlamaForCausalLM", {**BASE, **VARIANTS[variant]},
                            tokens=LONGER.get(variant, 60), **options)


@variants
def test_logits_are_those_of_transformers(parity: Parity, variant: str, backend: str) -> None:
    parity.check(variant, made(parity, variant), backend)


@variants
def test_logits_are_kept_through_gguf(parity: Parity, variant: str, backend: str, tmp_path: Path) -> None:
    reference = made(parity, variant)
    file = tmp_path / "model.gguf"
    save_as(reference.path, file, "f32", parity.host)
    parity.check(f"{variant}, through GGUF", reference, backend, path=file)


@pytest.mark.parametrize("variant", ["grouped heads", "tied embeddings"])
def test_shards_are_one_model(parity: Parity, variant: str, backend: str) -> None:
    reference = made(parity, variant, max_shard_size="200KB")
    assert len(list(reference.path.glob("model-*.safetensors"))) > 2
    parity.check(f"{variant}, in shards", reference, backend)


NOT_METAS = ("bias", "head_dim", "rope linear", "rope llama3")
"""What params.json has no words for."""
FORMS = [(variant, form) for variant in VARIANTS
         for form in ("bin", "bin in shards", "old bin", "meta", "meta in shards")
         if not form.startswith("meta") or not any(word in variant for word in NOT_METAS)]


@pytest.mark.parametrize(("variant", "form"), FORMS)
def test_every_form_of_the_weights_is_the_same_model(parity: Parity, variant: str, form: str, backend: str,
                                                     tmp_path: Path, saved_again: Callable[[Path, str, Path], Path]
                                                     ) -> None:
    """Written by torch, read without it."""
    reference = made(parity, variant)
    path = saved_again(reference.path, form, tmp_path / "x")
    parity.check(f"{variant}, {form}", reference, backend, path=path, context=128)


# The reference computes with the rounded weights in f32; kernels may round the activations to the weights' type.
HALVES = {"float16": {"numpy": 1e-4, "cpu": 1e-2}, "bfloat16": {"numpy": 1e-4, "cpu": 3e-2}}


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_weights_are_read(parity: Parity, dtype: str, backend: str) -> None:
    reference = made(parity, "grouped heads", dtype=dtype)
    parity.check(f"grouped heads, {dtype}", reference, backend, bound=HALVES[dtype].get(backend, 3e-2))


def older(config: dict[str, Any]) -> None:
    """As transformers 4 spelled it: rope_theta at the top, rope_scaling with "rope_type"."""
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    config["torch_dtype"] = config.pop("dtype", "float32")


def oldest(config: dict[str, Any]) -> None:
    """As the first versions: "type" in place of "rope_type", and nothing that they did not know."""
    older(config)
    if config["rope_scaling"]:
        config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    for key in ("head_dim", "attention_bias", "mlp_bias", "attention_dropout"):
        config.pop(key, None)


@pytest.mark.parametrize("spelling", [older, oldest], ids=lambda f: f.__name__)
@pytest.mark.parametrize("variant", ["llama 1", "rope linear", "rope llama3", "rope theta"])
def test_old_spellings_of_the_config_give_the_same(
        parity: Parity, variant: str, backend: str, spelling: Callable[[dict[str, Any]], None],
        rewritten: Callable[[Path, Callable[[dict[str, Any]], None]], Path]) -> None:
    reference = made(parity, variant)
    parity.check(f"{variant}, {spelling.__name__} spelling", reference, backend,
                 path=rewritten(reference.path, spelling))


def test_the_newest_spelling_is_what_transformers_writes(parity: Parity) -> None:
    """Else the test of the old spellings would compare nothing."""
    config = json.loads((made(parity, "rope llama3").path / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "llama3"
    assert "rope_theta" not in config


@pytest.mark.parametrize("change", [
    {"rms_norm_eps": 1e-2}, {"rope_parameters": LINEAR}, {"rope_parameters": LLAMA3},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 11000.0}}], ids=str)
def test_a_difference_in_the_config_would_be_seen(
        parity: Parity, change: dict[str, Any],
        rewritten: Callable[[Path, Callable[[dict[str, Any]], None]], Path]) -> None:
    """The comparison is sharp: models that differ in one value only are far apart."""
    reference = made(parity, "one layer")
    path = rewritten(reference.path, lambda config: config.update(change))
    assert min(parity.differences(reference, path, "numpy").values()) > 1e-3
