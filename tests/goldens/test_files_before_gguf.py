"""LLaMA files of March to August 2023, each written by the program of its time: their numbers, weights, logits and ids
are what the notes beside them say, and converted they give the same ids in today's llama.cpp."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.checkpoint import Checkpoint
from bestiary.engine import Request
from bestiary.host import Host, HostSettings
from bestiary.model import Model
from bestiary.sampling import Sampling
from bestiary.saving import save_as
from bestiary_plugins.loaders.ggml_llama_file import open_part

# Made by scripts/make_goldens_legacy_models.py.
GOLDENS: dict[str, dict[str, Any]] = {golden["file"]: golden for golden in json.loads(
    (Path(__file__).parent / "before_gguf.json").read_text())["generations"]}
BACKENDS = Host(HostSettings(names=())).backends.names
EPS = 1e-5
"""What the notes compute with; the files do not say it, and 1e-6 is taken for it."""
FROM_WEIGHTS = {"numpy": 1e-4, "cpu": 1e-2}
"""How far from float64 arithmetic with the same weights; the cpu backend rounds what it multiplies them with."""
CLOSE = {"numpy": 0.01, "cpu": 0.15}
"""Leads below this may be decided otherwise."""
TYPES = {
    ("ggml", "Q4_0"): "q4_0_v1", ("ggml", "Q4_1"): "q4_1_v1", ("ggmf", "Q4_0"): "q4_0_v1",
    ("ggjt1", "Q4_0"): "q4_0_v1", ("ggjt1", "Q4_1"): "q4_1_v1", ("ggjt1", "Q5_0"): "q5_0_v1",
    ("ggjt1", "Q8_0"): "q8_0_v1", ("ggjt2", "Q4_0"): "q4_0_v2", ("ggjt2", "Q8_0"): "q8_0_v1"}
"""Encodings that are not called as today's types."""
CONTAINERS = {"ggml": "ggml without a version", "ggmf1": "ggmf v1", "ggjt1": "ggjt v1", "ggjt2": "ggjt v2",
              "ggjt3": "ggjt v3"}


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "legacy-models"


@pytest.fixture(scope="module")
def all_notes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return found


@pytest.fixture(scope="module", params=GOLDENS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def notes(name: str, all_notes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = all_notes["files"][name]
    return found


@pytest.fixture(scope="module")
def checkpoint(name: str, folder: Path, host: Host) -> Checkpoint:
    return host.open(folder / name)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, host: Host) -> str:
    if reason := host.backends[request.param].available():
        pytest.skip(f"backend {request.param}: {reason}")
    return str(request.param)


@pytest.fixture(scope="module")
def model(backend: str, name: str, folder: Path, host: Host) -> Iterator[Model]:
    with bestiary.load(folder / name, backend=backend, host=host, config={"rms_norm_eps": EPS}, cache_type_k="f32",
                       cache_type_v="f32") as model:
        yield model


def test_no_file_of_the_time_is_left_out(folder: Path) -> None:
    assert {path.name for path in folder.glob("*-gg[mj]*.bin") if path.name.startswith(("llama-", "rnd-"))} == set(
        GOLDENS)


def test_the_header_and_the_vocabulary_are_those_of_the_notes(name: str, folder: Path, checkpoint: Checkpoint,
                                                              notes: dict[str, Any]) -> None:
    part, wanted = open_part(folder / name), notes["hparams"]
    assert {key: getattr(part.head, key) for key in wanted} == wanted
    assert (checkpoint.config["hidden_size"], checkpoint.config["num_hidden_layers"]) == (
        wanted["n_embd"], wanted["n_layer"])
    spelled = b"".join(struct.pack("<I", len(piece)) + piece for piece in part.words.pieces)
    assert hashlib.sha256(spelled).hexdigest() == notes["vocab"]["sha256_len_prefixed"]
    for i, score in notes["vocab"].get("some_scores", {}).items():
        assert part.words.scores[int(i)] == score
    assert checkpoint.provenance is not None
    kind = name.split("-")[1]
    said = checkpoint.provenance.container
    assert said == CONTAINERS[kind] + ", rows in planes" * ("planar" in name) + ", in 2 files" * ("2part" in name)
    assert checkpoint.provenance.program == "llama.cpp"


def test_the_weights_are_those_of_the_notes(name: str, checkpoint: Checkpoint, notes: dict[str, Any]) -> None:
    whole = notes.get("joined", notes)
    total = hashlib.sha256()
    for key in sorted(checkpoint.tensors):
        values = checkpoint.tensors[key].array() + np.float32(0)  # the notes have no negative zeros
        total.update(values.astype("<f4").tobytes())
        if key in whole["tensors"]:
            wanted = whole["tensors"][key]
            assert list(values.shape) == wanted["shape"]
            assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == wanted["sha256_f32"]
            rows = {"row0_first8": values[0, :8], "row0_last8": values[0, -8:], "lastrow_first8": values[-1, :8],
                    "lastrow_last8": values[-1, -8:]}
            for place, found in rows.items():
                np.testing.assert_array_equal(found, np.array(wanted[place], np.float32))
            kind = name.split("-")[1]
            other = TYPES.get((kind if kind.startswith("ggjt") else kind[:4], wanted["type"]))
            assert checkpoint.tensors[key].encoding.name == (other or wanted["type"].lower())
    assert len(checkpoint.tensors) == notes["n_tensors"]
    assert total.hexdigest() == whole["all_tensors_sha256_f32"]


def test_the_logits_are_those_of_the_notes(model: Model, notes: dict[str, Any]) -> None:
    wanted = notes["logits_numpy_float64"]
    assert wanted["eps"] == EPS
    logits = model.logits(wanted["ids"])
    bound = FROM_WEIGHTS.get(model.backend.name, 1e-2) * np.ptp(logits)
    chosen = logits[np.arange(len(logits)), wanted["argmax_per_position"]]
    assert (logits.max(axis=1) - chosen).max() <= 2 * bound
    top = {**dict(wanted["last_position_top8"]), **dict(enumerate(wanted["last_position_ids_259_to_274"], 259))}
    assert np.abs(logits[-1][list(top)] - np.array(list(top.values()))).max() <= bound
    assert abs(logits.mean() - wanted["mean"]) <= bound
    assert abs(logits.std() - wanted["std"]) <= bound


def test_the_prompt_has_the_ids_of_the_notes(model: Model, all_notes: dict[str, Any]) -> None:
    ids, text = all_notes["prompt_ids_llama"], all_notes["prompt_text_llama"]
    assert model.tokenizer.encode(text, bos=True) == ids
    assert model.tokenizer.decode(ids).removeprefix("<s>").strip() == text


def test_the_greedy_text_is_that_of_the_notes(model: Model, name: str, notes: dict[str, Any],
                                              all_notes: dict[str, Any]) -> None:
    wanted = notes["logits_numpy_float64"]
    if "greedy24" not in wanted:  # a random model's leads are no leads
        assert name.startswith("rnd-")
        return
    prompt = all_notes["prompt_ids_llama"]
    check_greedy(model, prompt, wanted["greedy24"], wanted["greedy24_min_margin"])
    text = model.tokenizer.decode([*prompt, *wanted["greedy24"]])
    assert text.removeprefix("<s>").strip() == all_notes["prompt_text_llama"] + wanted["greedy24_text"]


def check_greedy(model: Model, prompt: list[int], ids: list[int], lead: float) -> None:
    """Generates the ids. Where the smallest lead of one is less than the backend's rounding, only that each of them is
    about the likeliest after those before it."""
    logits = model.logits([*prompt, *ids[:-1]])[len(prompt) - 1:]
    behind = logits.max(axis=1) - logits[np.arange(len(logits)), ids]
    close = CLOSE.get(model.backend.name, 0.15)
    assert behind.max() <= close * (lead < close)
    if lead >= close:
        request = Request(tuple(prompt), len(ids), Sampling(temperature=0))
        assert list(model.engine.run(model.engine.submit(request))) == ids


def test_converted_it_gives_the_ids_of_llama_cpp(name: str, backend: str, folder: Path, host: Host, tmp_path: Path,
                                                 notes: dict[str, Any]) -> None:
    golden, path = GOLDENS[name], tmp_path / "x.gguf"
    assert golden["ids"] == notes["logits_numpy_float64"].get("greedy24", golden["ids"])
    save_as(folder / name, path, "f16", host)
    with bestiary.load(path, backend=backend, host=host, cache_type_k="f32", cache_type_v="f32") as model:
        prompt = model.tokenizer.encode("Once upon a time, there was a little girl named Lily.", bos=True)
        assert prompt == golden["prompt_ids"]
        check_greedy(model, prompt, golden["ids"], golden["smallest_lead"])
