"""bloomz.cpp's files: what they hold, what they are told from, and how they are refused."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.host import Host
from bestiary.tensor import ArrayTensor
from bestiary_plugins.encodings import Q4_1_V1
from bestiary_plugins.loaders.bloomz_cpp import BloomzCpp
from bestiary_plugins.loaders.planar_rows import PlanarRows, is_planar
from tests.loaders import bloom_falcon_files as old


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def blocks(values: old.Floats) -> old.Weight:
    return old.q4_1(values, planar=False)


MATRICES: dict[str, Callable[[old.Floats], old.Weight]] = {
    "f32": old.f32, "f16": old.f16, "q4_0": old.q4_0, "q4_1 planar": old.q4_1, "q4_1 blocks": blocks}


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_tensor_reads_as_it_was_written(file: Path, host: Host, matrix: str) -> None:
    file.write_bytes(old.bloom(MATRICES[matrix]))
    checkpoint = host.open(file)
    wanted = old.bloom_tensors(MATRICES[matrix])
    assert list(checkpoint.tensors) == list(wanted)
    for name, weight in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].array(), weight.values, name)
        tensor = checkpoint.tensors[name]
        if tensor.rows > 2:
            np.testing.assert_array_equal(tensor.read(1, 3), tensor.read(0, tensor.rows)[1:3])


def test_the_config_is_that_of_the_header_and_what_is_assumed_is_said(file: Path, host: Host) -> None:
    file.write_bytes(old.bloom())
    checkpoint = host.open(file)
    config = to_canonical(checkpoint, host.architectures["bloom"])[0].config
    assert {key: config[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers",
                                         "intermediate_size", "max_position_embeddings", "layer_norm_eps",
                                         "tie_word_embeddings")} == {
        "vocab_size": old.ROWS, "hidden_size": old.WIDTH, "num_attention_heads": old.HEADS,
        "num_hidden_layers": old.LAYERS, "intermediate_size": 4 * old.WIDTH, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": True}
    said = checkpoint.provenance
    assert said is not None and said.program == "bloomz.cpp"
    assert {key: checkpoint.config[key] for key in said.assumed} == dict(said.assumed)
    assert len(said.assumed) == 3 and "--tokenizer" in said.lacks[0]


def test_it_is_the_model_that_hugging_faces_names_and_row_order_give(file: Path, host: Host) -> None:
    file.write_bytes(old.bloom(old.f32))
    opened = host.open(file)
    names = {"tok_embeddings": "word_embeddings", "norm": "word_embeddings_layernorm", "output_norm": "ln_f"}
    layer = {"attention_norm": "input_layernorm", "attention.query_key_value": "self_attention.query_key_value",
             "attention.wo": "self_attention.dense", "ffn_norm": "post_attention_layernorm",
             "feed_forward.w1": "mlp.dense_h_to_4h", "feed_forward.w2": "mlp.dense_4h_to_h"}
    theirs: dict[str, Any] = {}
    for name, tensor in opened.tensors.items():
        stem, part = name.rsplit(".", 1)
        value = tensor.array()
        if stem.endswith("query_key_value"):  # (part, head, row) -> (head, part, row)
            value = value.reshape(3, old.HEADS, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        if name != "output.weight":
            _, i, inside = stem.split(".", 2) if stem.startswith("layers") else ("", "", "")
            full = f"h.{i}.{layer[inside]}" if inside else names[stem]
            theirs[f"{full}.{part}"] = ArrayTensor(value)
    other = Checkpoint(file, {**opened.config, "tie_word_embeddings": True}, theirs, "huggingface")
    family = host.architectures["bloom"]
    one, two = to_canonical(opened, family)[0], to_canonical(other, family)[0]
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.array(), two.tensors[name].array(), name)


def test_an_output_matrix_that_is_no_copy_of_the_embedding_is_said(file: Path, host: Host) -> None:
    tensors = old.bloom_tensors(old.f16)
    tensors["output.weight"] = old.f16(tensors["output.weight"].values + 1)
    file.write_bytes(old.bloom(tensors=tensors))
    with pytest.raises(BestiaryError, match=r"output\.weight .* no copy of the embedding"):
        bestiary.load(file, backend="numpy", host=host)


def test_it_speaks(file: Path, host: Host) -> None:
    file.write_bytes(old.bloom())
    with bestiary.load(file, backend="numpy", host=host) as model:
        ids = model.tokenizer.encode("the th\u00e9\u4e2d\u5348")
        assert model.tokenizer.decode(ids) == "the th\u00e9\u4e2d\u5348"
        assert (model.tokenizer.bos, model.tokenizer.eos, model.tokenizer.ends) == (1, 2, {2})
        assert model.logits(ids).shape == (len(ids), old.ROWS)


def test_it_pickles_as_its_path(file: Path, host: Host) -> None:
    file.write_bytes(old.bloom(old.q4_1))
    copy: Checkpoint = pickle.loads(pickle.dumps(host.open(file)))
    np.testing.assert_array_equal(copy.tensors["output.weight"].array(),
                                  old.bloom_tensors(old.q4_1)["output.weight"].values)


# --- planes and blocks ---

def tensor_of(path: Path, data: bytes, shape: tuple[int, int]) -> FileTensor:
    path.write_bytes(data)
    return FileTensor(DataFile(path), 0, shape, Q4_1_V1, "x")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(9, 16), st.integers(1, 5), st.integers(0, 1 << 32), st.sampled_from([1e-3, 1.0, 300.0]),
       st.floats(0, 0.4), st.booleans())
def test_rows_of_planes_are_told_from_blocks_and_read_the_same(file: Path, rows: int, count: int, seed: int,
                                                               size: float, zeros: float, planar: bool) -> None:
    source = np.random.default_rng(seed)
    values = (source.standard_normal((rows, 32 * count)) * size).astype(np.float32)
    values.reshape(-1, 32)[source.random(values.size // 32) < zeros] = 0
    weight = old.q4_1(values, planar)
    tensor = tensor_of(file, weight.data, values.shape)
    if weight.data != old.q4_1(values, not planar).data:
        assert is_planar([tensor]) is planar
    read = PlanarRows(tensor) if planar else tensor
    np.testing.assert_array_equal(read.decode(), weight.values)


def test_random_bytes_of_either_kind_decode_by_their_formula(file: Path) -> None:
    """Whatever the scales and minimums are: q * d + m, a row being m, d, codes with the low nibble first."""
    data = np.random.default_rng(5).integers(0, 256, (6, 4 * 24), np.uint8)
    data[:, 3:32:4] &= 0x3F  # no number is too large to be compared
    minimums, scales = (data[:, i:i + 16].copy().view("<f4") for i in (0, 16))
    codes = np.stack([data[:, 32:] & 15, data[:, 32:] >> 4], axis=2).reshape(6, 4, 32)
    wanted = (codes * scales[..., None] + minimums[..., None]).reshape(6, 128)
    read = PlanarRows(tensor_of(file, data.tobytes(), (6, 128)))
    np.testing.assert_array_equal(read.decode(), wanted.astype(np.float32))
    np.testing.assert_array_equal(read.decode(2, 5), wanted[2:5])


# --- what it is told from ---

def test_it_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path, host: Host) -> None:
    for matrix in MATRICES.values():
        (tmp_path / "model.weights").write_bytes(old.bloom(matrix))
        assert {name: sure for name, loader in host.loaders.items()
                if (sure := loader.recognise(tmp_path / "model.weights")) > 10} == {"bloomz.cpp": 100}


@pytest.mark.parametrize("head", [2, 40, 64])
@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("extra", [0, 1])
def test_files_of_llama_under_the_same_magic_are_not_claimed(file: Path, head: int, code: int, extra: int) -> None:
    """Also where its sixth number could be BLOOM's, its seventh is the length of an empty piece, and the header claims
    a piece more than there are, as GPT4All's does: the walk then ends where a tensor begins."""
    file.write_bytes(old.llama("ggml", 0, head=head, width=2 * head, code=code, claimed=40 + extra))
    assert BloomzCpp().recognise(file) == 0


def test_what_it_does_not_know_it_does_not_claim(tmp_path: Path, data: Path) -> None:
    for name, content in (("empty", b""), ("text", b"words " * 100), ("zero", bytes(1000)),
                          ("magic", b"lmgg"), ("gguf", b"GGUF" + bytes(100)), ("ones", b"\xff" * 500),
                          ("huge", b"lmgg" + struct.pack("<6i", 1 << 20, 64, 1, 4, 2, 1)),
                          ("falcon", old.falcon("ggml", 0)),
                          ("chatglm", b"ggml" + struct.pack("<9i", 1, 1, 320, 64, 4, 2, 256, 128, 2) + bytes(400))):
        (tmp_path / name).write_bytes(content)
        assert BloomzCpp().recognise(tmp_path / name) == 0, name
    assert BloomzCpp().recognise(tmp_path) == BloomzCpp().recognise(tmp_path / "missing.bin") == 0
    ours = [path.name for path in data.rglob("*") if path.is_file() and BloomzCpp().recognise(path)]
    assert sorted(ours) == [f"bloom-bloomzcpp-{kind}.bin" for kind in ("f16", "q4_0", "q4_1")]
    assert all(BloomzCpp().recognise(path) == 100 for path in data.rglob("bloom-bloomzcpp-*"))


# --- damage ---

def refusal(path: Path, host: Host, loader: str | None = "bloomz.cpp") -> str:
    with pytest.raises(BestiaryError) as caught:
        host.open(path, loader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path, host: Host) -> None:
    whole = old.bloom(old.q4_1)
    first = whole.index(b"tok_embeddings.weight")
    for length in (4, 27, 100, first - 8, first + 8, first + 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert any(word in refusal(file, host) for word in (
            "lies outside the file", "no tensor begins", "is no bloomz.cpp file", "claims a vocabulary"))


def test_a_file_that_is_cut_off_is_still_known_and_said_to_be_so(file: Path, host: Host) -> None:
    whole = old.bloom(old.q4_0)
    embedding = whole.index(b"tok_embeddings.weight") + 21
    for length in (embedding, embedding + 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "lies outside the file" in refusal(file, host, None)
    cut = old.llama("ggml", 0, head=2, width=4)
    for length in range(40, len(cut), 7):
        file.write_bytes(cut[:length])
        assert BloomzCpp().recognise(file) == 0


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [-1, -(1 << 31), (1 << 31) - 1])
def test_absurd_numbers_in_the_header_are_refused(file: Path, host: Host, place: int, value: int) -> None:
    data = bytearray(old.bloom())
    struct.pack_into("<i", data, 4 + 4 * place, value)
    file.write_bytes(data)
    assert "is no bloomz.cpp file" in refusal(file, host)
    assert BloomzCpp().recognise(file) == 0


def test_types_and_names_that_such_files_do_not_have_are_refused_by_name(file: Path, host: Host) -> None:
    tensors = old.bloom_tensors(old.f16)
    tensors["norm.bias"] = tensors["norm.bias"]._replace(code=8)
    file.write_bytes(old.bloom(tensors=tensors))
    assert "tensor norm.bias is of type 8; bloomz.cpp files have 0 (f32), 1 (f16), 2 (q4_0_v1), 3 (q4_1_v1)" in \
        refusal(file, host)
    whole = old.bloom()
    at = whole.index(b"layers.1.attention_norm.weight")
    file.write_bytes(whole[:at] + b"layers.0.attention_norm.weight" + whole[at + 30:])
    assert "tensor layers.0.attention_norm.weight is there twice" in refusal(file, host)
    file.write_bytes(whole[:at] + b"layers.1.attention_form.weight" + whole[at + 30:])
    with pytest.raises(BestiaryError, match=r"bloom does not know tensor layers\.1\.attention_form\.weight"):
        bestiary.load(file, backend="numpy", host=host)


def test_rows_that_are_no_whole_blocks_are_refused(file: Path, host: Host) -> None:
    tensors = {"tok_embeddings.weight": old.Weight(2, bytes(20 * 3), np.zeros((2, 48), np.float32))}
    file.write_bytes(old.bloom(tensors=tensors))
    said = refusal(file, host)
    assert "tensor tok_embeddings.weight has rows of 48 weights" in said and "q4_0_v1" in said and "32" in said
