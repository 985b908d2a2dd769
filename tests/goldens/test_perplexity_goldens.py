"""Perplexity: our figures on a GGUF file are those of llama.cpp on the same file and text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import bestiary
from bestiary.host import Host
from bestiary.perplexity import perplexity
from bestiary.saving import save_as
from bestiary_plugins.demo.command import HERE, model

# Made by scripts/make_goldens_perplexity.py.
MADE: dict[str, Any] = json.loads((Path(__file__).parent / "perplexity.json").read_text())
GOLDENS: list[dict[str, Any]] = MADE["perplexities"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, data: Path, host: Host) -> dict[tuple[str, str], Path]:
    sources = {"stories260K": data / "tiny-llama/stories260K.bin", "demo": model()}
    folder = tmp_path_factory.mktemp("perplexity")
    made = {}
    for name, kind in dict.fromkeys((golden["model"], golden["type"]) for golden in GOLDENS):
        made[name, kind] = folder / f"{name}-{kind}.gguf"
        save_as(sources[name], made[name, kind], kind, host)
    return made


@pytest.fixture(scope="module")
def texts(data: Path) -> dict[str, str]:
    said = (data / "tiny-llama/stories260K.md").read_text("utf-8")
    return {"stories": said[said.index("Once upon a time"):].partition("\n```")[0],
            "held back": (HERE / "held_back.txt").read_text("utf-8"),
            "shakespeare": (data / "texts/tinyshakespeare.txt").read_text("utf-8")}


def test_the_goldens_are_of_the_model_that_is_shipped() -> None:
    weights = (model() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == MADE["sha256"]["demo"], f"run {MADE['made_by']} again"


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: "-".join(
    str(golden[key]) for key in ("model", "type", "text", "context")))
def test_perplexity_is_that_of_llama_cpp(golden: dict[str, Any], files: dict[tuple[str, str], Path], host: Host,
                                         texts: dict[str, str]) -> None:
    text = texts[golden["text"]][:golden["characters"]].removesuffix("\n")
    with bestiary.load(files[golden["model"], golden["type"]], context=golden["context"], host=host,
                       cache_type_k=golden["cache"], cache_type_v=golden["cache"]) as loaded:
        assert len(loaded.tokenizer.encode(text, bos=True)) == golden["ids"]
        got = perplexity(loaded, text, golden["context"])
    print(f"{golden['perplexity']:.5f} {got.perplexity:.5f} {got.perplexity / golden['perplexity'] - 1:+.5%}")
    assert got.tokens == golden["tokens"]
    assert got.perplexity == pytest.approx(golden["perplexity"], rel=1e-3)
    assert got.error == pytest.approx(golden["error"], rel=1e-2)
