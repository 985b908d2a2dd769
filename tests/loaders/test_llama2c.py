"""llama2.c files: both versions are read, and damaged ones are refused in one line."""

from __future__ import annotations

import pickle
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import bestiary
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary_plugins.loaders.llama2c import Llama2c

Floats = NDArray[np.float32]
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = HEADER = (24, 40, 3, 4, 2, 31, 16)
HEAD = DIM // HEADS
KINDS = [(0, True), (0, False), (1, True), (1, False)]
kinds = pytest.mark.parametrize(("version", "tied"), KINDS)


def weights(tied: bool, seed: int = 0) -> dict[str, Floats]:
    """Random tensors under Meta's names; those of a layer have the layers as their first axis."""
    random = np.random.default_rng(seed)
    shapes = {"tok_embeddings": (VOCABULARY, DIM), "attention_norm": (LAYERS, DIM), "attention.wq": (LAYERS, DIM, DIM),
              "attention.wk": (LAYERS, KV_HEADS * HEAD, DIM), "attention.wv": (LAYERS, KV_HEADS * HEAD, DIM),
              "attention.wo": (LAYERS, DIM, DIM), "ffn_norm": (LAYERS, DIM), "feed_forward.w1": (LAYERS, HIDDEN, DIM),
              "feed_forward.w2": (LAYERS, DIM, HIDDEN), "feed_forward.w3": (LAYERS, HIDDEN, DIM), "norm": (DIM,),
              **({} if tied else {"output": (VOCABULARY, DIM)})}
    made = {name: random.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)
            for name, shape in shapes.items()}
    return {name: value * 4 if name.endswith("norm") else value for name, value in made.items()}


# The order in which export.py of llama2.c writes them.
ORDER = {0: ("tok_embeddings", "attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
             "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "norm", "rotations", "output"),
         1: ("attention_norm", "ffn_norm", "norm", "tok_embeddings", "attention.wq", "attention.wk", "attention.wv",
             "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "output")}


def written(version: int, tied: bool) -> bytes:
    tensors = weights(tied) | {"rotations": np.zeros((2, CONTEXT, HEAD // 2), np.float32)}
    data = b"".join(tensors[name].tobytes() for name in ORDER[version] if name in tensors)
    if version == 0:
        return struct.pack("<7i", *HEADER[:5], VOCABULARY if tied else -VOCABULARY, CONTEXT) + data
    return struct.pack("<Ii7iB", 0x616B3432, 1, *HEADER, tied).ljust(256, b"\0") + data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


@kinds
def test_every_tensor_is_where_the_exporter_put_it(file: Path, host: Host, version: int, tied: bool) -> None:
    file.write_bytes(written(version, tied))
    checkpoint = host.open(file)
    assert checkpoint.naming == "meta"
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert [checkpoint.config[key] for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings")] == list(HEADER)
    found = dict(checkpoint.tensors)
    for name, value in weights(tied).items():
        if name in ("tok_embeddings", "norm", "output"):
            np.testing.assert_array_equal(found.pop(f"{name}.weight").array(), value)
        else:
            for i in range(LAYERS):
                np.testing.assert_array_equal(found.pop(f"layers.{i}.{name}.weight").array(), value[i])
    assert not found


def rotated(x: Floats) -> Floats:
    """The rotation of llama2.c's run.c: neighbours (2j, 2j + 1) of a head turn together."""
    out = x.reshape(len(x), -1, HEAD // 2, 2).astype(np.float64)
    turn = np.exp(1j * np.arange(len(x))[:, None] * 10000.0 ** (-2 * np.arange(HEAD // 2) / HEAD))  # (tokens, pairs)
    z = (out[..., 0] + 1j * out[..., 1]) * turn[:, None]
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def forward(ids: list[int], tied: bool) -> Floats:
    """The forward pass of run.c, with a whole text at once."""
    w = weights(tied)

    def norm(x: Any, weight: Floats) -> Any:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * weight

    x = w["tok_embeddings"][ids].astype(np.float64)
    for i in range(LAYERS):
        h = norm(x, w["attention_norm"][i])
        q, k = rotated(h @ w["attention.wq"][i].T), rotated(h @ w["attention.wk"][i].T)
        v = h @ w["attention.wv"][i].T
        q, k, v = (value.reshape(len(ids), -1, HEAD).swapaxes(0, 1) for value in (q, k, v))  # (heads, tokens, HEAD)
        k, v = (np.repeat(value, HEADS // KV_HEADS, axis=0) for value in (k, v))
        scores = q @ k.swapaxes(1, 2) / HEAD ** 0.5 + np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        a = chances / chances.sum(axis=-1, keepdims=True) @ v
        x = x + a.swapaxes(0, 1).reshape(len(ids), DIM) @ w["attention.wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        gate = h @ w["feed_forward.w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["feed_forward.w3"][i].T)) @ w["feed_forward.w2"][i].T
    logits: Floats = norm(x, w["norm"]) @ w["tok_embeddings" if tied else "output"].T
    return logits


@kinds
def test_logits_are_those_of_the_programs_own_forward_pass(file: Path, host: Host, version: int, tied: bool) -> None:
    file.write_bytes(written(version, tied))
    ids = [1, 5, 30, 2, 2, 17, 0, 9]
    with bestiary.load(file, backend="numpy", host=host) as model:
        ours = model.logits(ids)
    wanted = forward(ids, tied)
    assert np.abs(ours - wanted).max() <= 1e-4 * (wanted.max() - wanted.min())


@kinds
def test_both_versions_are_recognised_surely_whatever_they_are_called(file: Path, version: int, tied: bool) -> None:
    renamed = file.with_suffix(".weights")
    renamed.write_bytes(written(version, tied))
    assert Llama2c().recognise(renamed) >= 90


def test_it_pickles_as_its_path(file: Path, host: Host) -> None:
    file.write_bytes(written(0, True))
    copy: Checkpoint = pickle.loads(pickle.dumps(host.open(file)))
    np.testing.assert_array_equal(copy.tensors["norm.weight"].array(), weights(True)["norm"])


def refusal(path: Path, host: Host, loader: str | None = "llama2.c") -> str:
    with pytest.raises(BestiaryError) as caught:
        host.open(path, loader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@kinds
def test_truncated_and_overlong_files_are_refused_with_both_sizes(file: Path, host: Host, version: int,
                                                                 tied: bool) -> None:
    whole = written(version, tied)
    for length in (len(whole) - 1, len(whole) - 4, len(whole) // 2, 300, len(whole) + 4):
        file.write_bytes(whole.ljust(length, b"\0")[:length])
        assert f"has {length} bytes; its header asks for {len(whole)}" in refusal(file, host)
    for length in (1, 4, 27, 35):
        file.write_bytes(whole[:length])
        assert "is no llama2.c checkpoint" in refusal(file, host)


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("value", [0, -1, -(1 << 31), (1 << 31) - 1])
@pytest.mark.parametrize("version", [0, 1])
def test_absurd_numbers_in_the_header_are_refused(file: Path, host: Host, version: int, place: int, value: int) -> None:
    data = bytearray(written(version, True))
    struct.pack_into("<i", data, (8 if version else 0) + 4 * place, value)
    file.write_bytes(data)
    refusal(file, host)
    assert Llama2c().recognise(file) <= (100 if version else 20)


def test_heads_that_do_not_divide_are_refused(file: Path, host: Host) -> None:
    for place, value in ((3, 5), (4, 3)):
        data = bytearray(written(0, True))
        struct.pack_into("<i", data, 4 * place, value)
        file.write_bytes(data)
        assert "is no llama2.c checkpoint" in refusal(file, host)


def test_quantized_and_unknown_versions_are_refused_by_number(file: Path, host: Host) -> None:
    for version in (2, 3, -1):
        data = bytearray(written(1, True))
        struct.pack_into("<i", data, 4, version)
        file.write_bytes(data)
        assert f"of version {version}; versions 0 and 1 are read" in refusal(file, host, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_an_error_in_words_or_a_readable_file(file: Path, host: Host, data: st.DataObject) -> None:
    version, tied = data.draw(st.sampled_from(KINDS))
    changed = bytearray(written(version, tied))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 40))] = data.draw(st.integers(0, 255))
    file.write_bytes(changed[:data.draw(st.sampled_from([len(changed), 1000, 60]))])
    assert 0 <= Llama2c().recognise(file) <= 100
    try:
        checkpoint = host.loaders["llama2.c"].open(file, host)
    except BestiaryError as error:
        assert "\n" not in str(error)
    else:
        assert sum(4 * prod(tensor.shape) for tensor in checkpoint.tensors.values()) <= file.stat().st_size


def test_what_it_does_not_know_it_does_not_claim(tmp_path: Path) -> None:
    for name, content in (("empty.bin", b""), ("text.bin", b"words " * 100), ("zero.bin", bytes(1000)),
                          ("gguf.bin", b"GGUF" + bytes(100)), ("ones.bin", b"\xff" * 500)):
        (tmp_path / name).write_bytes(content)
        assert Llama2c().recognise(tmp_path / name) == 0
    assert Llama2c().recognise(tmp_path) == 0
    assert Llama2c().recognise(tmp_path / "missing.bin") == 0


def test_the_tokenizer_beside_it_is_taken_by_size_first(file: Path, host: Host) -> None:
    def vocabulary(mark: bytes) -> bytes:
        pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(VOCABULARY - 4)), mark]
        return struct.pack("<i", 10) + b"".join(struct.pack("<fi", -float(i), len(piece)) + piece
                                                for i, piece in enumerate(pieces))

    file.write_bytes(written(0, True))
    assert host.open(file).tokenizer.empty
    file.with_name("tokenizer.bin").write_bytes(vocabulary(b"any"))
    found = host.open(file).tokenizer
    assert found.vocabulary is not None
    assert (found.vocabulary.pieces[-1], found.bos, found.eos) == (b"any", 1, 2)
    file.with_name(f"tok{VOCABULARY}.bin").write_bytes(vocabulary(b"own"))
    found = host.open(file).tokenizer
    assert found.vocabulary is not None
    assert found.vocabulary.pieces[-1] == b"own"
