"""GLM-4: our logits are those of transformers. (It does not have the generations before.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from tests.parity.conftest import Parity, Reference

BASE: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "pad_token_id": 0, "eos_token_id": [1],
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
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
variants = pytest.mark.parametrize("variant", VARIANTS)


def made(parity: Parity, variant: str) -> Reference:
    kind, changes = VARIANTS[variant]
    return parity.reference(variant, kind, {**BASE, **changes})


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
