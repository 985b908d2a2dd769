"""Models of random blocks of each of ggml's types run here as they do in llama.cpp, and so do mixes of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.host import Host, HostSettings
from bestiary.saving import save_as
from bestiary_plugins.encodings import ENCODINGS
from bestiary_plugins.loaders.gguf_types import TENSOR_TYPES
from tests.goldens.random_blocks import TYPES, save_blocks

# Made by scripts/make_goldens_ggml_types.py.
GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / "ggml_types.json").read_text())
MODELS: list[dict[str, Any]] = GOLDENS["models"]
BACKENDS = Host(HostSettings(names=())).backends.names
BOUND = {"rms": 0.02, "most": 0.06, "clear": 0.08}
"""Over the spread of the logits: llama.cpp rounds what it multiplies the weights with to 8 bits, in one scale for up to
256 numbers. Logits of other weights are 0.2 away."""
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_model = pytest.mark.parametrize("golden", MODELS, ids=lambda golden: "-".join(golden["types"]))


def check_backend(backend: str, host: Host) -> None:
    if reason := host.backends[backend].available():
        pytest.skip(f"backend {backend}: {reason}")


@each_backend
@each_model
def test_the_logits_are_those_of_llama_cpp(golden: dict[str, Any], backend: str, host: Host, tmp_path: Path) -> None:
    check_backend(backend, host)
    assert save_blocks(tuple(golden["types"]), host, tmp_path / "model.gguf") == golden["sha256"]
    with bestiary.load(tmp_path / "model.gguf", backend, context=64, host=host) as model:
        logits = model.logits(GOLDENS["ids"])
    differences = (logits[-1] - np.array(golden["last"])) / golden["spread"]
    assert np.sqrt(np.square(differences).mean()) < BOUND["rms"]
    assert np.abs(differences).max() < BOUND["most"]
    clear = np.array(golden["lead"]) > BOUND["clear"]
    assert clear.sum() >= 5
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], np.array(golden["likeliest"])[clear])


def test_every_type_of_today_that_a_layout_or_a_decoder_says_is_there() -> None:
    old = {"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1"}  # compared with llama.cpp elsewhere
    assert {name for golden in MODELS for name in golden["types"]} == set(TYPES)
    assert set(TYPES) == {kind.name for kind in TENSOR_TYPES.values()} & set(ENCODINGS) - old


def test_what_is_decoded_while_loading_is_said_once_a_type(host: Host, tmp_path: Path,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    check_backend("cpu", host)
    save_blocks(("iq2_xs", "q2_k", "iq3_s", "iq4_xs", "tq2_0"), host, tmp_path / "model.gguf")
    with caplog.at_level(logging.WARNING, "bestiary"), bestiary.load(tmp_path / "model.gguf", "cpu", host=host):
        said = [record.message for record in caplog.records if "kept as" in record.message]
    assert sorted(said) == [
        f"the cpu backend's kernels do not hold {name} (there is code to decode it, and none to multiply with it): "
        f"such weights are decoded and kept as {kept}"
        for name, kept in (("iq2_xs", "bf16 and q8_0"), ("iq3_s", "q8_0"))]


@each_backend
def test_a_mix_keeps_its_types_and_its_logits_when_it_is_converted(backend: str, host: Host, tmp_path: Path) -> None:
    check_backend(backend, host)
    mix = ("iq3_xxs", "q3_k", "mxfp4", "iq1_s", "q6_k")
    save_blocks(mix, host, tmp_path / "one.gguf")
    saved = save_as(tmp_path / "one.gguf", tmp_path / "two.gguf", None, host)
    assert set(saved.types) == {*mix, "f32"}
    found = []
    for name in ("one.gguf", "two.gguf"):
        with bestiary.load(tmp_path / name, backend, context=64, host=host) as model:
            found.append(model.logits(GOLDENS["ids"]))
    np.testing.assert_array_equal(*found)
