"""Hugging Face folders: whole and sharded weights, and folders in which something is missing or hostile."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary_plugins.loaders.huggingface import MOST_LISTED, HuggingFace, open_huggingface, plain_name

CONFIG = {"model_type": "llama", "hidden_size": 8}
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def arrays() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {"model.norm.weight": rng.standard_normal(8).astype(np.float32),
            "lm_head.weight": rng.standard_normal((5, 8)).astype(np.float32),
            "model.layers.0.self_attn.rotary_emb.inv_freq": rng.standard_normal(4).astype(np.float32)}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(arrays(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    given = arrays()
    places = {name: SHARDS[i > 0] for i, name in enumerate(given)}
    for shard in SHARDS:
        save_file({name: given[name] for name in given if places[name] == shard}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return tmp_path


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_folder_is_read_and_pickles(kind: str, request: pytest.FixtureRequest, host: Host) -> None:
    folder = request.getfixturevalue(kind)
    assert HuggingFace().recognise(folder) == 90
    opened = HuggingFace().open(folder, host)
    assert len(pickle.dumps(opened)) < 500
    for checkpoint in (opened, pickle.loads(pickle.dumps(opened))):
        assert (checkpoint.config, checkpoint.naming) == (CONFIG, "huggingface")
        assert checkpoint.tensors.keys() == arrays().keys()
        for name, expected in arrays().items():
            assert np.array_equal(checkpoint.tensors[name].array(), expected)


def test_a_weights_file_that_is_named_brings_its_folder(single: Path) -> None:
    checkpoint = open_huggingface(single / "model.safetensors")
    assert checkpoint.tensors.keys() == arrays().keys()
    assert HuggingFace().recognise(single / "model.safetensors") > 50


def test_a_shard_that_is_named_brings_the_others(sharded: Path) -> None:
    assert open_huggingface(sharded / SHARDS[1]).tensors.keys() == arrays().keys()


def test_a_folder_without_config_is_refused(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(BestiaryError, match=f"no config.json in {single}"):
        open_huggingface(single)
    assert HuggingFace().recognise(single) > 0


@pytest.mark.parametrize(("text", "message"), [
    (b"", "cannot be read as JSON"), (b"{", "cannot be read as JSON"), (b"[]", "holds an array"),
    (b"\xff\xfe\x00", "UTF|JSON"),
    (b'{"a": 1, "a": 2}', "'a' stands there twice"), (b'{"a":' * 100_000, "nests too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read as JSON"), (b'{"a": "\\udc00"}', "half a character")])
def test_a_config_that_is_no_json_is_refused(single: Path, text: bytes, message: str) -> None:
    (single / "config.json").write_bytes(text)
    with pytest.raises(BestiaryError, match=message) as caught:
        open_huggingface(single)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantized_folder_of_no_known_method_is_refused(single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "quip"}}))
    with pytest.raises(BestiaryError, match="quantization_config: quant_method = 'quip' is not read; known: gptq"):
        open_huggingface(single)
    (single / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    assert open_huggingface(single).tensors


def test_odd_numbers_in_a_config_do_no_harm(single: Path) -> None:
    (single / "config.json").write_text('{"a": NaN, "b": -Infinity, "c": 1e999, "d": 99999999999999999999999}')
    assert open_huggingface(single).config["d"] == 99999999999999999999999


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(BestiaryError, match=f"shard {SHARDS[1]} is missing"):
        open_huggingface(sharded)


def test_a_tensor_that_its_shard_does_not_hold_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lost.weight"] = SHARDS[0]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BestiaryError, match=f"lists tensor lost.weight in {SHARDS[0]}, which does not hold it"):
        open_huggingface(sharded)


def test_a_pointer_in_place_of_a_shard_is_said_in_words(sharded: Path) -> None:
    (sharded / SHARDS[0]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BestiaryError, match=f"{SHARDS[0]} is a Git LFS pointer"):
        open_huggingface(sharded)


NAMES = ["../x.safetensors", "..\\x.safetensors", "/etc/passwd", "a/b.safetensors", "C:x", "..", ".", "", "a\0b",
         "a\nb", "x" * 300, ".hidden", 5, None, ["x"], {"x": 1}, "a\u202eb"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_shard_outside_the_folder_is_refused(sharded: Path, name: Any) -> None:
    assert not plain_name(name)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BestiaryError, match="puts tensor model.norm.weight into .*, which is no plain file name"):
        open_huggingface(sharded)


INDICES: list[dict[str, Any]] = [{}, {"weight_map": {}}, {"weight_map": 5}, {"weight_map": ["x"]}, {"weight_map": None}]


@pytest.mark.parametrize("index", INDICES)
def test_an_index_without_a_map_is_refused(sharded: Path, index: dict[str, Any]) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BestiaryError, match="has no weight_map"):
        open_huggingface(sharded)


def test_other_weights_are_named(single: Path) -> None:
    (single / "model.safetensors").rename(single / "flax_model.msgpack")
    with pytest.raises(BestiaryError, match=r"in flax_model.msgpack, which is not read; known: model.safetensors, pyt"):
        open_huggingface(single)
    (single / "flax_model.msgpack").unlink()
    with pytest.raises(BestiaryError, match="no weights in"):
        open_huggingface(single)


def test_what_is_no_such_folder_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is text")
    assert HuggingFace().recognise(tmp_path) == 0
    assert HuggingFace().recognise(tmp_path / "text") == 0
    assert HuggingFace().recognise(tmp_path / "nothing") == 0


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)],
                         ids=["pipe", "folder", "link to nothing"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_what_is_there_but_is_no_file_is_not_called_missing(single: Path, name: str, make: Any) -> None:
    (single / name).unlink(missing_ok=True)
    make(single / name)
    with pytest.raises(BestiaryError, match=f"{re.escape(str(single / name))}( is no regular|: )") as caught:
        open_huggingface(single)
    assert not str(caught.value).startswith("no ")


def test_an_index_of_more_tensors_than_make_sense_is_refused_before_it_is_parsed(sharded: Path) -> None:
    listed = {f"t{i}": f"model-{i}.safetensors" for i in range(MOST_LISTED + 2)}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(BestiaryError, match=f"up to {MOST_LISTED} are read"):
        open_huggingface(sharded)
