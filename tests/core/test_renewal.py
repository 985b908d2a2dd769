"""Converting what nobody quantizes so any more: each weight gets a type of today's that the writer has, and what that
costs is said."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, Provenance
from bestiary.convert import convert, recipe_for
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.loader import Loader, Writer
from bestiary.recode import Rounding
from bestiary.renewal import renewed, successors
from bestiary.saving import save_as
from bestiary.tensor import BlockTensor, Tensor
from bestiary.testing import HostWith
from bestiary.testing.tiny import make_model
from bestiary_plugins.encodings import ENCODINGS, OF_SPRING_2023
from bestiary_plugins.loaders.gguf_writer import GgufWriter

BECOMES = {"q4_0_v1": "q4_0", "q4_0_v2": "q4_0", "q4_1_v1": "q4_1", "q4_1_v2": "q4_1", "q4_2": "q8_0", "q4_3": "q8_0",
           "q5_0_v1": "q5_0", "q5_1_v1": "q5_1", "q8_0_v1": "q8_0"}
EXACT = ("q5_0_v1", "q5_1_v1")
CODE_BY_CODE = {name for name in BECOMES if name not in ("q4_2", "q4_3")}
ASSUMED = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 1, "max_position_embeddings": 2048}


def old_rows(encoding: Encoding, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random codes, their scales and minimums such as weights have."""
    layout = encoding.layout
    assert layout is not None
    random, size = np.random.default_rng(seed), encoding.block_bytes[0]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // encoding.block_size, size), np.uint8)
    kind = np.dtype(np.float32 if layout.scale.number == "f32" else np.float16)
    count = 1 + (layout.minimum is not None)
    signs = np.where(random.random((len(blocks), count)) < 0.5, -1, 1) if layout.offset or layout.signed else [1, -8]
    values = (random.uniform(0.002, 0.004, (len(blocks), count)) * signs[:count]).astype(kind)
    blocks[:, :count * kind.itemsize] = np.ascontiguousarray(values).view(np.uint8)
    return BlockTensor(blocks, shape, encoding)


class Spring(Loader):
    """Reads a file that names an encoding: a tiny model, its matrices in that. What a plugin for old files does."""

    name, encodings = "spring", OF_SPRING_2023

    def recognise(self, path: Path) -> int:
        return 100 if path.suffix == ".spring" else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return made(ENCODINGS[path.read_text()])


def made(encoding: Encoding) -> Checkpoint:
    family = Host().architectures["llama"]
    given = make_model(family, {**family.example_config(), "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
                                "num_attention_heads": 4, "num_key_value_heads": 2,
                                "tie_word_embeddings": False}).checkpoint
    tensors = {name: old_rows(encoding, tensor.shape, seed) if len(tensor.shape) == 2 else tensor
               for seed, (name, tensor) in enumerate(given.tensors.items())}
    return given.having(tensors=tensors, provenance=Provenance("a program", "spring", "a box", ASSUMED))


@pytest.fixture(scope="module")
def spring() -> Host:
    return HostWith("loaders", Spring())


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "old.spring"
    path.write_text(request.param if hasattr(request, "param") else "q4_0_v1")
    return path


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("old", BECOMES, indirect=True)
def test_an_old_file_is_converted_to_types_that_every_program_reads(
        spring: Host, old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = old.read_text()
    with caplog.at_level(logging.WARNING, "bestiary"):
        saved = save_as(old, tmp_path / "new.gguf", None, spring)
    assert set(saved.types) == {BECOMES[kind], "f32"}
    before, after = made(ENCODINGS[kind]), Host().open(tmp_path / "new.gguf")
    matrices = [name for name, tensor in before.tensors.items() if len(tensor.shape) == 2]
    for name in matrices:
        found, wanted = after.tensors[name].array(), before.tensors[name].array()
        if kind in EXACT:
            np.testing.assert_array_equal(found, wanted)
        elif kind in CODE_BY_CODE:
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2 ** -11 * 0.512)  # of a scale and 128 codes
            if "_0" in kind:
                np.testing.assert_allclose(found, wanted, rtol=2 ** -11 * 1.01)
        else:  # the largest weight of two groups, in 127 steps, half of one; and its scale is rounded
            np.testing.assert_allclose(found, wanted, rtol=0, atol=np.abs(wanted).max() * (0.5 / 127 + 2 ** -10))
    how = "code by code" if kind in CODE_BY_CODE else "by value: "
    assert any(line.startswith(f"{len(matrices)} tensors of {kind} become {BECOMES[kind]}, {how}")
               for line in lines(caplog))
    counted = [line for line in lines(caplog) if "scales and minimums were rounded, by at most 0.0" in line]
    assert len(counted) == (ENCODINGS[kind].layout.scale.number == "f32")  # type: ignore[union-attr]


def test_what_is_named_after_its_type_is_named_after_the_new_one(spring: Host, old: Path) -> None:
    assert save_as(old, None, None, spring).path.name == "ggml-model-q4_0.gguf"


def test_a_type_that_is_asked_for_and_holds_the_codes_needs_no_leave(spring: Host, old: Path, tmp_path: Path,
                                                                      ) -> None:
    """The output matrix too, which is kept in a larger type where it is quantized anew."""
    assert set(save_as(old, tmp_path / "a.gguf", "q4_0", spring).types) == {"q4_0", "f32"}
    assert set(save_as(old, tmp_path / "b.gguf", "q8_0", spring).types) == {"q8_0", "f32"}
    one, two = (Host().open(tmp_path / name).tensors["output.weight"].array() for name in ("a.gguf", "b.gguf"))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(BestiaryError, match="from q4_0_v1 to q4_1.*--allow-requantize"):
        save_as(old, tmp_path / "c.gguf", "q4_1", spring)
    assert not (tmp_path / "c.gguf").exists()


@pytest.mark.parametrize("old", ["q4_3"], indirect=True)
def test_a_type_that_has_no_room_needs_leave_as_ever(spring: Host, old: Path, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="--allow-requantize"):
        save_as(old, tmp_path / "a.gguf", "q5_1", spring)
    save_as(old, tmp_path / "a.gguf", "f16", spring)
    assert set(save_as(old, tmp_path / "b.gguf", "q5_1", spring, requantize=True).types) == {"q5_1", "q8_0", "f32"}


def test_a_view_of_today_pickles_as_its_source_does(spring: Host, old: Path) -> None:
    checkpoint = spring.open(old)
    canonical, _ = to_canonical(checkpoint, spring.architecture_of(checkpoint.config, checkpoint.tokenizer))
    view = renewed(canonical, GgufWriter(), spring, Rounding())
    assert view.source is not None and view.source[1] == (canonical,)
    again = view.source[0](*view.source[1])
    for name, tensor in view.tensors.items():
        np.testing.assert_array_equal(again.tensors[name].read(0, tensor.rows), tensor.read(0, tensor.rows))
    pickle.dumps(view.source[0])


class Keeper(GgufWriter):
    """Keeps whatever it is given."""

    def holds(self, encoding: Encoding) -> bool:
        return True


class Elsewhere(GgufWriter):
    """Has a type for nothing that anybody quantizes."""

    def holds(self, encoding: Encoding) -> bool:
        return False


class Faulty(GgufWriter):
    """Cannot say what it holds."""

    def holds(self, encoding: Encoding) -> bool:
        raise BestiaryError("it is asked")


def canonical_of(encoding: Encoding, shape: tuple[int, int] = (4, 64)) -> Checkpoint:
    return Checkpoint(Path("x"), {}, {"x.weight": old_rows(encoding, shape)}, CANONICAL)


def chosen(spring: Host, writer: Writer, checkpoint: Checkpoint) -> Mapping[str, str]:
    return {name: quantizer.name for name, quantizer in successors(checkpoint, writer, spring).items()}


def test_a_writer_that_holds_an_encoding_gets_it_as_it_is(spring: Host) -> None:
    assert Writer.holds(GgufWriter(), ENCODINGS["q4_2"])  # what a writer says that says nothing
    assert chosen(spring, Keeper(), canonical_of(ENCODINGS["q4_2"])) == {}
    assert chosen(spring, GgufWriter(), canonical_of(ENCODINGS["q4_2"])) == {"x.weight": "q8_0"}


def test_an_encoding_that_a_quantizer_writes_or_only_its_file_knows_stays(spring: Host) -> None:
    """A foreign encoding is stored by its layout: a third party's with its quantizer here, or without."""
    q4_2 = ENCODINGS["q4_2"]
    foreign = Encoding("foreign", 16, (10,), q4_2.layout)
    assert chosen(spring, GgufWriter(), canonical_of(foreign)) == {}
    assert chosen(spring, Elsewhere(), canonical_of(ENCODINGS["q4_0"])) == {}
    assert chosen(spring, GgufWriter(), canonical_of(ENCODINGS["q4_k"], (4, 256))) == {}


def test_a_writer_is_asked_only_where_something_is_old(spring: Host) -> None:
    assert chosen(spring, Faulty(), canonical_of(ENCODINGS["q4_0"])) == {}
    with pytest.raises(BestiaryError, match="it is asked"):
        chosen(spring, Faulty(), canonical_of(ENCODINGS["q4_0_v1"]))


def test_rows_that_blocks_of_today_do_not_divide_become_plain(spring: Host) -> None:
    assert chosen(spring, GgufWriter(), canonical_of(ENCODINGS["q4_2"], (4, 48))) == {"x.weight": "f16"}


def test_where_nothing_can_take_its_place_that_is_said(spring: Host) -> None:
    with pytest.raises(BestiaryError, match="x.weight is q4_2, .*no type for.*--outtype f32"):
        chosen(spring, Elsewhere(), canonical_of(ENCODINGS["q4_2"]))


def test_a_weight_whose_codes_are_held_is_not_quantized_while_loading(host: Host) -> None:
    family = host.architectures["llama"]
    _, graph = to_canonical(made(ENCODINGS["q4_0_v1"]), family)
    old = made(ENCODINGS["q4_0_v1"])
    view = convert(old, graph, recipe_for(host.quantizers["q8_0"]), host)
    assert {tensor.encoding.name for tensor in view.tensors.values()} == {"q8_0", "f32"}
    np.testing.assert_allclose(view.tensors["output.weight"].array(), old.tensors["output.weight"].array(),
                               rtol=2 ** -11 * 1.01)


def test_a_scale_beyond_f16_leaves_no_file(spring: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old file may have scales in f32 that no type of today has."""
    path = tmp_path / "old.spring"
    path.write_text("q8_0_v1")
    huge = old_rows(ENCODINGS["q8_0_v1"], (64, 64))
    huge.read(0, 64)[3, :4] = np.array([1e6], np.float32).view(np.uint8)
    whole = made(ENCODINGS["q8_0_v1"])
    name = next(name for name, tensor in whole.tensors.items() if tensor.shape == (64, 64))
    monkeypatch.setattr(Spring, "open", lambda *_: whole.having(tensors={**whole.tensors, name: huge}))
    with pytest.raises(BestiaryError, match=f"tensor {name}: .* of 1e.06 is beyond .*--outtype f32"):
        save_as(path, tmp_path / "new.gguf", None, spring)
    assert not (tmp_path / "new.gguf").exists()
    save_as(path, tmp_path / "new.gguf", "f32", spring)
    np.testing.assert_array_equal(Host().open(tmp_path / "new.gguf").tensors[name].array(), huge.array())


def test_what_the_file_does_not_say_is_said_in_a_line(spring: Host, old: Path, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bestiary"):
        save_as(old, tmp_path / "a.gguf", None, spring)
    (line,) = [line for line in lines(caplog) if "not in" in line]
    assert line == (f"not in {made(ENCODINGS['q4_0_v1']).path}, and taken: rms_norm_eps = 1e-06, rope_theta = 10000.0, "
                    "bos_token_id = 1, max_position_embeddings = 2048; `convert --config KEY=VALUE` sets another")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bestiary"):
        save_as(old, tmp_path / "b.gguf", None, spring, context=512,
                config={"rms_norm_eps": 1e-5, "rope_theta": 20000, "bos_token_id": 2})
    assert not [line for line in lines(caplog) if "not in" in line]
    config = Host().open(tmp_path / "b.gguf").config
    assert config["bos_token_id"] == 2
    assert (config["rms_norm_eps"], config["rope_theta"], config["max_position_embeddings"]) == (1e-5, 20000, 512)


@pytest.mark.parametrize("config, said", [
    ({"no_such_key": 1}, "'no_such_key' is no key of this config; known: .*rms_norm_eps"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' in the config; it must be a number"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True in the config"),
    ({"bos_token_id": -1}, "bos_token_id = -1 in the config"),
    ({"vocab_size": 3}, "has shape .*; the config asks for"),
    ({"model_type": "unicorn"}, "unknown architecture 'unicorn'")])
def test_a_value_that_cannot_be_taken_is_refused(spring: Host, old: Path, tmp_path: Path, config: dict[str, Any],
                                                 said: str) -> None:
    with pytest.raises(BestiaryError, match=said):
        save_as(old, tmp_path / "a.gguf", None, spring, config=config)
    assert not (tmp_path / "a.gguf").exists()
