"""ggllm.cpp's files: what they hold, what they are told from, and how they are refused."""

from __future__ import annotations

import pickle
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.tensor import ArrayTensor
from bestiary_plugins.loaders.ggllm_cpp import GgllmCpp
from tests.loaders import bloom_falcon_files as old

CONTAINERS = {("ggml", 0): 1, ("ggmf", 1): 1, ("ggjt", 1): 1, ("ggjt", 2): 2, ("ggjt", 3): 3, ("ggcc", 10): 3}
"""And in which of three ways blocks of 4 bits are written there."""
containers = pytest.mark.parametrize(("container", "version"), CONTAINERS)
kinds = pytest.mark.parametrize("kind", [7, 40])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


@containers
@kinds
@pytest.mark.parametrize("quantized", [False, True])
def test_every_tensor_reads_as_it_was_written(file: Path, host: Host, container: str, version: int, kind: int,
                                              quantized: bool) -> None:
    matrix = partial(old.q4_0, era=CONTAINERS[container, version]) if quantized else old.f16
    file.write_bytes(old.falcon(container, version, kind, matrix))
    checkpoint = host.open(file)
    wanted = old.falcon_tensors(kind, matrix)
    assert list(checkpoint.tensors) == list(wanted)
    for name, weight in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].array(), weight.values, name)


@kinds
def test_it_is_the_model_that_hugging_faces_row_order_gives(file: Path, host: Host, kind: int) -> None:
    file.write_bytes(old.falcon("ggmf", 1, kind, old.f32))
    opened = host.open(file)
    heads, kv = old.HEADS, old.KV_HEADS[kind]
    theirs: dict[str, Any] = {}
    for name, tensor in opened.tensors.items():
        value = tensor.array()
        if "query_key_value" in name:
            q, k, v = np.split(value.reshape(heads + 2 * kv, -1, old.WIDTH), [heads, heads + kv])
            value = np.concatenate([part.reshape(kv, -1, *q.shape[1:]) for part in (q, k, v)], axis=1)
            value = value.reshape(-1, old.WIDTH)  # a key head's queries, its key, its value
        theirs[name] = ArrayTensor(value)
    config = {"model_type": "RefinedWeb", "hidden_size": old.WIDTH, "n_head": heads, "n_layer": old.LAYERS,
              "n_head_kv": kv, "vocab_size": old.FALCON_ROWS}
    family = host.architectures["falcon"]
    one, graph = to_canonical(opened, family)
    two, same = to_canonical(Checkpoint(file, config, theirs, "huggingface"), family)
    assert graph == same and one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.array(), two.tensors[name].array(), name)


@containers
def test_what_it_is_and_what_is_assumed_is_said(file: Path, host: Host, container: str, version: int) -> None:
    file.write_bytes(old.falcon(container, version))
    checkpoint = host.open(file)
    said = checkpoint.provenance
    assert said is not None and said.program == "ggllm.cpp"
    assert said.container == (f"{container} v{version}" if version else f"{container}, unversioned")
    assert {key: checkpoint.config[key] for key in said.assumed} == dict(said.assumed)
    assert bool(said.lacks) is (container != "ggcc")


@containers
@kinds
def test_it_speaks_and_computes(file: Path, host: Host, container: str, version: int, kind: int) -> None:
    """With and without merges the same: the order of the pieces gives them."""
    file.write_bytes(old.falcon(container, version, kind))
    with bestiary.load(file, backend="numpy", host=host) as model:
        text = "the th\u00e9 a 12 \U0001f600"
        byte = {value: 12 + value for value in range(256)}
        the, space_the, accent = 269, 271, 272
        assert model.tokenizer.encode("the the\u00e9") == [the, space_the, accent]
        ids = model.tokenizer.encode(text)
        assert model.tokenizer.decode(ids) == text and ids[-4:] == [byte[value] for value in "\U0001f600".encode()]
        assert (model.tokenizer.bos, model.tokenizer.eos, model.tokenizer.add_bos) == (11, 11, False)
        assert model.tokenizer.encode("<|endoftext|>", special=True) == [11]
        assert model.tokenizer.encode("<|endoftext|>") != [11]
        assert model.logits(ids).shape == (len(ids), old.FALCON_ROWS)


def test_the_row_that_wizardlm_has_more_than_others_is_dropped(file: Path, host: Host) -> None:
    rows = old.FALCON_ROWS + 1
    for matrix in (old.f16, partial(old.q4_0, era=3)):
        tensors = old.falcon_tensors(7, matrix, rows=rows)
        numbers = (*old.falcon_numbers(7, rows=rows), len(old.MERGES))
        file.write_bytes(old.written("ggcc", 10, numbers, [*old.falcon_pieces(), b"[PAD]"], tensors, old.MERGES))
        with bestiary.load(file, backend="numpy", host=host) as model:
            assert model.checkpoint.config["vocab_size"] == model.tokenizer.size == rows - 1
            for name, canonical in (("transformer.word_embeddings.weight", "token_embd.weight"),
                                    ("lm_head.weight", "output.weight")):
                np.testing.assert_array_equal(model.checkpoint.tensors[canonical].array(), tensors[name].values[:-1])


def test_it_pickles_as_its_path(file: Path, host: Host) -> None:
    file.write_bytes(old.falcon())
    copy: Checkpoint = pickle.loads(pickle.dumps(host.open(file)))
    np.testing.assert_array_equal(copy.tensors["lm_head.weight"].array(),
                                  old.falcon_tensors(7, old.f16)["lm_head.weight"].values)


# --- what it is told from ---

@containers
@kinds
def test_it_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path, host: Host, container: str, version: int,
                                                        kind: int) -> None:
    (tmp_path / "model.weights").write_bytes(old.falcon(container, version, kind))
    assert {name: sure for name, loader in host.loaders.items()
            if (sure := loader.recognise(tmp_path / "model.weights")) > 10} == {"ggllm.cpp": 100}


@pytest.mark.parametrize("head", [7, 40, 64])
@pytest.mark.parametrize(("container", "version"), [entry for entry in CONTAINERS if entry[0] != "ggcc"])
def test_files_of_llama_in_the_same_containers_are_not_claimed(file: Path, container: str, version: int,
                                                               head: int) -> None:
    """Also where the size of its heads could be the kind of a Falcon: the names of the tensors tell."""
    file.write_bytes(old.llama(container, version, head=head, width=2 * head))
    assert GgllmCpp().recognise(file) == 0


def test_what_it_does_not_know_it_does_not_claim(tmp_path: Path, data: Path) -> None:
    for name, content in (("empty", b""), ("text", b"words " * 100), ("zero", bytes(1000)), ("magic", b"ccgg"),
                          ("huge", b"tjgg" + struct.pack("<8i", 3, 1 << 20, 64, 4, 1, 2, 7, 1)),
                          ("chatglm.cpp", b"ggml" + struct.pack("<9i", 2, 1, 276, 64, 4, 1, 2, 7, 1) + bytes(400)),
                          ("bloom", old.bloom()), ("later", old.falcon("ggjt", 4))):
        (tmp_path / name).write_bytes(content)
        assert GgllmCpp().recognise(tmp_path / name) == 0, name
    assert GgllmCpp().recognise(tmp_path) == GgllmCpp().recognise(tmp_path / "missing.bin") == 0
    ours = [path.name for path in data.rglob("*") if path.is_file() and GgllmCpp().recognise(path)]
    assert sorted(ours) == ["falcon40-ggcc-q4_k.bin", "falcon7-ggcc-q4_0.bin", "falcon7-ggmf1-f16.bin"]
    assert all(GgllmCpp().recognise(path) == 100 for path in data.rglob("falcon*-gg*.bin"))


# --- damage ---

def refusal(path: Path, host: Host, loader: str | None = "ggllm.cpp") -> str:
    with pytest.raises(BestiaryError) as caught:
        host.open(path, loader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("container", ["ggmf", "ggcc"])
def test_a_truncated_file_is_refused_wherever_it_ends(file: Path, host: Host, container: str) -> None:
    whole = old.falcon(container, 10 if container == "ggcc" else 1)
    first = whole.index(b"transformer.word_embeddings")
    for length in (4, 27, 100, first - 60, first - 8, first + 8, first + 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert any(word in refusal(file, host) for word in (
            "lies outside the file", "no tensor begins", "is no ggllm.cpp file", "claims a vocabulary",
            "the list of merges claims")), length


@containers
def test_a_file_that_is_cut_off_is_still_known_and_said_to_be_so(file: Path, host: Host, container: str,
                                                                 version: int) -> None:
    whole = old.falcon(container, version)
    embedding = whole.index(b"transformer.word_embeddings.weight") + 34
    for length in (embedding, embedding + 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "lies outside the file" in refusal(file, host, None)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [0, -1, -(1 << 31), (1 << 31) - 1])
def test_absurd_numbers_in_the_header_are_refused(file: Path, host: Host, place: int, value: int) -> None:
    data = bytearray(old.falcon())
    struct.pack_into("<i", data, 8 + 4 * place, value)
    file.write_bytes(data)
    assert "is no ggllm.cpp file" in refusal(file, host, None)
    data[:8] = b"tjgg" + struct.pack("<i", 3)
    file.write_bytes(data)
    assert GgllmCpp().recognise(file) == 0


def test_other_versions_are_refused_by_number(file: Path, host: Host) -> None:
    for container, version, known in (("ggcc", 11, "known: 10"), ("ggjt", 4, "known: 1, 2, 3"),
                                      ("ggmf", 2, "known: 1")):
        file.write_bytes(old.falcon(container, version))
        assert f"container {container}, version {version}; {known}" in refusal(file, host)


def test_damaged_merges_are_refused(file: Path, host: Host) -> None:
    whole = old.falcon()
    at = whole.index(struct.pack("<iI", len(old.MERGES), 1) + b"t")
    for change, words in ((struct.pack("<i", 7), "has 8 merges by its header and 7 by its list"),
                          (struct.pack("<iI", 8, 1 << 31), "lies outside the file"),
                          (struct.pack("<iI", 8, 1) + b"\xff", "a merge is no UTF-8 text"),
                          (struct.pack("<iI", 8, 1) + b" ", "a part that is empty or holds a space")):
        file.write_bytes(whole[:at] + change + whole[at + len(change):])
        assert words in refusal(file, host)
    data = bytearray(whole)
    struct.pack_into("<i", data, 8 + 28, 1 << 20)
    struct.pack_into("<i", data, at, 1 << 20)
    file.write_bytes(data)
    assert "claims 2097152 strings" in refusal(file, host)


def test_types_that_a_container_does_not_have_are_refused_by_number(file: Path, host: Host) -> None:
    for container, version, code in (("ggmf", 1, 12), ("ggjt", 2, 4), ("ggcc", 10, 4)):
        tensors = {**old.falcon_tensors(7, old.f16)}
        name = next(iter(tensors))
        tensors[name] = tensors[name]._replace(code=code)
        file.write_bytes(old.falcon(container, version, tensors=tensors))
        assert f"tensor {name} is of type {code}; {container} v{version} files have 0 (f32), 1 (f16)" in \
            refusal(file, host)
