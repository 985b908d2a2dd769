"""BLOOM, Falcon, GLM-4: our logits are those of transformers. (It has no ChatGLM before GLM-4.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from tests.parity.conftest import Parity, Reference

BLOOM: dict[str, Any] = {"hidden_size": 96, "n_layer": 3, "n_head": 8, "vocab_size": 199, "layer_norm_epsilon": 1e-5}
BLOOMS: dict[str, dict[str, Any]] = {
    "bloom of 8 heads": {},
    "bloom of 6 heads": {"n_head": 6},
    "bloom of 12 heads": {"n_head": 12},
    "bloom of 1 head": {"n_head": 1, "n_layer": 1},
    "bloom, the normed input goes on": {"apply_residual_connection_post_layernorm": True},
    "bloom, odd sizes": {"hidden_size": 70, "n_head": 5, "vocab_size": 131},
}

FALCON: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 199,
                        "max_position_embeddings": 128}
RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
FALCONS: dict[str, dict[str, Any]] = {
    "falcon 7b": {"multi_query": True},
    "falcon 7b, not multi-query": {"multi_query": False},
    "falcon rw of 8 heads": {**RW, "num_attention_heads": 8},
    "falcon rw of 6 heads": RW,
    "falcon 7b, one after the other": {"parallel_attn": False},
    "falcon 7b with biases": {"bias": True},
    "falcon 40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon 11b": {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
    "falcon, wide feed forward": {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 500},
    "falcon, untied": {"tie_word_embeddings": False},
}

GLM: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "pad_token_id": 0, "eos_token_id": [1],
}
GLMS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm": ("GlmForCausalLM", {}),
    "glm, no bias": ("GlmForCausalLM", {"attention_bias": False}),
    "glm, tied": ("GlmForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "glm, all rotated": ("GlmForCausalLM", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0}}),
    "glm, odd sizes": ("GlmForCausalLM", {"hidden_size": 70, "head_dim": 12, "num_attention_heads": 5,
                                          "num_key_value_heads": 5, "intermediate_size": 101, "vocab_size": 131}),
    "glm4": ("Glm4ForCausalLM", {}),
    "glm4 with bias": ("Glm4ForCausalLM", {"attention_bias": True}),
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("BloomForCausalLM", {**BLOOM, **changes}) for name, changes in BLOOMS.items()},
    **{name: ("FalconForCausalLM", {**FALCON, **changes}) for name, changes in FALCONS.items()},
    **{name: (kind, {**GLM, **changes}) for name, (kind, changes) in GLMS.items()},
}
variants = pytest.mark.parametrize("variant", MODELS)


def made(parity: Parity, variant: str) -> Reference:
    return parity.reference(variant, *MODELS[variant])


@variants
def test_logits_are_those_of_transformers(parity: Parity, variant: str, backend: str) -> None:
    parity.check(variant, made(parity, variant), backend)


@variants
def test_logits_are_kept_through_gguf(parity: Parity, variant: str, backend: str, tmp_path: Path) -> None:
    reference, file = made(parity, variant), tmp_path / "model.gguf"
    save_as(reference.path, file, "f32", parity.host)
    parity.check(f"{variant}, through GGUF", reference, backend, path=file)


@variants
def test_bin_files_are_the_same_model(parity: Parity, variant: str, backend: str, tmp_path: Path,
                                      saved_again: Callable[[Path, str, Path], Path]) -> None:
    reference = made(parity, variant)
    parity.check(f"{variant}, bin", reference, backend, path=saved_again(reference.path, "bin", tmp_path / "x"))
