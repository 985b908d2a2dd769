"""Files of 2023 converted to GGUF: their weights are what they were, in types of today, and today's llama.cpp and we
continue a text with the same ids, which are those that the notes beside the files have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.engine import Request
from bestiary.host import Host, HostSettings
from bestiary.model import Model
from bestiary.sampling import Sampling
from bestiary.saving import save_as

# Made by scripts/make_goldens_converted.py.
GOLDENS: dict[str, dict[str, Any]] = {golden["file"]: golden for golden in json.loads(
    (Path(__file__).parent / "converted.json").read_text())["generations"]}
BACKENDS = Host(HostSettings(names=())).backends.names
BECOMES = {"Q4_2": "q8_0", "Q4_3": "q8_0"}
"""Types that no type of today holds; of all others it is the one of their name."""
FROM_LLAMA_CPP = 0.02
"""How far logits may be from llama.cpp's, over their spread: both round what they multiply quantized weights with."""
TIE = 0.15
"""A lead in logits that llama.cpp's rounding and ours may turn around."""


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "legacy-models"


@pytest.fixture(scope="module")
def notes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())["files"]
    return found


@pytest.fixture(scope="module", params=GOLDENS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(name: str, folder: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "x.gguf"
    save_as(folder / name, path, None, host, config=GOLDENS[name]["config"])
    return path


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, path: Path, host: Host) -> Iterator[Model]:
    if reason := host.backends[request.param].available():
        pytest.skip(f"backend {request.param}: {reason}")
    with bestiary.load(path, backend=request.param, host=host, cache_type_k="f32", cache_type_v="f32") as model:
        yield model


def canonical(path: Path, host: Host) -> Checkpoint:
    checkpoint = host.open(path)
    return to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))[0]


def test_the_weights_are_what_they_were_in_types_of_today(path: Path, name: str, folder: Path, host: Host,
                                                          notes: dict[str, Any]) -> None:
    old, new = canonical(folder / name, host), canonical(path, host)
    assert old.tensors.keys() == new.tensors.keys()
    kinds = notes[name]["types"].keys()
    wanted = {BECOMES.get(kind, kind.lower()) for kind in kinds} if kinds != {"F32"} else {"f16", "f32"}
    assert {tensor.encoding.name for tensor in new.tensors.values()} == wanted
    for key, tensor in old.tensors.items():
        before, after = tensor.array(), new.tensors[key].array()
        if tensor.encoding.name in ("q4_2", "q4_3"):
            bound = (0.5 / 127 + 2 ** -11) * np.abs(before).max()
        elif tensor.encoding.name.endswith(("v1", "v2")) or tensor.encoding != new.tensors[key].encoding:
            bound = 2 ** -10 * np.abs(before).max()  # a scale in f16, or a scale and a minimum
        else:
            bound = 0
        assert np.abs(after - before).max() <= bound


def test_the_golden_ids_are_those_of_the_notes(name: str, notes: dict[str, Any]) -> None:
    said = notes[name]["logits_numpy_float64"]
    assert GOLDENS[name]["prompt_ids"] == said["ids"]
    assert GOLDENS[name]["ids"] == said.get("greedy24", GOLDENS[name]["ids"])


def test_we_go_on_with_the_ids_of_llama_cpp(model: Model, name: str) -> None:
    """Also where a lead is small: then it is llama.cpp's ids that are gone on with."""
    golden = GOLDENS[name]
    prompt, ids = golden["prompt_ids"], golden["ids"]
    logits = model.logits([*prompt, *ids[:-1]])[len(prompt) - 1:]
    assert np.abs(logits[0][:len(golden["logits"])] - golden["logits"]).max() <= FROM_LLAMA_CPP * np.ptp(logits[0])
    behind = logits.max(axis=1) - logits[np.arange(len(logits)), ids]
    assert behind.max() <= (TIE if golden["smallest_lead"] < TIE else 0)
    if golden["smallest_lead"] >= TIE:
        request = Request(tuple(prompt), len(ids), Sampling(temperature=0))
        assert list(model.engine.run(model.engine.submit(request))) == ids
