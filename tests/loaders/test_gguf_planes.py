"""Encodings that GGUF has no code for: written as planes of bytes with their layout, and read without their plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.discovery import Candidate
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.hookspecs import hookimpl
from bestiary.host import Host, HostSettings, _Plugin
from bestiary.layout_json import check_addresses
from bestiary.quantizer import Quantizer
from bestiary.registry import Origin
from bestiary.tensor import ArrayTensor, BlockTensor
from bestiary_plugins.loaders.gguf import PLANES_KEY, open_gguf
from bestiary_plugins.loaders.gguf_layout import describe, parse_encoding
from bestiary_plugins.loaders.gguf_writer import GgufWriter

# Four-bit codes into a codebook in one plane; in the other an f16 scale per 16 weights, and per 32 an f16 that two
# signed integers of four bits make the minimums of two groups.
TOY = Encoding("toy", 32, (16, 10), Layout(
    codes=(Bits(4, tuple(range(0, 128, 4)), 128),), group=16,
    scale=Factor("f16", Bits(16, (0, 16), 80, plane=1)), codebook=tuple(float(x) ** 3 for x in range(-8, 8)),
    minimum=Factor("f16", Bits(16, (32, 32), 80, plane=1), integer=(Bits(4, (64, 68), 80, plane=1),), bias=-2,
                   signed=True), minimum_sign=-1))
CONFIG = {"model_type": "llama", "hidden_size": 64}


def blocks(rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random rows whose f16 numbers are finite."""
    data = np.random.default_rng(seed).integers(0, 256, (rows, TOY.row_bytes(columns)), np.uint8)
    data[:, columns // 2:] &= 0xBF
    return data


def save(path: Path, host: Host) -> tuple[Path, BlockTensor]:
    tensor = BlockTensor(blocks(2 * 37, 96), (2, 37, 96), TOY)
    tensors = {"before": ArrayTensor(np.ones(5, np.float32)), "blk.0.ffn_up.weight": tensor,
               "after": ArrayTensor(np.ones((2, 5), np.float32))}
    GgufWriter().save(Checkpoint(path, CONFIG, tensors, CANONICAL), path, host)
    return path, tensor


def test_a_foreign_encoding_is_read_without_its_plugin(tmp_path: Path, host: Host) -> None:
    path, tensor = save(tmp_path / "x.gguf", host)
    again = open_gguf(path, host).tensors
    assert list(again) == ["before", "blk.0.ffn_up.weight", "after"]
    assert (again["blk.0.ffn_up.weight"].shape, again["blk.0.ffn_up.weight"].encoding) == (tensor.shape, TOY)
    assert np.array_equal(again["blk.0.ffn_up.weight"].read(5, 60), tensor.read(5, 60))
    assert np.array_equal(again["blk.0.ffn_up.weight"].array(), tensor.array())


def test_each_plane_is_a_tensor_of_bytes(tmp_path: Path, host: Host) -> None:
    path, tensor = save(tmp_path / "x.gguf", host)
    found = {entry.name: entry for entry in gguf.GGUFReader(path).tensors}
    assert list(found) == ["before", "blk.0.ffn_up.weight.plane0", "blk.0.ffn_up.weight.plane1", "after"]
    rows = tensor.read(0, tensor.rows)
    for name, plane in (("plane0", rows[:, :48]), ("plane1", rows[:, 48:])):
        entry = found[f"blk.0.ffn_up.weight.{name}"]
        assert entry.tensor_type.name == "I8"
        assert np.array_equal(np.asarray(entry.data).view(np.uint8).reshape(plane.shape), plane)


def test_a_description_is_read_as_it_was_written() -> None:
    assert parse_encoding("toy", json.loads(json.dumps(describe(TOY, {}))), {}) == TOY


def test_an_encoding_without_a_layout_cannot_be_written(tmp_path: Path, host: Host) -> None:
    secret = Encoding("secret", 2, (1,), decoder=lambda rows, columns: np.zeros((len(rows), columns), np.float32))
    made = Checkpoint(tmp_path, CONFIG, {"x": BlockTensor(np.zeros((2, 1), np.uint8), (2, 2), secret)}, CANONICAL)
    with pytest.raises(BestiaryError, match="secret has no GGUF type code and no layout"):
        GgufWriter().save(made, tmp_path / "x.gguf", host)


def decode_halves(rows: np.ndarray[Any, Any], columns: int) -> np.ndarray[Any, Any]:
    return rows.astype(np.float32) / 2


HALVES = Encoding("halves", 1, (1,), decoder=decode_halves)


class Halves(Quantizer):
    name, encoding = "halves", HALVES

    def quantize(self, rows: Any, importance: Any = None) -> Any:
        return np.clip(rows * 2, 0, 255).astype(np.uint8)


class Providing:
    @staticmethod
    @hookimpl
    def bestiary_quantizers() -> list[Quantizer]:
        return [Halves()]


def host_with_halves() -> Host:
    """A host with a plugin whose encoding has no layout."""
    host = Host(HostSettings(names=()))
    host._plugins.append(_Plugin(Candidate(Origin("halves", "halving", "2.1", "x"), lambda: Providing)))
    return host


def save_halves(path: Path) -> Path:
    tensor = BlockTensor(np.arange(12, dtype=np.uint8).reshape(3, 4), (3, 4), HALVES)
    GgufWriter().save(Checkpoint(path, CONFIG, {"x": tensor}, CANONICAL), path, host_with_halves())
    return path


def test_an_encoding_without_a_layout_is_read_where_its_plugin_is(tmp_path: Path) -> None:
    path = save_halves(tmp_path / "x.gguf")
    again = open_gguf(path, host_with_halves()).tensors["x"]
    assert again.encoding is HALVES and np.array_equal(again.array(), np.arange(12).reshape(3, 4) / 2)


def test_an_encoding_without_a_layout_says_whose_it_is_where_that_is_missing(tmp_path: Path, host: Host) -> None:
    path = save_halves(tmp_path / "x.gguf")
    with pytest.raises(BestiaryError) as caught:
        open_gguf(path, host)
    assert str(caught.value) == f"{path}: metadata {PLANES_KEY}: encoding halves has no layout, so only the plugin " \
                                "that wrote it can read it: 'halving 2.1', which is not installed here"


@pytest.mark.parametrize(("value", "message"), [
    ({"plugin": "halving 2.1", "block_bytes": [2]}, "not installed here"), ({"plugin": ["x"]}, "not installed here"),
    ({"plugin": "halving 2.1", "layout": {}}, "unknown field 'layout'"), ({}, "has no layout"),
    ({"plugin": None}, "has no layout"), ({"plugin": "x" * 5000}, "xxx.{0,20}, which is not installed here")])
def test_whose_an_encoding_is_may_be_hostile(value: dict[str, Any], message: str) -> None:
    known = host_with_halves().encodings
    with pytest.raises(BestiaryError, match=message):
        parse_encoding("other" if value.get("plugin") else "halves",
                       {"block_size": 1, "block_bytes": [1], **value}, known)


def test_plain_numbers_are_no_encoding_of_a_plugin(host: Host) -> None:
    with pytest.raises(BestiaryError, match="not installed here"):
        parse_encoding("f32", {"block_size": 1, "block_bytes": [4], "plugin": "bestiary"}, host.encodings)


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """The description with a field replaced, or or taken out where the value is "gone"."""
    result: Any = json.loads(json.dumps(describe(TOY, {})))
    at = result
    for step in path[:-1]:
        at = at[step]
    if value == "gone" and isinstance(at, dict):
        at.pop(path[-1], None)
    else:
        at[path[-1]] = value
    return result


HUGE: tuple[Any, ...] = (-1, 0, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 1e300, True, None, "x", [], {})
PATHS: list[tuple[Any, ...]] = [
    ("block_size",), ("block_bytes",), ("block_bytes", 0), ("layout",), ("layout", "codes"), ("layout", "codes", 0),
    ("layout", "codes", 0, "width"), ("layout", "codes", 0, "offsets"), ("layout", "codes", 0, "offsets", 3),
    ("layout", "codes", 0, "stride"), ("layout", "codes", 0, "plane"), ("layout", "group"), ("layout", "scale"),
    ("layout", "scale", "number"), ("layout", "scale", "at", "width"), ("layout", "scale", "at", "offsets", 0),
    ("layout", "scale", "at", "plane"), ("layout", "scale", "bias"), ("layout", "codebook"), ("layout", "codebook", 0),
    ("layout", "zero"), ("layout", "zero_bias"), ("layout", "minimum", "integer", 0, "width"),
    ("layout", "minimum", "at", "stride"), ("layout", "minimum_sign"), ("layout", "signed"), ("layout", "offset")]


@pytest.mark.parametrize("value", [*HUGE, float("nan"), "gone"], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_any_field_of_a_layout_may_be_hostile(path: tuple[Any, ...], value: Any) -> None:
    try:
        encoding = parse_encoding("toy", changed(path, value), {})
        check_addresses(encoding, 96)
        with np.errstate(all="ignore"):
            encoding.decode(np.zeros((3, encoding.row_bytes(96)), np.uint8), 96)
    except BestiaryError as error:
        assert "\n" not in str(error)


REFUSED = [(("layout", "codes", 0, "width"), 5, "reaches bit|do not fit|codebook of 32"),
           (("layout", "codes", 0, "width"), 0, "width is 0"),
           (("layout", "codes", 0, "width"), 17, "more than 16 bits"),
           (("layout", "codes", 0, "offsets", 31), 125, "reaches bit 385 of plane 0, which has 384"),
           (("layout", "codes", 0, "offsets", 31), -1, "offsets is -1"),
           (("layout", "codes", 0, "stride"), 129, "reaches bit 386"),
           (("layout", "codes", 0, "plane"), 2, "plane is 2; it must be an integer from 0 to 1"),
           (("layout", "group"), 7, "groups of 7 do not divide"),
           (("layout", "scale", "number"), "f64", "number is 'f64'; known: f32"),
           (("layout", "scale", "at", "width"), 15, "f16 has 16 bits, not 15"),
           (("layout", "scale", "at", "offsets", 1), 65, "reaches bit"),
           (("layout", "codebook"), [0.0], "need a codebook of 16, not 1"),
           (("layout", "minimum_sign"), 0, "minimum_sign is 0"),
           (("block_bytes", 0), 8, "do not fit|reaches bit"),
           (("layout", "surprise"), 1, "unknown field 'surprise'"),
           (("layout", "group"), "gone", "has no group")]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_a_layout_that_does_not_fit_together_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        check_addresses(parse_encoding("toy", changed(path, value), {}), 96)


def test_few_bytes_cannot_become_many_weights() -> None:
    bomb = changed(("layout", "codes", 0), {"width": 4, "offsets": [0], "stride": 0, "plane": 0})
    with pytest.raises(BestiaryError, match="do not fit"):
        check_addresses(parse_encoding("toy", {**bomb, "block_size": 1 << 20}, {}), 1 << 20)


FILES: list[tuple[dict[str, Any], str]] = [
    ({"encodings": {}}, "is in 'toy', which is not described"), ({"tensors": 5}, "tensors is 5; it must be an object"),
    ({"tensors": {"other": {"encoding": "toy", "columns": 96}}}, "other.plane0 is missing"),
    ({"tensors": {"before": {"encoding": "toy", "columns": 96}}}, "before stands there as itself and as planes"),
    ({"tensors": {"blk.0.ffn_up.weight": {"encoding": "toy", "columns": 128}}}, "it must be i8 in rows of 64"),
    ({"tensors": {"blk.0.ffn_up.weight": {"encoding": "toy", "columns": 95}}}, "no whole number"),
    ({"tensors": {"blk.0.ffn_up.weight": {"encoding": "toy", "columns": 1 << 62}}}, "columns is"),
    ({"tensors": {"blk.0.ffn_up.weight": {"encoding": ["toy"], "columns": 96}}}, "not described"),
    ({"extra": 1}, "unknown field 'extra'")]


@pytest.mark.parametrize(("change", "message"), FILES)
def test_a_file_whose_planes_do_not_fit_is_refused(tmp_path: Path, host: Host, change: dict[str, Any],
                                                   message: str) -> None:
    path, _ = save(tmp_path / "x.gguf", host)
    raw = path.read_bytes()
    said = bytes(gguf.GGUFReader(path).fields[PLANES_KEY].parts[-1])
    # The value keeps its length, so that nothing else in the file moves.
    other = json.dumps({**json.loads(said), **change}, separators=(",", ":")).encode().ljust(len(said))
    path.write_bytes(raw.replace(said, other))
    assert len(other) == len(said)
    with pytest.raises(BestiaryError, match=message):
        open_gguf(path, host)
