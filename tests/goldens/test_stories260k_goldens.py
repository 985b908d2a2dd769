"""stories260K: our greedy ids are those of llama.cpp, and our text is the one its author printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.engine import Request
from bestiary.host import Host, HostSettings
from bestiary.model import Model
from bestiary.sampling import Sampling
from bestiary.saving import save_as

# Made by scripts/make_goldens_llama_cpp.py.
GENERATIONS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "stories260k.json").read_text())["generations"]
BACKENDS = Host(HostSettings(names=())).backends.names
by_prompt = pytest.mark.parametrize("golden", GENERATIONS, ids=lambda golden: golden["prompt"] or "no prompt")


@pytest.fixture(scope="module", params=["llama2c", "gguf"])
def checkpoint(request: pytest.FixtureRequest, data: Path, host: Host, tmp_path_factory: pytest.TempPathFactory
               ) -> Path:
    """The original, and the same converted to GGUF f32."""
    original = data / "tiny-llama/stories260K.bin"
    if request.param == "llama2c":
        return original
    path = tmp_path_factory.mktemp("stories") / "s.gguf"
    save_as(original, path, "f32", host)
    return path


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, checkpoint: Path, host: Host) -> Iterator[Model]:
    if reason := host.backends[request.param].available():
        pytest.skip(f"backend {request.param}: {reason}")
    with bestiary.load(checkpoint, backend=request.param, host=host, sequences=3, batch=32) as model:
        yield model


def greedy(golden: dict[str, Any]) -> Request:
    return Request(tuple(golden["prompt_ids"]), len(golden["ids"]), Sampling(temperature=0))


@by_prompt
def test_greedy_ids_are_those_of_llama_cpp(model: Model, golden: dict[str, Any]) -> None:
    assert list(model.engine.run(model.engine.submit(greedy(golden)))) == golden["ids"]


def test_greedy_ids_are_those_of_llama_cpp_when_all_run_together(model: Model) -> None:
    running = [model.engine.submit(greedy(golden)) for golden in GENERATIONS]
    for generation, golden in zip(running, GENERATIONS, strict=True):
        assert list(model.engine.run(generation)) == golden["ids"]


@by_prompt
def test_prompts_have_the_ids_that_llama_cpp_gives_them(model: Model, golden: dict[str, Any]) -> None:
    assert model.tokenizer.encode(golden["prompt"], bos=True) == golden["prompt_ids"]


def printed(data: Path) -> str:
    """The greedy story in the model's description."""
    text = (data / "tiny-llama/stories260K.md").read_text(encoding="utf-8")
    return text.split("-t 0.0\n", 1)[1].split("\n```", 1)[0]


def test_the_greedy_story_is_the_printed_one_word_for_word(model: Model, data: Path) -> None:
    story = "".join(model.generate("", max_tokens=200, temperature=0))
    assert len(story.split()) > 90
    assert printed(data).startswith(story)


def perplexity(model: Model, ids: Sequence[int]) -> float:
    logits = model.logits(ids)[:-1].astype(np.float64)
    lead = logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - lead - np.log(np.exp(logits - lead).sum(axis=-1, keepdims=True))
    return float(np.exp(-log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_q8_0_costs_at_most_a_hundredth_of_perplexity(data: Path, host: Host, backend: str) -> None:
    if reason := host.backends[backend].available():
        pytest.skip(f"backend {backend}: {reason}")
    path = data / "tiny-llama/stories260K.bin"
    found = {}
    for kind in (None, "q8_0"):
        with bestiary.load(path, backend=backend, type=kind, host=host) as model:
            found[kind] = perplexity(model, model.tokenizer.encode(printed(data), bos=True))
    assert 1 < found["q8_0"] <= 1.01 * found[None]
