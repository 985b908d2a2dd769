"""Perplexity by chunks: against its definition, and between types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bestiary import BestiaryError, load
from bestiary.perplexity import perplexity


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    said = (data / "tiny-llama" / "stories260K.md").read_text("utf-8")
    return said[said.index("Once upon a time"):].partition("\n```")[0]


def test_perplexity_is_that_of_the_second_halves(data: Path, text: str) -> None:
    with load(data / "tiny-llama" / "stories260K.bin", backend="numpy") as model:
        got = perplexity(model, text, context=64)
        ids = model.tokenizer.encode(text, bos=True)
        losses = []
        for start in range(0, len(ids) - 63, 64):
            chunk = [model.tokenizer.bos, *ids[start + 1:start + 64]]
            logits = model.logits(chunk).astype(np.float64)
            chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            losses += [-np.log(chance[i, chunk[i + 1]]) for i in range(32, 63)]
    assert got.tokens == len(losses)
    assert got.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert got.error == pytest.approx(got.perplexity * np.std(losses) / np.sqrt(len(losses) - 1), rel=1e-4)


def test_8_bits_lose_next_to_nothing(data: Path, text: str) -> None:
    figures = {}
    for kind in ("f32", "q8_0"):
        with load(data / "tiny-llama" / "stories260K.bin", backend="numpy", type=kind) as model:
            figures[kind] = perplexity(model, text, context=128).perplexity
    assert figures["q8_0"] <= 1.01 * figures["f32"]


def test_a_text_shorter_than_a_chunk_is_refused(data: Path) -> None:
    with load(data / "tiny-llama" / "stories260K.bin", backend="numpy") as model:
        with pytest.raises(BestiaryError, match="a chunk has 512"):
            perplexity(model, "Once upon a time")
        with pytest.raises(BestiaryError, match="context = 513"):
            perplexity(model, "Once upon a time", context=513)
