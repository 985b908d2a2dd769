"""Files of mixed types that llama.cpp wrote: their weights and logits are what the notes beside them say, however they
are converted, and they are quantized again only with leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.canonical import to_canonical
from bestiary.engine import Request
from bestiary.errors import BestiaryError
from bestiary.host import Host, HostSettings
from bestiary.inspection import inspect
from bestiary.model import Model
from bestiary.perplexity import perplexity
from bestiary.sampling import Sampling
from bestiary.saving import save_as
from tests.goldens.test_legacy_models import EXACT, FROM_WEIGHTS, sum_of

FILES = ("rnd-gguf3-q3_k_m.gguf", "rnd-gguf3-iq4_nl.gguf")
BACKENDS = Host(HostSettings(names=())).backends.names
FORMS = ("as it is", "converted", "folder of f32")


@pytest.fixture(scope="module", params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def notes(data: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / "legacy-models" / "expected.json").read_text())["files"][name]
    return found


@pytest.fixture(scope="module", params=FORMS)
def path(request: pytest.FixtureRequest, name: str, data: Path, host: Host,
         tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, the same converted in its own types, and decoded to a folder as Hugging Face has it."""
    source = data / "legacy-models" / name
    if request.param == "as it is":
        return source
    path = tmp_path_factory.mktemp("legacy")
    if request.param == "converted":
        save_as(source, path / "x.gguf", None, host)
        return path / "x.gguf"
    save_as(source, path / "folder", "f32", host, format="huggingface")
    return path / "folder"


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, path: Path, host: Host) -> Iterator[Model]:
    if reason := host.backends[request.param].available():
        pytest.skip(f"backend {request.param}: {reason}")
    with bestiary.load(path, backend=request.param, host=host, cache_type_k="f32", cache_type_v="f32") as model:
        yield model


def test_the_weights_are_those_of_the_notes(path: Path, notes: dict[str, Any], host: Host) -> None:
    checkpoint = host.open(path)
    canonical, _ = to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))
    assert len(canonical.tensors) == notes["n_tensors"]
    assert sum_of(canonical) == notes["all_tensors_sha256_f32"]
    for name, tensor in notes["tensors"].items():
        values = canonical.tensors[name].array()
        np.testing.assert_array_equal(values[0, :8], np.array(tensor["row0_first8"], np.float32))
        np.testing.assert_array_equal(values[-1, -8:], np.array(tensor["lastrow_last8"], np.float32))


def test_the_logits_are_those_of_the_notes(model: Model, notes: dict[str, Any]) -> None:
    wanted = notes["logits_numpy_float64"]
    logits = model.logits(wanted["ids"])
    assert logits.argmax(axis=1).tolist() == wanted["argmax_per_position"]
    top = {**dict(wanted["last_position_top8"]), **dict(enumerate(wanted["last_position_ids_259_to_274"], 259))}
    difference = np.abs(logits[-1][list(top)] - np.array(list(top.values()))).max()
    assert difference <= FROM_WEIGHTS.get(model.backend.name, 1e-2) * np.ptp(logits)


def test_greedy_ids_are_those_of_llama_cpp_or_as_likely(model: Model, notes: dict[str, Any]) -> None:
    """Its logits are off by what the notes say; random weights have ids that lead by less."""
    run = next(check for check in notes["crosschecked"] if "program_greedy_ids" in check)
    ids, wanted = notes["logits_numpy_float64"]["ids"], run["program_greedy_ids"]
    logits = model.logits([*ids, *wanted[:-1]])[len(ids) - 1:]
    behind = logits.max(axis=1) - logits[np.arange(len(wanted)), wanted]
    if model.backend.name not in EXACT:  # it rounds activations, and decodes what its kernels do not hold
        assert behind.max() <= run["max_abs_diff"] + 0.02 * np.ptp(logits)
        return
    assert behind.max() <= run["max_abs_diff"]
    request = Request(tuple(ids), 20, Sampling(temperature=0))
    assert list(model.engine.run(model.engine.submit(request))) == wanted[:20]


def test_the_types_are_those_of_the_notes_and_stay_so(name: str, notes: dict[str, Any], data: Path, host: Host,
                                                      tmp_path: Path) -> None:
    wanted = {kind.lower(): count for kind, count in notes["types"].items()}
    source = data / "legacy-models" / name
    saved = save_as(source, tmp_path / "x.gguf", None, host)
    for path in (source, tmp_path / "x.gguf"):
        facts = inspect(path, host)
        assert {kind: entry["tensors"] for kind, entry in facts["types"].items()} == wanted
        assert facts["problems"] == []
    assert {kind: entry["tensors"] for kind, entry in saved.types.items()} == wanted


def test_what_is_quantized_is_quantized_again_only_with_leave(name: str, data: Path, host: Host,
                                                              tmp_path: Path) -> None:
    source = data / "legacy-models" / name
    first = "q3_k" if "q3" in name else "iq4_nl"
    with pytest.raises(BestiaryError, match=f"quantized already: token_embd.weight from {first} to q8_0 and 15 more.*"
                                            "or say --allow-requantize"):
        save_as(source, tmp_path / "x.gguf", "q8_0", host)
    assert not (tmp_path / "x.gguf").exists()
    save_as(source, tmp_path / "x.gguf", "q8_0", host, requantize=True)
    assert set(inspect(tmp_path / "x.gguf", host)["types"]) == {"q8_0", "f32"}


def test_a_folder_is_refused_what_it_cannot_hold(data: Path, host: Host, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="is q3_k, and a Hugging Face folder holds f32, f16, bf16 only: --outtype"):
        save_as(data / "legacy-models" / FILES[0], tmp_path / "folder", None, host, format="huggingface")


def test_the_backends_agree_on_the_perplexity(name: str, data: Path, host: Host) -> None:
    if reason := host.backends["cpu"].available():
        pytest.skip(f"backend cpu: {reason}")
    text = "It was the best of times, it was the worst of times, it was the age of wisdom, " * 8
    found = []
    for backend in ("numpy", "cpu"):
        with bestiary.load(data / "legacy-models" / name, backend, context=64, host=host) as model:
            found.append(perplexity(model, text).perplexity)
    assert found[0] > 1
    assert abs(found[1] / found[0] - 1) < 0.01
