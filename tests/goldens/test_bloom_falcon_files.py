"""Files that bloomz.cpp and ggllm.cpp wrote: their vocabularies, weights and logits are what the notes beside them say,
and converted they say the same as in today's llama.cpp."""

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
from bestiary.files import DataFile
from bestiary.host import Host, HostSettings
from bestiary.model import Model
from bestiary.saving import save_as
from bestiary_plugins.loaders import bloomz_cpp, ggllm_cpp

# Made by scripts/make_goldens_bloom_falcon_files.py.
SAID: dict[str, Any] = json.loads((Path(__file__).parent / "bloom_falcon_files.json").read_text())
GOLDENS: dict[str, dict[str, Any]] = {golden["file"]: golden for golden in SAID["files"]}
BACKENDS = Host(HostSettings(names=())).backends.names
FROM_WEIGHTS = {"numpy": 1e-4, "cpu": 1e-2}
"""How far the logits may be from float64 arithmetic with the same weights, over their spread; the cpu backend rounds
what it multiplies quantized weights with."""
NEAR_TIE = {("falcon40-ggcc-q4_k.bin", "cpu"): 5}
"""A position at which the two likeliest ids are nearer than what a backend rounds away (0.0134)."""
UNROUNDED = {"bloom": "bloom-logits.json", "falcon7": "falcon7-logits.json", "falcon40": "falcon40-logits.json"}


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "legacy-models"


@pytest.fixture(scope="module", params=GOLDENS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def notes(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())["files"][name]
    return found


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, folder: Path, name: str, host: Host) -> Iterator[Model]:
    if reason := host.backends[request.param].available():
        pytest.skip(f"backend {request.param}: {reason}")
    with bestiary.load(folder / name, backend=request.param, host=host, cache_type_k="f32",
                       cache_type_v="f32") as model:
        yield model


def test_the_vocabulary_and_the_merges_are_those_of_the_notes(folder: Path, name: str, notes: dict[str, Any]) -> None:
    file = DataFile(folder / name)
    if name.startswith("bloom"):
        numbers = bloomz_cpp.read_numbers(file)
        assert numbers is not None
        pieces, merges = bloomz_cpp.read_pieces(file, numbers)[0], None
    else:
        head = ggllm_cpp.read_head(file)
        assert head is not None
        pieces, merges = head.pieces, head.merges
    assert len(pieces) == notes["vocab"]["n"]
    joined = b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)
    assert hashlib.sha256(joined).hexdigest() == notes["vocab"]["sha256_len_prefixed"]
    assert {i: pieces[int(i)].hex() for i in notes["vocab"]["some_hex"]} == notes["vocab"]["some_hex"]
    if "merges" in notes:
        assert merges is not None
        assert len(merges) == notes["merges"]["n"]
        assert [merge.split(" ") for merge in (*merges[:3], merges[-1])] == [
            *notes["merges"]["first3"], notes["merges"]["last"]]
    else:
        assert merges is None


def test_the_weights_are_those_of_the_notes(folder: Path, name: str, notes: dict[str, Any], host: Host) -> None:
    """Negative zeros count as zeros."""
    checkpoint = host.open(folder / name)
    assert len(checkpoint.tensors) == notes["n_tensors"]
    values = {key: tensor.array() + np.float32(0) for key, tensor in checkpoint.tensors.items()}
    total = hashlib.sha256(b"".join(values[key].astype("<f4").tobytes() for key in sorted(values)))
    assert total.hexdigest() == notes["all_tensors_sha256_f32"]
    assert len(notes["tensors"]) >= 3
    for key, wanted in notes["tensors"].items():
        assert list(checkpoint.tensors[key].shape) == wanted["shape"]
        assert hashlib.sha256(values[key].astype("<f4").tobytes()).hexdigest() == wanted["sha256_f32"]
        assert np.atleast_2d(values[key])[0, :8].tolist() == wanted["row0_first8"]
        assert np.atleast_2d(values[key])[0, -8:].tolist() == wanted["row0_last8"]


def test_the_logits_are_those_of_the_notes(model: Model, name: str, notes: dict[str, Any]) -> None:
    wanted = notes["logits_numpy_float64"]
    logits = model.logits(wanted["ids"])
    differing = np.flatnonzero(logits.argmax(axis=1) != wanted["argmax_per_position"])
    assert set(differing) <= {NEAR_TIE.get((name, model.backend.name))}
    top = {**dict(wanted["last_position_top8"]), **dict(enumerate(wanted["last_position_ids_259_to_274"], 259))}
    difference = np.abs(logits[-1][list(top)] - np.array(list(top.values()))).max()
    assert difference <= FROM_WEIGHTS.get(model.backend.name, 1e-2) * np.ptp(logits)


def test_the_logits_are_as_near_those_of_the_unrounded_model_as_the_notes_say(model: Model, name: str, folder: Path,
                                                                              notes: dict[str, Any]) -> None:
    wanted = json.loads((folder / UNROUNDED[name.split("-")[0]]).read_text())
    assert wanted["ids"] == notes["logits_numpy_float64"]["ids"]
    logits = model.logits(wanted["ids"])
    said = next(each["max_abs_diff"] for each in notes["crosschecked"] if "unquantized weights" in each["how"])
    rounded = FROM_WEIGHTS.get(model.backend.name, 1e-2) * np.ptp(logits)
    assert np.abs(logits - np.array(wanted["logits"])).max() <= said + rounded


@pytest.fixture(scope="module")
def converted(name: str, folder: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "x.gguf"
    save_as(folder / name, path, "f16", host)
    return path


def test_the_converted_file_speaks_the_ids_of_the_old_one_and_of_llama_cpp(folder: Path, name: str, converted: Path,
                                                                           host: Host) -> None:
    ours, again = bestiary.load_tokenizer(folder / name, host), bestiary.load_tokenizer(converted, host)
    for text, ids in zip(SAID["texts"], GOLDENS[name]["texts"], strict=True):
        assert ours.encode(text, bos=True) == again.encode(text, bos=True) == ids
    assert [ours.piece(i) for i in range(ours.size)] == [again.piece(i) for i in range(ours.size)]
    assert (ours.bos, ours.eos, ours.ends, ours.add_bos) == (again.bos, again.eos, again.ends, again.add_bos)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_converted_file_goes_on_as_in_llama_cpp(name: str, converted: Path, backend: str, host: Host) -> None:
    """Each id given all before it; one that leads by less than a backend rounds away may be another's."""
    golden = GOLDENS[name]
    with bestiary.load(converted, backend=backend, host=host, cache_type_k="f32", cache_type_v="f32") as model:
        logits = model.logits([*golden["texts"][0], *golden["ids"][:-1]])[len(golden["texts"][0]) - 1:]
    behind = logits.max(axis=1) - logits[np.arange(len(logits)), golden["ids"]]
    assert behind.max() <= 0.005 * (golden["smallest_lead"] < 0.01)
