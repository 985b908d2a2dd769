"""Files that we write for each family run in llama.cpp: where it is clear about the likeliest id, so are we."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.host import Host, HostSettings
from tests.goldens.random_models import save_random

# Made by scripts/make_goldens_families.py.
MODELS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "families.json").read_text())["models"]
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


def test_every_family_that_llama_cpp_runs_is_there() -> None:
    assert {golden["config"]["model_type"] for golden in MODELS} >= {
        "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "bloom", "falcon",
        "chatglm", "glm", "glm4"}
