"""safetensors files read, compared with the `safetensors` package; and hostile ones refused."""

from __future__ import annotations

import json
import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bestiary.encoding import BF16, F16, F32
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary_plugins.loaders.safetensors import open_safetensors


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("F16", [4], [24, 32])}


def attempt(path: Path, content: bytes) -> str | None:
    """The error's text, or None where the file is read, all of it."""
    path.write_bytes(content)
    try:
        for tensor in open_safetensors(DataFile(path)).values():
            tensor.array()
    except BestiaryError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return str(error)
    return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_every_tensor_is_what_the_package_reads(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "matrix": rng.standard_normal((7, 33)).astype(np.float32),
        "half": rng.standard_normal((2, 3, 5)).astype(np.float16),
        "vector": rng.standard_normal(9).astype(np.float32), "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, path, {"format": "pt"})
    tensors = open_safetensors(DataFile(path))
    assert tensors.keys() == arrays.keys()
    with safe_open(path, "np") as package:
        for name, tensor in tensors.items():
            assert tensor.shape == arrays[name].shape
            assert tensor.encoding == {"float32": F32, "float16": F16}[str(arrays[name].dtype)]
            assert np.array_equal(tensor.array(), package.get_tensor(name).astype(np.float32))
    assert np.array_equal(tensors["matrix"].decode(2, 5), arrays["matrix"][2:5])


def test_bf16_is_read(path: Path) -> None:
    path.write_bytes(raw({"x": entry("BF16", [2], [0, 4])}, struct.pack("<HH", 0x3F80, 0xC000)))
    tensor = open_safetensors(DataFile(path))["x"]
    assert tensor.encoding == BF16
    assert tensor.array().tolist() == [1.0, -2.0]


def test_a_type_that_is_not_read_is_said_when_the_tensor_is_used(path: Path) -> None:
    save_file({"ids": np.arange(4), "x": np.ones(2, np.float32)}, path)
    tensors = open_safetensors(DataFile(path))
    assert tensors["x"].array().tolist() == [1.0, 1.0]
    assert tensors["ids"].shape == (4,)
    with pytest.raises(BestiaryError, match="tensor ids is I64, which is not read; known: F32, F16, BF16"):
        tensors["ids"].array()


def test_the_file_that_the_others_are_made_of_is_read(path: Path) -> None:
    assert attempt(path, raw(GOOD, bytes(32))) is None


VALUES = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize("value", VALUES)
def test_extreme_lengths_of_the_header_are_refused(path: Path, value: int) -> None:
    assert attempt(path, raw(GOOD, bytes(32), value)) is not None


@pytest.mark.parametrize("value", [*VALUES, -1, 1e300, 2.0, float("nan"), True, None, "4", [], {}, 10**4000],
                         ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("where", ["size 0", "size 1", "start", "stop", "dtype", "shape", "offsets", "entry",
                                   "metadata"])
def test_extreme_values_of_every_field_are_refused_or_harmless(path: Path, where: str, value: Any) -> None:
    header: dict[str, Any] = json.loads(json.dumps(GOOD))
    match where:
        case "size 0" | "size 1":
            header["a"]["shape"][int(where[-1])] = value
        case "start" | "stop":
            header["a"]["data_offsets"][where == "stop"] = value
        case "dtype" | "shape":
            header["a"][where] = value
        case "offsets":
            header["a"]["data_offsets"] = value
        case "entry":
            header["a"] = value
        case _:
            header["__metadata__"] = value
    error = attempt(path, raw(header, bytes(32)))
    assert error is not None or where == "metadata" or (where, value) == ("start", 0)


def test_a_file_cut_off_anywhere_is_refused(path: Path) -> None:
    whole = raw(GOOD, bytes(32))
    for length in range(len(whole)):
        assert attempt(path, whole[:length]) is not None, length


REFUSED = [
    ("an overlap", raw({"a": entry(), "b": entry("F16", [4], [16, 24])}, bytes(24)), "they overlap"),
    ("a gap", raw({"a": entry(), "b": entry("F16", [4], [32, 40])}, bytes(40)), "there is a gap"),
    ("a gap at the front", raw({"a": entry(offsets=(8, 32))}, bytes(32)), "there is a gap"),
    ("bytes that nobody owns", raw({"a": entry()}, bytes(25)), "its header accounts for"),
    ("a wrong size", raw({"a": entry(shape=(2, 4))}, bytes(24)), "has 24 bytes; F32 of shape .* takes 32"),
    ("an end before the start", raw({"a": entry(offsets=(24, 0))}, bytes(24)), "has -24 bytes"),
    ("an unknown type", raw({"a": entry("Q4_0")}, bytes(24)), "tensor a is of the unknown type 'Q4_0'; known: F32"),
    ("a further field", raw({"a": {**entry(), "more": 1}}, bytes(24)), "exactly dtype, shape and data_offsets"),
    ("a missing field", raw({"a": {"dtype": "F32"}}, bytes(24)), "exactly dtype, shape and data_offsets"),
    ("many dimensions", raw({"a": entry("F32", [1] * 9, [0, 4])}, bytes(4)), "at most 8 sizes"),
    ("a duplicate tensor", raw(b'{"a": {}, "a": {}}'), "key 'a' stands there twice"),
    ("deep nesting", raw(b'{"a":' * 100_000), "nests too deeply"),
    ("deep arrays", raw(b'{"a":' + b"[" * 200_000), "nests too deeply"),
    ("a list", raw([1]), "holds an array; it must be an object"),
    ("NaN", raw(b'{"a": NaN}'), "NaN is no JSON number"),
    ("a number of 5,000 digits", raw(b'{"a": ' + b"9" * 5000 + b"}"), "cannot be read as JSON"),
    ("no JSON", raw(b"{]"), "cannot be read as JSON"),
    ("no text", raw(b'{"\xff": 1}'), "is no UTF-8 text"),
    ("half a character", raw(b'{"\\ud800": 1}'), "half a character"),
    ("an empty file", b"", "lies outside the file"),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
]


@pytest.mark.parametrize(("content", "message"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_what_is_damaged_is_refused(path: Path, content: bytes, message: str) -> None:
    error = attempt(path, content)
    assert error is not None
    with pytest.raises(BestiaryError, match=message):
        raise BestiaryError(error)


def test_a_sparse_file_does_not_buy_memory(path: Path) -> None:
    path.write_bytes(raw(GOOD, length=1 << 35))
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    with pytest.raises(BestiaryError, match="claims a header"):
        open_safetensors(DataFile(path))


def test_random_damage_is_refused_or_harmless(path: Path) -> None:
    whole, rng = raw(GOOD, bytes(32)), random.Random(3)
    for _ in range(2000):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            byte = rng.choice((0, 0xFF, *b'0123456789"{}[]:,\\', rng.randrange(256)))
            changed[rng.randrange(len(changed) - 32)] = byte
        with suppress(BestiaryError):
            attempt(path, bytes(changed))
