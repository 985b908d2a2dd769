"""Files that we write for each family run in llama.cpp: where it is clear about the likeliest id, so are we."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.host import Host, HostSettings
from bestiary.model import load_tokenizer
from tests.goldens.random_models import save_random, save_tiny_chatglm3

# Made by scripts/make_goldens_families.py.
GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))
MODELS: list[dict[str, Any]] = GOLDENS["models"]
BACKENDS = Host(HostSettings(names=())).backends.names
CLEAR = 0.02
"""Of the spread of the logits. llama.cpp takes GELU from a table in f16."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("golden", MODELS, ids=lambda golden: golden["name"])
def test_the_likeliest_ids_are_those_of_llama_cpp(golden: dict[str, Any], backend: str, host: Host,
                                                  tmp_path: Path) -> None:
    if reason := host.backends[backend].available():
        pytest.skip(f"backend {backend}: {reason}")
    save_random(golden["config"], host, tmp_path / "model.gguf")
    with bestiary.load(tmp_path / "model.gguf", backend, context=golden["context"], host=host) as model:
        ours = model.logits(golden["prompt_ids"]).argmax(axis=1)
    clear = np.array(golden["lead"]) > CLEAR
    assert clear.sum() >= 20
    np.testing.assert_array_equal(ours[clear], np.array(golden["likeliest"])[clear])


def test_llama_cpp_cuts_up_texts_alike_by_the_vocabulary_that_we_write(host: Host, data: Path, tmp_path: Path) -> None:
    """But for the two tokens that begin every prompt, which is our doing."""
    save_tiny_chatglm3(data, host, tmp_path / "model.gguf")
    tokenizer = load_tokenizer(tmp_path / "model.gguf", host)
    assert len(GOLDENS["texts"]) > 100
    for text, ids in GOLDENS["texts"]:
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode(text, bos=True) == [64790, 64792, *ids]


def test_every_family_that_llama_cpp_runs_is_there() -> None:
    assert {golden["config"]["model_type"] for golden in MODELS} >= {
        "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "bloom", "falcon",
        "chatglm", "glm", "glm4"}
