"""BLOOM: our logits are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from tests.parity.conftest import Parity, Reference

BASE: dict[str, Any] = {"hidden_size": 96, "n_layer": 3, "n_head": 8, "vocab_size": 199, "layer_norm_epsilon": 1e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "bloom of 8 heads": {},
    "bloom of 6 heads": {"n_head": 6},
    "bloom of 12 heads": {"n_head": 12},
    "bloom of 1 head": {"n_head": 1, "n_layer": 1},
    "bloom, the normed input goes on": {"apply_residual_connection_post_layernorm": True},
    "bloom, odd sizes": {"hidden_size": 70, "n_head": 5, "vocab_size": 131},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def made(parity: Parity, variant: str) -> Reference:
    return parity.reference(variant, "BloomForCausalLM", {**BASE, **VARIANTS[variant]})


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
