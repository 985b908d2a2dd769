"""GGUF versions 1 and 2 with the quirks of their first days, and models split into several files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.host import Host
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.loaders.gguf import open_gguf
from bestiary_plugins.loaders.gguf_header import read_header

PIECES = ["\u2581\u2047\u2581", "", "", *(f"<0x{i:X}>" for i in range(256)), "\u2581", "a", "\u2581a"]
KINDS = [1, 3, 3, *[6] * 256, 1, 1, 1]


def old(version: int, nul: bytes = b"", pieces: list[str] = PIECES, kinds: list[int] = KINDS) -> bytes:
    """A file as the first programs wrote it. nul: what they counted at the end of every string."""
    count = struct.Struct("<I" if version == 1 else "<Q").pack

    def text(value: str) -> bytes:
        data = value.encode() + nul
        return count(len(data)) + data

    def key(name: str, code: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", code) + value

    def array(code: int, length: int, values: bytes) -> bytes:
        return struct.pack("<I", code) + count(length) + values

    keys = [key("general.architecture", 8, text("llama")), key("llama.block_count", 4, struct.pack("<I", 1)),
            key("tokenizer.ggml.model", 8, text("llama")),
            key("tokenizer.ggml.tokens", 9, array(8, len(pieces), b"".join(map(text, pieces)))),
            key("tokenizer.ggml.scores", 9, array(6, len(pieces), np.arange(len(pieces), dtype="<f4").tobytes())),
            key("tokenizer.ggml.token_type", 9, array(5, len(kinds), np.array(kinds, "<i4").tobytes()))]
    tensors = [text("token_embd.weight") + struct.pack("<I", 2) + count(4) + count(2) + struct.pack("<IQ", 0, 0)]
    header = b"GGUF" + struct.pack("<I", version) + count(len(tensors)) + count(len(keys)) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32) + np.arange(8, dtype="<f4").tobytes()


@pytest.mark.parametrize("nul", [b"", b"\0"], ids=["plain", "counted NULs"])
@pytest.mark.parametrize("version", [1, 2])
def test_old_versions_are_read(tmp_path: Path, host: Host, version: int, nul: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(old(version, nul))
    checkpoint = open_gguf(path, host)
    assert checkpoint.config["num_hidden_layers"] == 1
    assert checkpoint.tensors["token_embd.weight"].array().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert checkpoint.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_file_cut_off_anywhere_is_refused(tmp_path: Path, host: Host, version: int) -> None:
    path = tmp_path / "x.gguf"
    content = old(version, b"\0", PIECES[:6], KINDS[:6])
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(BestiaryError):
            open_gguf(path, host)


def test_one_nul_is_taken_off_and_only_where_the_whole_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    odd = ["<unk>", "a\0", "\0", "b"]
    for nul in (b"", b"\0"):
        path.write_bytes(old(2, nul, odd, [2, 1, 1, 1]))
        assert read_header(DataFile(path)).metadata.strings("tokenizer.ggml.tokens") == [p.encode() for p in odd]


def test_the_vocabulary_of_the_first_day_is_spelled_as_since(tmp_path: Path, host: Host) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(old(1))
    material = open_gguf(path, host).tokenizer
    vocabulary = material.vocabulary
    assert vocabulary is not None
    assert vocabulary.pieces[:3] == [b"<unk>", b"<s>", b"</s>"]
    assert list(vocabulary.kinds[:4]) == [2, 3, 3, 6]
    assert vocabulary.pieces[3:259] == [b"<0x%02X>" % i for i in range(256)]
    assert (material.bos, material.eos) == (1, 2)
    tokenizer = build_tokenizer(material, {})
    assert tokenizer.encode("a\n", bos=True) == [1, 261, 3 + 10]
    assert tokenizer.decode([261, 3 + 10, 3 + 255]) == "a\n\ufffd"


def test_pieces_that_only_look_like_bytes_are_left_alone(tmp_path: Path, host: Host) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(old(1, b"", ["<unk>", "<s>", "</s>", "<0xA>", "<0xG>"], [2, 3, 3, 1, 6]))
    vocabulary = open_gguf(path, host).tokenizer.vocabulary
    assert vocabulary is not None
    assert vocabulary.pieces[3:] == [b"<0xA>", b"<0xG>"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_big_endian_files_are_refused_in_words(tmp_path: Path, host: Host, version: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", version, 0, 0))
    with pytest.raises(BestiaryError, match="is a big-endian GGUF file, which is not read; little-endian ones are"):
        open_gguf(path, host)


ARRAYS = {f"blk.{i}.ffn_norm.weight": np.full(32, i, np.float32) for i in range(5)}


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """By the `gguf` package, two tensors a file; the first shard has the metadata."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(5)
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return paths


def test_a_split_model_is_opened_from_its_first_file(split: list[Path], host: Host) -> None:
    checkpoint = host.open(split[0])
    assert {name: tensor.array().tolist() for name, tensor in checkpoint.tensors.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()}
    assert checkpoint.config["num_hidden_layers"] == 5
    assert not any(key.startswith("split.") for key in checkpoint.metadata)


@pytest.mark.parametrize("part", [1, 2])
def test_another_file_of_a_split_model_names_the_first(split: list[Path], host: Host, part: int) -> None:
    with pytest.raises(BestiaryError, match=f"is part {part + 1} of .* 3 files; open the first: {split[0].name}"):
        host.open(split[part])
    renamed = split[part].rename(split[part].with_name("y.gguf"))
    with pytest.raises(BestiaryError, match="open the first: the one that ends in -00001-of-00003.gguf"):
        host.open(renamed)


@pytest.mark.parametrize("part", [1, 2])
def test_a_missing_file_of_a_split_model_is_named(split: list[Path], host: Host, part: int) -> None:
    split[part].unlink()
    with pytest.raises(BestiaryError, match=f"the first of 3 files of one model; {split[part].name} is missing"):
        host.open(split[0])


def test_a_first_file_under_another_name_says_what_it_must_be_called(split: list[Path], host: Host) -> None:
    for name in ("x.gguf", "m-00001-of-00004.gguf", "m-00002-of-00003.gguf"):
        renamed = split[0].replace(split[0].with_name(name))
        with pytest.raises(BestiaryError, match=r"must end in -00001-of-00003\.gguf"):
            host.open(renamed)
        renamed.rename(split[0])


def test_a_file_of_another_model_is_refused(split: list[Path], host: Host) -> None:
    content = split[1].read_bytes()
    split[1].write_bytes(split[2].read_bytes())
    with pytest.raises(BestiaryError, match="does not say that it is part 2 of 3; it belongs to another model"):
        host.open(split[0])
    split[1].write_bytes(content.replace(b"blk.2", b"blk.0"))
    with pytest.raises(BestiaryError, match=r"holds tensor blk.0.ffn_norm.weight, which a part before it holds too"):
        host.open(split[0])


@pytest.mark.parametrize("total", [0, 4, 6])
def test_a_count_of_tensors_that_is_wrong_is_refused(split: list[Path], host: Host, total: int) -> None:
    content = split[0].read_bytes()
    at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    split[0].write_bytes(content[:at] + struct.pack("<i", total) + content[at + 4:])
    with pytest.raises(BestiaryError, match=rf"split.tensors.count is {total}; the 3 parts hold 5 tensors"):
        host.open(split[0])
