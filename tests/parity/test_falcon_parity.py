"""Falcon: our logits are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from tests.parity.conftest import Parity, Reference

BASE: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 199,
                        "max_position_embeddings": 128}
RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
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
variants = pytest.mark.parametrize("variant", VARIANTS)


def made(parity: Parity, variant: str) -> Reference:
    return parity.reference(variant, "FalconForCausalLM", {**BASE, **VARIANTS[variant]})


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
