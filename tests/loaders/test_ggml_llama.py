"""LLaMA files from before GGUF: every type of every container, several files, vocabularies of all sorts, damage."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load_tokenizer
from bestiary.saving import save_as
from bestiary.tensor import BlockTensor
from bestiary_plugins.encodings import ENCODINGS, Q4_0_V1, Q4_1_V1
from bestiary_plugins.loaders.ggml_llama import GgmlLlama
from bestiary_plugins.loaders.planar_rows import PlanarRows, is_planar
from tests.loaders import ggml_llama_writer as writer
from tests.loaders.ggml_llama_writer import BLOCKS, PIECES, SCORES, OldFile, old_file, parts_of

NAMES = {
    ("ggml", 0): {0: "f32", 1: "f16", 2: "q4_0_v1", 3: "q4_1_v1"},
    ("ggmf", 1): {0: "f32", 1: "f16", 2: "q4_0_v1", 3: "q4_1_v1"},
    ("ggjt", 1): {0: "f32", 1: "f16", 2: "q4_0_v1", 3: "q4_1_v1", 4: "q4_2", 5: "q4_3", 6: "q5_0_v1", 7: "q5_1_v1",
                  8: "q8_0_v1"},
    ("ggjt", 2): {0: "f32", 1: "f16", 2: "q4_0_v2", 3: "q4_1_v2", 6: "q5_0", 7: "q5_1", 8: "q8_0_v1"},
    ("ggjt", 3): {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k",
                  12: "q4_k", 13: "q5_k", 14: "q6_k"}}
KINDS = [(*kind, code) for kind, codes in NAMES.items() for code in codes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ggml-model.bin"


def opened(path: Path, file: OldFile, host: Host) -> Checkpoint:
    path.write_bytes(file.data())
    return host.open(path)


def refusal(path: Path, file: OldFile | bytes, host: Host) -> str:
    path.write_bytes(file if isinstance(file, bytes) else file.data())
    with pytest.raises(BestiaryError) as caught:
        host.open(path, "ggml-llama")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(one: Checkpoint, two: Checkpoint) -> None:
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.array(), two.tensors[name].array(), name)


@pytest.mark.parametrize(("container", "version", "code"), KINDS)
def test_every_type_of_every_container_is_read_as_it_was_meant(path: Path, host: Host, container: str, version: int,
                                                               code: int) -> None:
    file = old_file(container, version, code, width=256, forward=512)
    checkpoint = opened(path, file, host)
    assert host.recognise(path).name == "ggml-llama"
    assert {tensor.encoding.name for tensor in checkpoint.tensors.values()} == {
        "f32", NAMES[container, version][code]}
    for weight in file.tensors:
        encoding = ENCODINGS[NAMES[container, version][weight.code]]
        rows = np.frombuffer(weight.data, np.uint8).reshape(-1, encoding.row_bytes(weight.shape[-1]))
        tensor = checkpoint.tensors[weight.name]
        assert tensor.shape == weight.shape
        np.testing.assert_array_equal(tensor.decode(), encoding.decode(rows, weight.shape[-1]))
    provenance = checkpoint.provenance
    assert provenance is not None
    assert provenance.container == (f"{container} v{version}" if version else "ggml without a version")
    assert "2023" in provenance.era


@pytest.mark.parametrize("backend", Host().backends.names)
def test_a_model_runs(path: Path, host: Host, backend: str) -> None:
    if reason := host.backends[backend].available():
        pytest.skip(f"backend {backend}: {reason}")
    path.write_bytes(old_file("ggjt", 1, 2, layers=2).data())
    gguf = path.with_suffix(".gguf")
    save_as(path, gguf, "f32", host)
    logits = []
    for name in (path, gguf):
        with bestiary.load(name, backend=backend, host=host, cache_type_k="f32", cache_type_v="f32") as model:
            ids = model.tokenizer.encode("Hello hell\u00f6", bos=True)
            logits.append(model.logits(ids))
            assert model.tokenizer.decode(ids).removeprefix("<s>").strip() == "Hello hell\u00f6"
    assert np.abs(logits[0] - logits[1]).max() <= 0.03 * np.ptp(logits[1])


def test_the_first_code_of_q8_0_is_told_by_the_type_of_the_file(path: Path, host: Host) -> None:
    eight = old_file("ggjt", 1, 8, ftype=7)
    early = replace(eight, tensors=tuple(weight._replace(code=6) if weight.code == 8 else weight
                                         for weight in eight.tensors))
    found = opened(path, early, host)
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"f32", "q8_0_v1"}
    assert found.provenance is not None
    assert found.provenance.era == "25 to 26 April 2023"
    same_weights(found, opened(path.with_name("later.bin"), eight, host))


# What the shapes say and the header does not.


def test_the_width_of_the_feed_forward_part_is_that_of_the_tensor(path: Path, host: Host) -> None:
    config = opened(path, old_file(forward=160).having(n_mult=5504, n_rot=99), host).config
    assert config["intermediate_size"] == 160
    assert config["num_key_value_heads"] == 2


def test_shared_heads_of_keys_are_counted_and_mean_llama_2(path: Path, host: Host) -> None:
    checkpoint = opened(path, old_file(heads=4, key_heads=1), host)
    assert checkpoint.config["num_key_value_heads"] == 1
    assert checkpoint.config["rms_norm_eps"] == 1e-5
    assert checkpoint.config["max_position_embeddings"] == 4096


def test_what_the_file_does_not_say_is_listed(path: Path, host: Host) -> None:
    checkpoint = opened(path, old_file(), host)
    assert checkpoint.provenance is not None
    assert checkpoint.provenance.assumed == {
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": 2}
    assert checkpoint.provenance.assumed.items() <= checkpoint.config.items()
    assert not checkpoint.provenance.lacks


# Rows in planes.


@pytest.mark.parametrize("code", [2, 3])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_rows_in_planes_are_known_by_their_numbers(path: Path, host: Host, code: int, width: int) -> None:
    file = old_file("ggml", 0, code, width=width, forward=width)
    found = opened(path, writer.in_planes(file), host)
    same_weights(found, opened(path.with_name("blocks.bin"), file, host))
    encoding = found.tensors["output.weight"].encoding
    assert encoding.name == NAMES["ggml", 0][code]
    assert found.provenance is not None
    assert ("planes" in found.provenance.container) == (width > 32 or code == 3)  # else a row is one block either way


def quantized(values: np.ndarray, code: int) -> np.ndarray:
    """As quantize of March 2023: amax / 7, or min to max in 15 steps. values: (rows, columns) -> bytes of blocks."""
    blocks = values.reshape(-1, 32).astype(np.float32)
    with np.errstate(all="ignore"):
        if code == 2:
            numbers = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(7)
            codes = np.where(numbers > 0, np.round(blocks / numbers) + 8, 8)
        else:
            low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
            scale = (high - low) / np.float32(15)
            numbers, codes = np.hstack([scale, low]), np.where(scale > 0, np.round((blocks - low) / scale), 0)
    codes = codes.astype(np.uint8)
    nibbles = codes[:, ::2] | codes[:, 1::2] << 4
    return np.hstack([np.ascontiguousarray(numbers, "<f4").view(np.uint8), nibbles]).reshape(len(values), -1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([2, 3]), st.integers(1, 6), st.sampled_from([0, 1, 3]),
       st.floats(1e-3, 2.0))
def test_either_order_is_read_as_the_same_weights(seed: int, code: int, blocks: int, zeros: int, size: float) -> None:
    """Some blocks hold only zeros, as those of padded matrices."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((24, blocks, 32)) * size
    values[rng.random((24, blocks)) < zeros / 10] = 0
    encoding = Q4_0_V1 if code == 2 else Q4_1_V1
    rows = quantized(values.reshape(24, -1), code)
    kinds = np.dtype([("d", "<f4"), ("q", "u1", 16)] if code == 2 else [("d", "<f4"), ("m", "<f4"), ("q", "u1", 16)])
    split = rows.view(kinds)  # (rows, blocks)
    order = ("d", "q") if code == 2 else ("m", "d", "q")
    planes = np.stack([np.frombuffer(b"".join(row[name].tobytes() for name in order), np.uint8) for row in split])
    as_blocks, as_planes = (BlockTensor(data, (24, 32 * blocks), encoding) for data in (rows, planes))
    np.testing.assert_array_equal(PlanarRows(as_planes).decode(), as_blocks.decode())
    np.testing.assert_array_equal(PlanarRows(as_planes).decode(5, 9), as_blocks.decode(5, 9))
    if blocks > 1 or code == 3:
        assert is_planar([as_planes])
        assert not is_planar([as_blocks])


def test_later_containers_have_blocks_whatever_their_numbers_look_like(path: Path, host: Host) -> None:
    file = writer.in_planes(old_file("ggmf", 1, 3))
    found = opened(path, file, host)
    assert not np.array_equal(found.tensors["output.weight"].array(),
                              opened(path, replace(file, container="ggml", version=0), host)
                              .tensors["output.weight"].array(), equal_nan=True)


# Several files.


def write_parts(path: Path, parts: list[OldFile]) -> None:
    for i, part in enumerate(parts):
        (path.with_name(f"{path.name}.{i}") if i else path).write_bytes(part.data())


@pytest.mark.parametrize("container", ["ggml", "ggmf"])
@pytest.mark.parametrize("code", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [2, 4])
def test_a_model_in_several_files_is_that_in_one(path: Path, host: Host, container: str, code: int, count: int) -> None:
    file = old_file(container, int(container == "ggmf"), code, width=128, forward=256, heads=4)
    write_parts(path, parts_of(file, count))
    found = host.open(path)
    same_weights(found, opened(path.with_name("one.bin"), file, host))
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"f32", NAMES[container, file.version][code]}
    assert found.provenance is not None
    assert found.provenance.container.endswith(f"in {count} files")
    same_weights(found, pickle.loads(pickle.dumps(found)))


@pytest.mark.parametrize("code", [2, 3])
def test_planes_are_joined_as_blocks(path: Path, host: Host, code: int) -> None:
    file = old_file("ggml", 0, code, width=128, forward=256)
    write_parts(path, [writer.in_planes(part) for part in parts_of(file, 2)])
    found = host.open(path)
    same_weights(found, opened(path.with_name("one.bin"), file, host))
    row = found.tensors["tok_embeddings.weight"]
    np.testing.assert_array_equal(row.decode(3, 5), row.decode()[3:5])


def test_a_missing_part_is_named(path: Path, host: Host) -> None:
    write_parts(path, parts_of(old_file("ggmf", 1, heads=4), 4))
    path.with_name("ggml-model.bin.2").unlink()
    with pytest.raises(BestiaryError, match=r"the first of 4 files of one model; ggml-model\.bin\.2 is missing"):
        host.open(path)


def test_a_part_that_is_not_the_first_names_it(path: Path, host: Host) -> None:
    write_parts(path, parts_of(old_file("ggmf", 1), 2))
    with pytest.raises(BestiaryError, match=r"part 2 of a model in 2 files; open the first: ggml-model\.bin$"):
        host.open(path.with_name("ggml-model.bin.1"))


def change(file: OldFile, tensor: str, **changes: object) -> OldFile:
    return replace(file, tensors=tuple(
        weight._replace(**changes) if weight.name == tensor else weight for weight in file.tensors))  # type: ignore[arg-type]


@pytest.mark.parametrize(("what", "says"), [
    ("header", "n_layer = 3 in the header, 1 in that of ggml-model.bin"),
    ("vocabulary", "of different vocabularies"),
    ("container", "of different kinds of file"),
    ("tensors", "holds tensor output.weight"),
    ("shape", r"output.weight has shape \[68, 128\] and type 0; in ggml-model.bin it has \[136, 64\]"),
    ("type", "norm.weight has shape .* and type 1; in"),
])
def test_parts_of_different_models_are_refused(path: Path, host: Host, what: str, says: str) -> None:
    first, second = parts_of(old_file("ggmf", 1), 2)
    output = next(weight for weight in second.tensors if weight.name == "output.weight")
    second = {
        "header": second.having(n_layer=3),
        "vocabulary": replace(second, pieces=(*PIECES[:-1], b"other")),
        "container": replace(second, container="ggml", version=0),
        "tensors": replace(second, tensors=tuple(weight for weight in second.tensors if weight != output)),
        "shape": change(second, "output.weight", shape=(output.shape[0] // 2, output.shape[1] * 2)),
        "type": change(second, "norm.weight", code=1, data=bytes(128)),
    }[what]
    write_parts(path, [first, second])
    with pytest.raises(BestiaryError, match=says):
        host.open(path)


def test_a_merged_model_of_any_width_is_one_file(path: Path, host: Host) -> None:
    """The number of files follows from the embedding, not from the width."""
    shape = (len(PIECES), 5120)  # of 13B, whose parts were two
    file = change(old_file("ggmf", 1).having(n_embd=5120), "tok_embeddings.weight", shape=shape, data=bytes(
        4 * shape[0] * shape[1]))
    assert opened(path, file, host).tensors["tok_embeddings.weight"].shape == shape


def test_columns_that_are_no_share_of_the_width_are_refused(path: Path, host: Host) -> None:
    assert "do not divide n_embd = 96" in refusal(path, old_file("ggmf", 1).having(n_embd=96), host)


# Vocabularies.


def test_pieces_are_spelled_as_sentencepiece_does(path: Path, host: Host) -> None:
    vocabulary = opened(path, old_file(), host).tokenizer.vocabulary
    assert vocabulary is not None
    names = list(vocabulary.pieces)
    assert names[:5] == [b"<unk>", b"<s>", b"</s>", b"<0x00>", b"<0x01>"]
    assert names[258:260] == [b"<0xFF>", "\u2581".encode()]
    assert [word.decode() for word in names[259:]] == writer.WORDS
    assert list(vocabulary.kinds) == [2, 3, 3, *[6] * 256, *[1] * len(writer.WORDS)]
    assert tuple(vocabulary.scores) == SCORES


def test_byte_pieces_that_the_first_converter_replaced_are_taken_by_their_ids(path: Path, host: Host) -> None:
    first = [b"\xef\xbf\xbd" if len(piece) == 1 and piece[0] > 127 else piece for piece in PIECES]
    old = opened(path, old_file("ggml", 0, pieces=first), host)
    assert old.tokenizer == opened(path.with_name("later.bin"), old_file("ggml", 0), host).tokenizer
    assert old.provenance is not None
    assert old.provenance.era == "10 to 13 March 2023"
    assert any("U+FFFD" in line for line in old.provenance.lacks)
    assert load_tokenizer(path, host).decode(load_tokenizer(path, host).encode("\u4e2d")) == "\u4e2d"


def test_without_scores_they_are_llamas(path: Path, host: Host) -> None:
    vocabulary = opened(path, old_file("ggml", 0), host)
    assert vocabulary.tokenizer.vocabulary is not None
    assert list(vocabulary.tokenizer.vocabulary.scores[256:264]) == [0, 0, 0, -1e9, -1, -2, -3, -4]
    assert vocabulary.provenance is not None
    assert any("scores" in line for line in vocabulary.provenance.lacks)


def test_pieces_that_are_no_byte_pieces_stay_what_they_are(path: Path, host: Host) -> None:
    pieces = [PIECES[0], b"", b"", b"a", b"b", b"\0", b" a", b"<0x41"]
    vocabulary = opened(path, old_file(pieces=pieces), host).tokenizer.vocabulary
    assert vocabulary is not None
    assert list(vocabulary.kinds) == [2, 3, 3, 1, 1, 1, 1, 1]
    assert vocabulary.pieces[6] == "\u2581a".encode()


def test_tokens_that_were_added_are_no_text(path: Path, host: Host) -> None:
    pieces = [*PIECES, b"<|end_of_turn|>", b"[PAD]", b"word", b""]
    scores = [*SCORES, -1000.0, 0.0, -1000.0, -5.0]
    path.write_bytes(old_file(pieces=pieces, scores=scores).data())
    tokenizer = load_tokenizer(path, host)
    first = len(PIECES)
    assert [tokenizer.special(first + i) for i in range(4)] == [True, True, False, True]
    assert tokenizer.encode("<|end_of_turn|>", special=True) == [first]
    assert first not in tokenizer.encode("<|end_of_turn|>")


def long_vocabulary(count: int) -> list[bytes]:
    return [*PIECES, *(b"w%d" % i for i in range(count - len(PIECES)))]


def test_gpt4alls_header_counts_a_piece_that_is_not_there(path: Path, host: Host) -> None:
    whole = old_file("ggml", 0, 2, width=32, forward=32, heads=1, pieces=long_vocabulary(32001))
    found = opened(path, replace(whole, pieces=whole.pieces[:-1], scores=whole.scores[:-1]), host)
    assert host.recognise(path).name == "ggml-llama"
    assert found.tokenizer.vocabulary is not None
    assert len(found.tokenizer.vocabulary.pieces) == 32000
    assert found.config["vocab_size"] == 32001
    assert found.provenance is not None
    assert any("32000" in line for line in found.provenance.lacks)
    with_it = opened(path.with_name("whole.bin"), whole, host)
    assert with_it.tokenizer.vocabulary is not None
    assert len(with_it.tokenizer.vocabulary.pieces) == 32001
    same_weights(found, with_it)


def test_a_vocabulary_alone_is_a_tokenizer(path: Path, host: Host) -> None:
    for sizes in ({}, dict.fromkeys(("n_embd", "n_mult", "n_layer", "n_rot"), 0) | {"n_head": 1}):
        found = opened(path, replace(old_file(), tensors=()).having(**sizes), host)
        assert found.vocabulary_only
        assert load_tokenizer(path, host).encode("Hello", bos=True)[0] == 1


@pytest.mark.parametrize("name", ["ggml-vocab-ggmf1.bin", "ggml-vocab-ggjt1.bin", "ggml-vocab-ggjt1-b.bin"])
def test_real_vocabularies_give_the_ids_of_llamas_own_tokenizer(data: Path, host: Host, name: str) -> None:
    found, own = (load_tokenizer(data / file, host) for file in (f"legacy/{name}", "tokenizers/llama-tokenizer.model"))
    texts = [path.read_text("utf-8", "replace") for path in sorted((data / "texts").glob("*.txt"))]
    pieces = [text[i:i + 200] for text in texts for i in range(0, min(len(text), 20_000), 200)]
    rng = np.random.default_rng(0)
    pieces += ["".join(map(chr, rng.choice([*range(32, 127), *range(0x4e00, 0x4e80), 0x1f600, 9, 10, 32, 32], 60)))
               for _ in range(200)]
    assert len(pieces) > 250
    for text in [*pieces, "", " ", "  a   b\n\n\tc" + " " * 30, "\u00e9\u0301\ufffd\u2581"]:
        ids = own.encode(text, bos=True)
        assert found.encode(text, bos=True) == ids
        assert found.decode(ids) == own.decode(ids)


# Whose file it is.


def test_real_files_are_known_and_those_of_other_programs_are_not(data: Path, host: Host) -> None:
    loader = GgmlLlama()
    files = [path for path in (data / "legacy-models").iterdir() if path.is_file()]
    ours = {path.name for path in files if path.name.startswith(("llama-gg", "rnd-gg")) and ".bin" in path.name}
    assert len(ours) == 24
    for path in files:
        assert loader.recognise(path) == (100 if path.name in ours else 0), path.name
        if path.name in ours:
            assert host.recognise(path).name == "ggml-llama"
    for path in (data / "legacy").glob("*.bin"):
        assert loader.recognise(path) == 100
    for folder in ("chatglm", "tokenizers", "legacy-models"):
        assert not any(loader.recognise(path) for path in [data / folder, *(data / folder).glob("glm*")])


def test_the_same_start_with_other_tensors_is_another_programs(path: Path) -> None:
    for name in ("transformer.word_embeddings.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"):
        file = old_file("ggmf", 1)
        path.write_bytes(change(file, "tok_embeddings.weight", name=name).data())
        assert GgmlLlama().recognise(path) == 0
    path.write_bytes(b"ggml" + struct.pack("<12i", 1, 1, 0, 65024, 4096, 32, 28, 16384, 2048, 1, 2, 3) + bytes(100))
    assert GgmlLlama().recognise(path) == 0


def test_a_truncated_file_is_still_known_and_said_to_be_truncated(path: Path, host: Host) -> None:
    data = old_file("ggjt", 3, 2).data()
    for size in (1000, 3000, len(data) - 1, len(data) // 2):
        said = refusal(path, data[:size], host)
        assert host.recognise(path).name == "ggml-llama"
        assert "truncated" in said or "bytes are left" in said or "outside the file" in said


@pytest.mark.parametrize("content", [b"", b"t", b"tjgg", b"tjgg\3\0\0\0", b"tjgg" + bytes(40), b"lmgg" + bytes(27)])
def test_what_is_too_short_or_of_no_known_version_is_not_ours(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert GgmlLlama().recognise(path) == 0


def test_what_is_no_file_is_not_ours(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("\0")):
        assert GgmlLlama().recognise(path) == 0


# Damage.


@pytest.mark.parametrize("value", [-1, 0, (1 << 31) - 1, -(1 << 31)])
@pytest.mark.parametrize("container", ["ggml", "ggmf", "ggjt"])
def test_a_header_that_claims_anything_allocates_nothing(path: Path, host: Host, container: str, value: int) -> None:
    version = {"ggml": 0, "ggmf": 1, "ggjt": 3}[container]
    start = (4 if container == "ggml" else 8)
    data = old_file(container, version, 0).data()
    vocabulary = start + 28
    first = data.index(b"tok_embeddings") - 20
    for at in (*range(start, vocabulary, 4), vocabulary, vocabulary + 11, *range(first, first + 20, 4)):
        path.write_bytes(data[:at] + struct.pack("<i", value) + data[at + 4:])
        tracemalloc.start()
        try:
            host.recognise(path)
            host.open(path, "ggml-llama")
        except BestiaryError as error:
            assert "\n" not in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 4 << 20


def test_numbers_that_no_model_has_are_refused_by_name(path: Path, host: Host) -> None:
    assert "n_head = 0 in the header; it must be 1 to 65536" in refusal(path, old_file().having(n_head=0), host)
    assert "n_layer = -1 in the header" in refusal(path, old_file().having(n_layer=-1), host)
    assert "claims" in refusal(path, old_file().having(n_vocab=1 << 20), host)


def test_scores_that_are_no_numbers_are_refused(path: Path, host: Host) -> None:
    file = old_file(scores=[*SCORES[:-1], float("nan")])
    assert f"the score of piece {len(PIECES) - 1} is nan" in refusal(path, file, host)


def test_a_version_that_never_was_is_refused(path: Path, host: Host) -> None:
    assert "ggjt file of version 4; of LLaMA, versions 1, 2, 3 are read" in refusal(
        path, replace(old_file(), version=4), host)


@pytest.mark.parametrize(("container", "version", "code"), [
    ("ggml", 0, 4), ("ggmf", 1, 8), ("ggjt", 1, 9), ("ggjt", 2, 4), ("ggjt", 2, 12), ("ggjt", 3, 5), ("ggjt", 3, 15)])
def test_a_type_that_the_container_never_had_is_refused(path: Path, host: Host, container: str, version: int,
                                                        code: int) -> None:
    file = change(old_file(container, version), "output.weight", code=code)
    assert f"tensor output.weight is of type {code}; known in {container}" in refusal(path, file, host)


def test_super_blocks_of_64_are_refused_in_words(path: Path, host: Host) -> None:
    file = old_file("ggjt", 3, 12, width=256, forward=256)
    small = change(file, "output.weight", data=bytes(38 * 4 * len(PIECES)))  # 38 bytes for 64 weights
    said = refusal(path, small, host)
    assert "no tensor begins" in said or "lies outside" in said
    assert "QK_K = 64" in said
    shapes = change(file, "layers.0.attention.wo.weight", shape=(512, 128))
    assert "q4_k, with rows of 128 weights; builds" in refusal(path, shapes, host)


def test_rows_that_no_block_divides_are_refused(path: Path, host: Host) -> None:
    file = change(old_file("ggjt", 3, 2), "output.weight", shape=(len(PIECES) * 4, 16))
    assert "tensor output.weight has rows of 16 weights" in refusal(path, file, host)


def test_a_tensor_that_is_not_llamas_is_refused(path: Path, host: Host) -> None:
    path.write_bytes(change(old_file(), "norm.weight", name="norm.bias").data())
    with pytest.raises(BestiaryError, match=r"does not know tensor norm\.bias"):
        bestiary.load(path, host=host)


def test_the_writer_writes_every_type(host: Host) -> None:
    assert {kind: set(codes) for kind, codes in BLOCKS.items()} == {kind: set(codes) for kind, codes in NAMES.items()}
