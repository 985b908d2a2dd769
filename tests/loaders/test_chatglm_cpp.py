"""chatglm.cpp's files of every form: the same weights give the same logits and ids as from the published folder."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bestiary.encoding import F32
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.host import Host
from bestiary.model import load, load_tokenizer
from bestiary.saving import save_as
from bestiary.tokenizer import Tokenizer
from bestiary_plugins.demo.beasts import publish
from bestiary_plugins.loaders.chatglm_cpp import TYPES, ChatGlmCpp, read_first_entry, read_later_entry
from bestiary_plugins.loaders.ggml_container import read_entries
from tests.loaders.chatglm_cpp_files import CODES, FORMS, encoded, record, tensor, written
from tests.loaders.test_way_back import differing, same_weights

IDS = [5, 60, 7, 90, 195, 198, 20, 33, 150]
KINDS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
forms = pytest.mark.parametrize(("model", "version"), FORMS)


def config_of(model: int, version: int) -> dict[str, Any]:
    """A small config of that generation, as far as a record of that version can say it."""
    if model == 1:
        return {"inner_hidden_size": 4 * 96 if version == 0 else 160, "vocab_size": 200, "eos_token_id": 199,
                "pad_token_id": 3, "layernorm_epsilon": 1e-4 if version == 2 else 1e-5}
    return {"layernorm_epsilon": 1.5625e-07 if version == 2 else 1e-5, "rope_ratio": 50 if version == 2 else 1,
            "eos_token_id": 2, "pad_token_id": 0}


def published(host: Host, folder: Path, model: int, version: int, kind: str = "f32", **values: Any) -> dict[str, Any]:
    """Writes a folder as the authors would; gives its config."""
    family = host.architectures["chatglm1" if model == 1 else "chatglm"]
    config = {**config_of(model, version), **values}
    publish(family, folder, 10 * model + version, **config)
    file = folder / "model.safetensors"
    tensors = {name: array.astype(np.float16 if kind == "f16" else np.float32)
               for name, array in load_file(file).items()}
    save_file(tensors, file)
    return {**family.example_config(), **config}


def old_file(host: Host, folder: Path, config: dict[str, Any], model: int, version: int, kind: str = "f32",
             tokenizer: bytes = b"") -> Path:
    """The folder's weights as a file of chatglm.cpp."""
    path = folder.with_suffix(".bin")
    path.write_bytes(written(model, version, config, load_file(folder / "model.safetensors"), kind, tokenizer, host))
    return path


def logits(path: Path, host: Host, backend: str) -> NDArray[np.float32]:
    with load(path, backend=backend, host=host, cache_type_k="f32", cache_type_v="f32") as model:
        return model.logits(IDS)


@pytest.mark.parametrize("kind", ["f32", "f16"])
@forms
def test_the_logits_are_those_of_the_published_folder(host: Host, tmp_path: Path, model: int, version: int, kind: str,
                                                      ) -> None:
    folder = tmp_path / "published"
    config = published(host, folder, model, version, kind)
    file = old_file(host, folder, config, model, version, kind)
    save_as(file, tmp_path / "x.gguf", kind, host)
    save_as(tmp_path / "x.gguf", tmp_path / "again", None, host, format="huggingface")
    for backend in ("numpy", "cpu"):
        if host.unavailable(host.backends[backend]) is None:
            wanted = logits(folder, host, backend)
            assert np.ptp(wanted) > 1
            for path in (file, tmp_path / "x.gguf", tmp_path / "again"):
                assert np.array_equal(logits(path, host, backend), wanted), (path, backend)


@forms
def test_converted_it_is_the_folder_converted_and_comes_back(host: Host, tmp_path: Path, model: int, version: int,
                                                             ) -> None:
    folder = tmp_path / "published"
    file = old_file(host, folder, published(host, folder, model, version, "f16"), model, version, "f16")
    save_as(file, tmp_path / "x.gguf", "f16", host)
    (folder / "tokenizer.json").unlink()  # the file has none
    save_as(folder, tmp_path / "y.gguf", "f16", host)
    assert differing(tmp_path / "x.gguf", tmp_path / "y.gguf") == set()
    assert same_weights(host.open(tmp_path / "x.gguf"), host.open(tmp_path / "y.gguf"))
    save_as(tmp_path / "x.gguf", tmp_path / "again", None, host, format="huggingface")
    wanted, found = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert {name: array for name, array in found.items() if name != "lm_head.weight"}.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("kind", KINDS)
@forms
def test_blocks_are_those_of_today(host: Host, tmp_path: Path, model: int, version: int, kind: str) -> None:
    folder = tmp_path / "published"
    file = old_file(host, folder, published(host, folder, model, version), model, version, kind)
    checkpoint, quantizer = host.open(file), host.quantizers[kind]
    for name, array in load_file(folder / "model.safetensors").items():
        held = checkpoint.tensors[name]
        assert held.shape == array.shape
        if array.ndim == 1:
            assert held.encoding == F32 and np.array_equal(held.array(), array)
        else:
            assert held.encoding == quantizer.encoding
            assert np.array_equal(held.read(0, held.rows), quantizer.quantize(array))
    save_as(file, tmp_path / "x.gguf", None, host)
    assert np.array_equal(logits(tmp_path / "x.gguf", host, "numpy"), logits(file, host, "numpy"))


@forms
def test_the_config_is_the_published_one_and_what_is_not_said_is_listed(host: Host, tmp_path: Path, model: int,
                                                                        version: int) -> None:
    folder = tmp_path / "published"
    config = published(host, folder, model, version)
    checkpoint = host.open(old_file(host, folder, config, model, version))
    ratio = checkpoint.config.get("rope_theta", 10000.0) / 10000.0
    assert {key: {"rope_ratio": ratio, "kv_channels": 16}.get(key, checkpoint.config.get(key)) for key in config} \
        == config
    said = checkpoint.provenance
    assert said is not None and said.program == "chatglm.cpp" and "20" in said.era and said.lacks == ("the tokenizer",)
    assumed = {
        (1, 0): {"layernorm_epsilon": 1e-5, "inner_hidden_size": 384},
        (1, 1): {"layernorm_epsilon": 1e-5, "gmask_token_id": 195, "mask_token_id": 194},
        (1, 2): {"bos_token_id": 198, "gmask_token_id": 195, "mask_token_id": 194},
        (2, 1): {"layernorm_epsilon": 1e-5, "rope_theta": 10000.0},
        (3, 1): {"layernorm_epsilon": 1e-5, "rope_theta": 10000.0}}
    assert said.assumed == assumed.get((model, version), {})
    assert f"model type {model}" in said.container
    assert ("first release" if version == 0 else f"version {version}") in said.container
    assert pickle.loads(pickle.dumps(checkpoint)).config == checkpoint.config


# The tokenizers that were in such files, with an embedding of hardly any columns.
TOKENIZERS = {"chatglm-6b": (1, "ice_text.model", "chatglm-6b-ice_text.model"),
              "chatglm2-6b": (2, "tokenizer.model", "chatglm2-3-tokenizer.model"),
              "chatglm3-6b": (3, "tokenizer.model", "chatglm2-3-tokenizer.model")}
SMALL = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "multi_query_group_num": 1, "kv_channels": 8,
         "ffn_hidden_size": 16, "inner_hidden_size": 64}
ALSO_PUBLISHED = {"general.name", "bestiary.config", "bestiary.file.tokenizer_config.json"}
"""Where a folder says more: its name, versions of libraries, settings of training."""


def published_tokenizer(host: Host, data: Path, tmp_path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A folder as published, and its config."""
    model, own, file = TOKENIZERS[name]
    folder = tmp_path / "published"
    config = json.loads((data / "configs" / name / "config.json").read_text())
    config |= {key: value for key, value in SMALL.items() if key in config}
    publish(host.architectures["chatglm1" if model == 1 else "chatglm"], folder, 1, **config)
    (folder / "tokenizer.json").unlink()
    (folder / own).write_bytes((data / "tokenizers" / file).read_bytes())
    (folder / "tokenizer_config.json").write_bytes(
        (data / "configs" / name / "tokenizer_config.json").read_bytes())
    return folder, config


def same_ids(one: Path, other: Path, texts: Iterable[str], host: Host) -> Tokenizer:
    """The tokenizer of the first, which is the other's."""
    mine, theirs = load_tokenizer(one, host), load_tokenizer(other, host)
    assert (mine.size, mine.bos, mine.eos, mine.ends) == (theirs.size, theirs.bos, theirs.eos, theirs.ends)
    assert mine.encode("x", bos=True) != mine.encode("x")
    for text in texts:
        for special in (False, True):
            ids = mine.encode(text, bos=True, special=special)
            assert ids == theirs.encode(text, bos=True, special=special), text
            assert mine.decode(ids) == theirs.decode(ids)
    return mine


TEXTS = ("", " ", "a\t\tb", "  two  spaces\nand a line, 12345!", "在山上 émue 🦊", "<|user|> [gMASK] <sop> <n>",
         "def f():\n        return 1", "ＦＵＬＬ ①")


def same_from_every_version(host: Host, folder: Path, config: dict[str, Any], model: int, vocabulary: bytes) -> Path:
    """A file of every version; what their tokenizers are made of is the same. Gives one of them."""
    path = folder.with_suffix(".bin")
    keys = ("vocab_size", "bos_token_id", "gmask_token_id", "mask_token_id", "eos_token_id", "pad_token_id")
    tensors, found = load_file(folder / "model.safetensors"), []
    for version in (version for known, version in FORMS if known == model):
        path.write_bytes(written(model, version, config, tensors, "f16", vocabulary, host))
        checkpoint = host.open(path)
        found.append((checkpoint.tokenizer, [checkpoint.config.get(key) for key in keys]))
    assert all(one == found[0] for one in found)
    return path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_published_folder(host: Host, data: Path, tmp_path: Path, name: str) -> None:
    model, own, _ = TOKENIZERS[name]
    folder, config = published_tokenizer(host, data, tmp_path, name)
    file = same_from_every_version(host, folder, config, model, (folder / own).read_bytes())
    vectors = json.loads((data / "tokenizers" / "VECTORS.json").read_text())
    cases = next(entry["cases"] for key, entry in vectors.items() if key.startswith(name))
    tokenizer = same_ids(file, folder, TEXTS, host)
    for case, ids in cases:
        if isinstance(case, str):
            assert tokenizer.encode(case, bos=True) == ids
        else:
            turns = [{"role": role, "content": content} for role, content in case]
            assert tokenizer.encode_segments(host.templates[name].render(turns), bos=True) == ids
    if name == "chatglm3-6b":
        return  # its file is that of the second
    save_as(file, tmp_path / "x.gguf", None, host)
    save_as(folder, tmp_path / "y.gguf", None, host)
    assert differing(tmp_path / "x.gguf", tmp_path / "y.gguf") <= ALSO_PUBLISHED
    converted = load_tokenizer(tmp_path / "x.gguf", host)
    for text in TEXTS:
        assert converted.encode(text, bos=True) == tokenizer.encode(text, bos=True)


def test_the_first_vocabulary_has_its_text_behind_the_images(host: Host, data: Path, tmp_path: Path) -> None:
    """150,528 rows: the file's tokenizer ends before the special pieces, and ids begin 20,000 later."""
    from bestiary.sentencepiece_model import read_model, write_model

    whole = (data / "tokenizers" / "chatglm-6b-ice_text.model").read_bytes()
    model = read_model(whole)
    cut = write_model(model.names[:130_000], model.scores[:130_000], model.kinds[:130_000], model.rest)
    config = json.loads((data / "configs" / "chatglm-6b-v0" / "config.json").read_text()) | {
        key: SMALL[key] for key in ("hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size")}
    publish(host.architectures["chatglm1"], tmp_path / "published", 1, **config)
    said = {"gmask_token_id": 150_001, "mask_token_id": 150_000, **config}
    tokenizer = load_tokenizer(same_from_every_version(host, tmp_path / "published", said, 1, cut), host)
    processor = sentencepiece.SentencePieceProcessor(model_proto=whole)
    for text in ("在山上 émue", "你好", "hello world"):
        ids = tokenizer.encode(text, bos=True)
        assert ids == [*(token + 20_000 for token in processor.encode(text)), 150_001, 150_004]
        assert tokenizer.decode(ids) == text
    assert tokenizer.ends == {150_005}


def ranks() -> bytes:
    """A list of as many ranks as GLM-4's: all bytes, pairs of them, and words."""
    words = (b"".join(letters) for letters in itertools.product(*[[bytes([i]) for i in range(97, 123)]] * 4))
    pieces = [*(bytes([i]) for i in range(256)), *(bytes(pair) for pair in itertools.product(range(256), repeat=2)),
              *itertools.islice(words, 151_329 - 256 - 65_536)]
    return b"".join(base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(pieces))


def test_glm4_has_its_list_of_ranks(host: Host, tmp_path: Path) -> None:
    folder, vocabulary = tmp_path / "published", ranks()
    config = published(host, folder, 4, 2, "f16", hidden_size=16, num_layers=1, num_attention_heads=2,
                       multi_query_group_num=1, kv_channels=8, ffn_hidden_size=16, padded_vocab_size=151_552,
                       eos_token_id=151_329)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(vocabulary)
    file = old_file(host, folder, config, 4, 2, "f16", vocabulary)
    tokenizer = same_ids(file, folder, [*TEXTS, "abbey abcd zebra", "<|user|>\nhi<|assistant|>"], host)
    assert tokenizer.encode("ab", bos=True)[:2] == [151_331, 151_333]
    assert {151_329, 151_336, 151_338} <= tokenizer.ends


def test_a_learned_prefix_is_the_past(host: Host, tmp_path: Path) -> None:
    """P-Tuning v2: the file holds keys and values as they stand in the cache, the folder a row a token."""
    folder, count = tmp_path / "published", 5
    config = published(host, folder, 2, 2, pre_seq_len=count)
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop("transformer.prefix_encoder.embedding.weight").astype(np.float16) * np.float16(8)
    assert table.shape == (count, 2 * 2 * 2 * 16)
    save_file({**tensors, "transformer.prefix_encoder.embedding.weight": table}, folder / "model.safetensors")
    past = table.reshape(count, 4, 2, 16).transpose(1, 2, 0, 3)
    file = tmp_path / "x.bin"
    file.write_bytes(written(2, 2, {**config, "pre_seq_len": 0}, tensors, "f32", b"", host))
    without = logits(file, host, "numpy")
    file.write_bytes(written(2, 2, config, {"past_key_values": past, **tensors}, "f32", b"", host))
    save_as(file, tmp_path / "x.gguf", "f32", host)
    for backend in ("numpy", "cpu"):
        if host.unavailable(host.backends[backend]) is None:
            wanted = logits(folder, host, backend)
            assert np.abs(wanted - without).max() > 0.01 * np.ptp(wanted)
            assert np.array_equal(logits(file, host, backend), wanted)
            assert np.array_equal(logits(tmp_path / "x.gguf", host, backend), wanted)
    held = host.open(file).tensors["transformer.prefix_encoder.embedding.weight"]
    assert np.array_equal(held.read(1, 3).view(np.float16), table[1:3])


names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=256)
tensors = st.lists(st.tuples(names, st.lists(st.integers(1, 5), min_size=1, max_size=4),
                             st.sampled_from(["f32", "f16", "q8_0", "q4_0"])), unique_by=lambda entry: entry[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors, st.booleans(), st.integers(0, 40), st.integers(0, 1 << 32))
def test_random_tensors_are_where_the_writer_put_them(host: Host, tmp_path: Path, listed: list[Any], first: bool,
                                                      before: int, seed: int) -> None:
    source, data, wanted = np.random.default_rng(seed), bytes(before), {}
    for name, axes, kind in listed:
        shape = (*axes[:-1], axes[-1] * host.quantizers[kind].encoding.block_size)
        wanted[name] = shape, kind, encoded(source.standard_normal(shape), kind, host)
        data += tensor(len(data), int(not first), name, *wanted[name])
    (tmp_path / "x").write_bytes(data)
    file, read = DataFile(tmp_path / "x"), read_first_entry if first else read_later_entry
    found = [*read_entries(file, before, 16, lambda entry: TYPES[entry.code], read)]
    assert [entry.name for entry, _ in found] == list(wanted)
    for entry, encoding in found:
        shape, kind, content = wanted[entry.name]
        assert (entry.shape, encoding) == (shape, host.quantizers[kind].encoding)
        assert file.read(entry.offset, len(content)) == content


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from(FORMS), st.integers(0, 60))
def test_whatever_follows_the_magic_is_refused_in_a_line(host: Host, tmp_path: Path, noise: bytes,
                                                         form: tuple[int, int], kept: int) -> None:
    config = {**host.architectures["chatglm1" if form[0] == 1 else "chatglm"].example_config(), **config_of(*form)}
    (tmp_path / "x").write_bytes(b"ggml" + record(*form, config, "f16")[4:4 + kept] + noise)
    assert ChatGlmCpp().recognise(tmp_path / "x") in (0, 100)
    try:
        host.open(tmp_path / "x", "chatglm.cpp")
    except BestiaryError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def small(host: Host, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("chatglm") / "published"
    config = published(host, folder, 2, 2)
    return config, load_file(folder / "model.safetensors")


def refused(host: Host, tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    with pytest.raises(BestiaryError, match=match) as error:
        host.open(path)
    assert "\n" not in str(error.value)


def test_what_is_not_read_is_named(host: Host, tmp_path: Path, small: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config, tensors = small
    whole = written(2, 2, config, tensors, "f32", b"", host)
    for model, version, match in (
            (1024, 1, "chatglm.cpp file of Baichuan-7B .*1024.*not implemented; known: ChatGLM-6B, ChatGLM2-6B"),
            (1025, 1, "Baichuan-13B"), (1280, 1, "InternLM"), (1004, 2, "GLM-4V"), (77, 1, "an unknown model .*77"),
            (4, 1, "GLM-4 whose config has version 1"), (2, 3, "ChatGLM2-6B whose config has version 3")):
        refused(host, tmp_path, b"ggml" + struct.pack("<2i", model, version) + whole[12:], match)
    other = {**config, "rope_ratio": 1, "inner_hidden_size": 160, "vocab_size": 199, "max_sequence_length": 128}
    refused(host, tmp_path, record(1, 2, {**other, "rope_ratio": 2}, "f32") + bytes(4), "rope_theta = 20000.0")
    refused(host, tmp_path, record(1, 2, {**other, "multi_query_group_num": 2}, "f32") + bytes(4), "kv_heads = 2 .*: 6")
    refused(host, tmp_path, record(1, 2, {**other, "multi_query_group_num": 6, "pre_seq_len": 9}, "f32") + bytes(4),
            "9 learned tokens .*does not hold them")
    past = np.zeros((4, 2, 9, 16), np.float16)
    for count in (0, 8):
        refused(host, tmp_path, written(2, 2, {**config, "pre_seq_len": count}, {"past_key_values": past}, "f32", b"",
                                        host), rf"past_key_values is f16 of shape \[4, 2, 9, 16\].*\[4, 2, {count}, 16")
    refused(host, tmp_path, record(2, 2, config, "f32") + struct.pack("<i", -1), "tokenizer of -1 bytes")
    refused(host, tmp_path, record(2, 2, config, "f32") + struct.pack("<i", 1 << 20), "tokenizer.* outside the file")
    refused(host, tmp_path, record(2, 2, config, "f32") + struct.pack("<i", (1 << 31) - 1), "tokenizer of 2147483647")
    refused(host, tmp_path, whole[:-1], "outside the file of .*truncated")
    refused(host, tmp_path, whole[:-4 * 96 * 199 - 9], "no tensor begins|outside the file")
    name = b"transformer.encoder.final_layernorm.weight"
    at = whole.index(name) + len(name)
    for field, value, match in ((4, 1 << 30, "outside the file"), (4, -1, "no tensor begins"), (0, 9, "no tensor"),
                                (8, 4, "final_layernorm.weight has type 4; known: 0 .f32"), (8, 99, "type 99"),
                                (8, 2, "no tensor|outside"), (4, 33, "no tensor|outside")):
        damaged = bytearray(whole)
        damaged[at + field:at + field + 4] = struct.pack("<i", value)
        refused(host, tmp_path, bytes(damaged), match)
    twice = written(2, 2, config, dict([*tensors.items()][:1]), "f32", b"", host)
    start = len(record(2, 2, config, "f32")) + 4
    refused(host, tmp_path, twice + bytes(-len(twice) % 16) + twice[start:], "is there twice|no tensor begins")


def test_rows_that_are_no_whole_number_of_blocks_are_refused(host: Host, tmp_path: Path,
                                                             small: tuple[dict[str, Any], dict[str, Any]]) -> None:
    data = record(2, 2, small[0], "q4_0") + bytes(4)
    header = struct.pack("<i", 1) + b"x" + struct.pack("<3i", 2, 4, 33) + struct.pack("<i", CODES["q4_0"])
    refused(host, tmp_path, data + header + bytes(400), "tensor x has rows of 33 weights; q4_0 holds blocks of 32")


@forms
def test_it_is_surely_recognised_by_its_bytes(host: Host, tmp_path: Path, model: int, version: int) -> None:
    folder = tmp_path / "published"
    file = old_file(host, folder, published(host, folder, model, version), model, version)
    file.rename(tmp_path / "x")
    assert {name: loader.recognise(tmp_path / "x") for name, loader in host.loaders.items()
            if loader.recognise(tmp_path / "x")} == {"chatglm.cpp": 100}


def test_no_other_file_is_taken_for_one(data: Path, tmp_path: Path) -> None:
    loader, others = ChatGlmCpp(), [path for folder in ("legacy-models", "legacy", "tokenizers", "chatglm")
                                    for path in (data / folder).rglob("*") if path.is_file()]
    assert len(others) > 40
    assert {path.name for path in others if loader.recognise(path)} == set()
    text = tmp_path / "ggml.md"
    for content in (b"ggml is a library of tensors, in C, that runs models on the processor.\n", b"ggml", b"",
                    b"ggml" + bytes(60), b"ggml" + b"\xff" * 60, b"lmgg" + struct.pack("<11i", 1, 1, *range(9))):
        text.write_bytes(content)
        assert loader.recognise(text) == 0
    assert loader.recognise(tmp_path) == 0
