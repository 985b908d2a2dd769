"""GGUF files read, compared with the `gguf` package."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from bestiary.architecture import Key
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.host import Host
from bestiary_plugins.loaders.gguf import Gguf, open_gguf
from bestiary_plugins.loaders.gguf_config import from_keys, to_keys
from bestiary_plugins.loaders.gguf_header import read_header
from bestiary_plugins.loaders.gguf_metadata import Metadata, Value
from bestiary_plugins.loaders.gguf_types import TENSOR_TYPES


def write(path: Path, keys: dict[str, tuple[str, Any]] | None = None, architecture: str = "llama",
          tensors: dict[str, np.ndarray[Any, Any]] | None = None) -> Path:
    """A file by the `gguf` package. keys: name -> (the writer's method without `add_`, value)."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, (method, value) in (keys or {}).items():
        getattr(writer, f"add_{method}")(name, value)
    for name, array in ({"token_embd.weight": np.zeros((4, 32), np.float32)} if tensors is None else tensors).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def real(data: Path) -> Path:
    return data / "tiny-llama" / "llama-2-tiny-random.gguf"


def test_every_tensor_of_a_real_file_is_what_the_gguf_package_reads(real: Path, host: Host) -> None:
    checkpoint, reader = open_gguf(real, host), gguf.GGUFReader(real)
    assert list(checkpoint.tensors) == [tensor.name for tensor in reader.tensors]
    for expected in reader.tensors:
        tensor = checkpoint.tensors[expected.name]
        assert tensor.shape == tuple(reversed(expected.shape.tolist()))
        assert tensor.encoding.name == expected.tensor_type.name.lower()
        assert np.array_equal(tensor.array(), expected.data.astype(np.float32).reshape(tensor.shape))


def test_every_metadata_value_of_a_real_file_is_what_the_gguf_package_reads(real: Path) -> None:
    metadata, reader = read_header(DataFile(real)).metadata, gguf.GGUFReader(real)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(metadata) == list(fields)
    for name, field in fields.items():
        value = metadata[name]
        match value.kind:
            case "str":
                assert value.value.decode() == field.contents()
            case "str[]":
                assert [item.decode() for item in value.value] == field.contents()
            case kind if kind.endswith("[]"):
                assert value.value.tolist() == field.contents()
            case _:
                assert value.value == field.contents()


def test_a_real_file_has_the_config_and_vocabulary_it_should(real: Path, host: Host) -> None:
    checkpoint = open_gguf(real, host)
    assert dict(checkpoint.config) == {
        "model_type": "llama", "max_position_embeddings": 4096, "hidden_size": 8, "num_hidden_layers": 1,
        "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
        "rms_norm_eps": 1e-5, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}
    vocabulary = checkpoint.tokenizer.vocabulary
    assert vocabulary is not None
    assert (vocabulary.algorithm, vocabulary.unknown, vocabulary.space_prefix) == ("bpe", 0, True)
    assert vocabulary.pieces[:4] == [b"<unk>", b"<s>", b"</s>", b"<0x00>"]
    assert list(vocabulary.kinds[:4]) == [2, 3, 3, 6]
    assert (checkpoint.tokenizer.bos, checkpoint.tokenizer.eos, checkpoint.tokenizer.add_bos) == (1, 2, True)
    assert checkpoint.metadata["general.name"] == "LLaMA v2"


def test_a_checkpoint_pickles_as_its_path(real: Path, host: Host) -> None:
    checkpoint = open_gguf(real, host)
    data = pickle.dumps(checkpoint)
    again = pickle.loads(data)
    assert len(data) < 2000
    assert np.array_equal(again.tensors["output.weight"].decode(3, 5), checkpoint.tensors["output.weight"].decode(3, 5))


def test_version_2_is_read(tmp_path: Path, host: Host) -> None:
    path = write(tmp_path / "x.gguf")
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    assert open_gguf(path, host).tensors["token_embd.weight"].shape == (4, 32)


def test_the_table_of_tensor_types_is_the_gguf_packages() -> None:
    known = {kind.value for kind in GGMLQuantizationType}
    assert known <= set(TENSOR_TYPES)
    for code, kind in TENSOR_TYPES.items():
        if code not in known:  # newer than the package
            continue
        assert GGML_QUANT_SIZES[GGMLQuantizationType(code)] == (kind.block_size, kind.block_bytes)
        assert GGMLQuantizationType(code).name == kind.name.upper()


ARRAYS = [("u8", np.uint8), ("i8", np.int8), ("u16", np.uint16), ("i16", np.int16), ("u32", np.uint32),
          ("i32", np.int32), ("u64", np.uint64), ("i64", np.int64), ("f32", np.float32), ("f64", np.float64)]
METHODS = {"u8": "uint8", "i8": "int8", "u16": "uint16", "i16": "int16", "u32": "uint32", "i32": "int32",
           "u64": "uint64", "i64": "int64", "f32": "float32", "f64": "float64", "bool": "bool"}


@pytest.mark.parametrize(("kind", "dtype"), ARRAYS)
def test_each_number_is_read_at_its_extremes(tmp_path: Path, kind: str, dtype: type) -> None:
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    number = [int, float][kind[0] == "f"]
    path = write(tmp_path / "x.gguf", {"low": (METHODS[kind], number(info.min)),
                                       "high": (METHODS[kind], number(info.max))})
    metadata = read_header(DataFile(path)).metadata
    assert (metadata["low"].kind, metadata["low"].value) == (kind, info.min)
    assert metadata["high"].value == info.max


def test_strings_longer_than_the_read_buffer_are_read(tmp_path: Path) -> None:
    long = ["x" * 700_000, "", "y" * 3_000_000, "z"] * 2
    path = write(tmp_path / "x.gguf", {"a": ("array", long), "b": ("array", [1, 2, 3]), "c": ("bool", True)})
    metadata = read_header(DataFile(path)).metadata
    assert metadata.texts("a") == long
    assert metadata.integers("b") == [1, 2, 3]
    assert metadata.flag("c") is True


WRONG = [("general.alignment", "string", "32", "general.alignment is str"),
         ("llama.embedding_length", "float32", 8.0, "llama.embedding_length is f32; it must be an integer"),
         ("llama.embedding_length", "int32", -1, "llama.embedding_length is -1"),
         ("llama.embedding_length", "array", [8, 8], r"llama.embedding_length is i32\[\]"),
         ("llama.attention.layer_norm_rms_epsilon", "uint32", 1, "rms_epsilon is u32; it must be a number"),
         ("llama.attention.layer_norm_rms_epsilon", "float32", float("nan"), "rms_epsilon is nan; it must be finite"),
         ("llama.rope.freq_base", "float32", float("inf"), "freq_base is inf"),
         ("tokenizer.ggml.model", "uint32", 1, "tokenizer.ggml.model is u32; it must be a string"),
         ("tokenizer.ggml.model", "string", "rwkv", "'rwkv', which is not read; known: llama, gpt2, t5"),
         ("tokenizer.ggml.model", "string", "llama", "tokenizer.ggml.tokens is missing"),
         ("tokenizer.chat_template", "bool", True, "tokenizer.chat_template is bool"),
         ("bestiary.config", "string", "[1]", "bestiary.config holds an array; it must be an object"),
         ("bestiary.config", "string", "[" * 100_000, "bestiary.config nests too deeply"),
         ("bestiary.config", "string", '{"a": 1, "a": 2}', "'a' stands there twice"),
         ("bestiary.config", "string", '{"a": "\\ud800"}', "half a character"),
         ("bestiary.config", "string", '{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
         ("bestiary.file.tokenizer.model", "string", "x", "is str; it must be an array of strings"),
         ("bestiary.file.tokenizer.model", "array", ["zip", "x"], '"text" or "base64"'),
         ("bestiary.file.tokenizer.model", "array", ["base64", "%"], "is no base64"),
         ("split.count", "uint16", 3, "first of 3 files"), ("split.count", "uint16", 60000, "split.count is 60000"),
         ("split.no", "uint16", 1, "split.no is 1; split.count is 1")]


@pytest.mark.parametrize(("key", "method", "value", "message"), WRONG)
def test_a_metadata_value_of_the_wrong_kind_is_refused_by_key(tmp_path: Path, host: Host, key: str, method: str,
                                                              value: Any, message: str) -> None:
    path = write(tmp_path / "x.gguf", {key: (method, value)})
    with pytest.raises(BestiaryError, match=message) as caught:
        open_gguf(path, host)
    assert "\n" not in str(caught.value)


VOCABULARY: dict[str, tuple[str, Any]] = {
    "tokenizer.ggml.model": ("string", "llama"), "tokenizer.ggml.tokens": ("array", ["<unk>", "<s>", "</s>", "a"]),
    "tokenizer.ggml.scores": ("array", [0.0, 0.0, 0.0, -1.0]), "tokenizer.ggml.token_type": ("array", [2, 3, 3, 1])}
WRONG_VOCABULARY = [("tokenizer.ggml.scores", "array", [0.0], "scores has 1 entries; tokenizer.ggml.tokens has 4"),
                    ("tokenizer.ggml.scores", "array", [1, 2, 3, 4], r"scores is i32\[\]"),
                    ("tokenizer.ggml.scores", "array", [0.0, 0.0, 0.0, float("nan")], "not finite"),
                    ("tokenizer.ggml.token_type", "array", [1, 1], "token_type has 2 entries"),
                    ("tokenizer.ggml.tokens", "array", [1, 2, 3, 4], r"tokens is i32\[\]"),
                    ("tokenizer.ggml.bos_token_id", "uint32", 4, "bos_token_id is 4; it must be from 0 to 3"),
                    ("tokenizer.ggml.eot_token_id", "uint32", 1 << 31, "eot_token_id is"),
                    ("bestiary.ends", "array", [2, 9], "holds 2, 9; the vocabulary has 4"),
                    ("tokenizer.ggml.add_bos_token", "uint8", 1, "add_bos_token is u8; it must be a boolean")]


@pytest.mark.parametrize(("key", "method", "value", "message"), WRONG_VOCABULARY)
def test_a_vocabulary_that_does_not_fit_together_is_refused_by_key(tmp_path: Path, host: Host, key: str, method: str,
                                                                   value: Any, message: str) -> None:
    open_gguf(write(tmp_path / "good.gguf", VOCABULARY), host)
    with pytest.raises(BestiaryError, match=message):
        open_gguf(write(tmp_path / "bad.gguf", {**VOCABULARY, key: (method, value)}), host)


def test_ends_are_eos_and_every_token_that_ends_a_turn(tmp_path: Path, host: Host) -> None:
    tokens = [*VOCABULARY["tokenizer.ggml.tokens"][1], "<|eot_id|>", "stop", "<|im_end|>"]
    keys = {**VOCABULARY, "tokenizer.ggml.tokens": ("array", tokens), "tokenizer.ggml.scores": ("array", [0.0] * 7),
            "tokenizer.ggml.token_type": ("array", [2, 3, 3, 1, 3, 3, 1]), "tokenizer.ggml.eot_token_id": ("uint32", 5)}
    material = open_gguf(write(tmp_path / "x.gguf", keys), host).tokenizer
    assert material.ends == (2, 5, 4)  # <|im_end|> is ordinary text here


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path: Path, host: Host) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((2, 292), np.uint8), raw_dtype=GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BestiaryError, match=r"ffn_up.weight is q8_K, which is not read yet; known: f32, f16.*bf16"):
        open_gguf(tmp_path / "x.gguf", host)


def test_an_unknown_architecture_is_said_when_it_is_needed(tmp_path: Path, host: Host) -> None:
    checkpoint = open_gguf(write(tmp_path / "x.gguf", architecture="griffin"), host)
    assert checkpoint.config["model_type"] == "griffin"
    with pytest.raises(BestiaryError, match=r"unknown architecture 'griffin'; known: .*llama"):
        host.architecture_of(checkpoint.config, checkpoint.tokenizer)


def test_the_files_architecture_outweighs_an_embedded_config(tmp_path: Path, host: Host) -> None:
    embedded = ("string", '{"model_type": "unheard-of", "architectures": ["Unheard"]}')
    checkpoint = open_gguf(write(tmp_path / "x.gguf", {"bestiary.config": embedded}), host)
    assert host.architecture_of(checkpoint.config, checkpoint.tokenizer).name == "llama"


def test_keys_outweigh_the_embedded_config_where_they_disagree() -> None:
    keys = (Key("size", "{arch}.size", "u32"), Key("eps", "{arch}.eps", "f32"),
            Key("deep.inner", "{arch}.inner", "bool"),
            Key("scaling", "{arch}.kind", "str", lambda value: value["type"], lambda kind: {"type": kind}))
    metadata = Metadata("file", {"x.size": Value("u32", 5), "x.eps": Value("f32", np.float32(1e-6)),
                                 "x.inner": Value("bool", True), "x.kind": Value("str", b"linear")})
    base = {"size": 4, "eps": 1.00000000001e-6, "scaling": {"type": "linear", "factor": 2}, "other": None}
    config = from_keys(metadata, keys, "x", base)
    assert config == {**base, "size": 5, "deep": {"inner": True}}
    assert from_keys(metadata, keys, "x", {}) == {"size": 5, "eps": 1e-6, "deep": {"inner": True},
                                                  "scaling": {"type": "linear"}}
    assert to_keys(config, keys, "x") == {"x.size": ("u32", 5), "x.eps": ("f32", 1e-6), "x.inner": ("bool", True),
                                          "x.kind": ("str", "linear")}
    assert type(from_keys(metadata, keys, "x", {})["size"]) is int


def test_two_keys_that_disagree_are_refused() -> None:
    keys = (Key("width", "a", "u32"), Key("width", "b", "u32"))
    metadata = Metadata("file", {"a": Value("u32", 1), "b": Value("u32", 2)})
    with pytest.raises(BestiaryError, match="b gives width = 2, and a gives 1"):
        from_keys(metadata, keys, "x", {})


def test_the_file_is_recognised_by_its_magic(real: Path, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"ggml")
    (tmp_path / "pointer.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "text").write_bytes(b"hello")
    assert Gguf().recognise(real) == 100
    assert Gguf().recognise(tmp_path / "pointer.gguf") == 100
    assert 0 < Gguf().recognise(tmp_path / "other.gguf") < 50
    assert Gguf().recognise(tmp_path / "text") == Gguf().recognise(tmp_path) == Gguf().recognise(tmp_path / "none") == 0


def test_a_git_lfs_pointer_is_said_in_words(tmp_path: Path, host: Host) -> None:
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BestiaryError, match="is a Git LFS pointer"):
        open_gguf(tmp_path / "x.gguf", host)
