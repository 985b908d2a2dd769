"""Vocabulary-only files load as checkpoints without tensors; the tokenizer files of a folder are gathered."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from bestiary import BestiaryError
from bestiary.loader import Loader
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.loaders.tokenizer_files import folder_material
from bestiary_plugins.loaders.vocabulary_files import (
    Llama2cVocabularyFile,
    RankListFile,
    SentencePieceFile,
    TokenizerJsonFile,
    read_llama2c_vocabulary,
)

LOADERS: tuple[Loader, ...] = (SentencePieceFile(), TokenizerJsonFile(), Llama2cVocabularyFile())


class Llama2c:
    """llama2.c's own encoding, as run.c has it: pieces of the text's characters, then again and again the neighbours
    whose joint piece has the highest score, the leftmost of equals."""

    def __init__(self, path: Path) -> None:
        data, at = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while at < len(data):
            score, size = struct.unpack_from("<fi", data, at)
            self.scores.append(score)
            self.pieces.append(data[at + 8:at + 8 + size])
            at += 8 + size
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        ids = [self.ids[b" "]] if text else []
        for char in text:
            piece = char.encode()
            ids += [self.ids[piece]] if piece in self.ids else [byte + 3 for byte in piece]
        while True:
            best, where = -1e10, None
            for i, (left, right) in enumerate(zip(ids, ids[1:], strict=False)):
                joint = self.ids.get(self.pieces[left] + self.pieces[right])
                if joint is not None and self.scores[joint] > best:
                    best, where = self.scores[joint], (i, joint)
            if where is None:
                return ids
            ids[where[0]:where[0] + 2] = [where[1]]


def test_llama2cs_vocabulary_gives_the_ids_of_llama2c(data: Path, texts: list[str]) -> None:
    path = data / "tiny-llama" / "tok512.bin"
    original = Llama2c(path)
    tokenizer = build_tokenizer(Llama2cVocabularyFile().open(path, None).tokenizer, {})  # type: ignore[arg-type]
    assert (tokenizer.size, tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (512, 1, 2, True)
    for text in texts:
        assert tokenizer.encode(text) == original.encode(text), repr(text)
        assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text
    assert tokenizer.encode("<s>", special=True) == [1] and tokenizer.encode("\n<s>\n") == original.encode("\n<s>\n")


def test_each_file_is_recognised_by_its_loader_alone(data: Path, tmp_path: Path, small_json: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "empty").write_bytes(b"")
    files = {data / "tokenizers" / "llama-tokenizer.model": 0,
             data / "tokenizers" / "chinese-alpaca-tokenizer.model": 0,
             data / "tokenizers" / "chatglm-6b-ice_text.model": 0, data / "tokenizers" / "falcon-tokenizer.json": 1,
             tmp_path / "tokenizer.json": 1, data / "tiny-llama" / "tok512.bin": 2,
             data / "tiny-llama" / "stories260K.bin": None, data / "tiny-llama" / "llama-2-tiny-random.gguf": None,
             tmp_path / "config.json": None, tmp_path / "empty": None, tmp_path / "absent": None, tmp_path: None}
    for path, expected in files.items():
        sure = [loader.recognise(path) for loader in LOADERS]
        assert [i for i, value in enumerate(sure) if value > 0] == ([] if expected is None else [expected]), path


def test_vocabulary_only_checkpoints_pickle_and_build(data: Path, host: Any) -> None:
    for loader, name in zip(LOADERS, ("tokenizers/llama-tokenizer.model", "tokenizers/falcon-tokenizer.json",
                                      "tiny-llama/tok512.bin"), strict=True):
        checkpoint = loader.open(data / name, host)
        assert not checkpoint.tensors and checkpoint.config == {}
        again = pickle.loads(pickle.dumps(checkpoint))
        assert build_tokenizer(again.tokenizer, {}).size == build_tokenizer(checkpoint.tokenizer, {}).size


def test_a_list_of_ranks_that_no_family_knows_is_named(data: Path) -> None:
    path = data / "tokenizers" / "llama3-tokenizer.model"
    assert SentencePieceFile().recognise(path) == 0 and RankListFile().recognise(path) > 0
    with pytest.raises(BestiaryError, match="tiktoken"):
        build_tokenizer(RankListFile().open(path, None).tokenizer, {})  # type: ignore[arg-type]


def test_a_damaged_llama2c_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    good = (data / "tiny-llama" / "tok512.bin").read_bytes()
    path = tmp_path / "tok512.bin"
    for bad in (good[:-1], good + b"\x00", good[:4], b"", good[:4] + struct.pack("<fi", 0.0, -1),
                good[:4] + struct.pack("<fi", float("nan"), 1) + b"a", good[:8] + b"\xff\xff\xff\x7f" + good[12:]):
        path.write_bytes(bad)
        assert Llama2cVocabularyFile().recognise(path) == 0
        with pytest.raises(BestiaryError):
            read_llama2c_vocabulary(path)
    with pytest.raises(BestiaryError):
        read_llama2c_vocabulary(tmp_path / "absent")


def test_a_folders_files_are_gathered(tmp_path: Path, small_model: bytes) -> None:
    assert folder_material(tmp_path).empty
    (tmp_path / "tokenizer.model").write_bytes(small_model)
    for name, content in {
            "config.json": {"bos_token_id": 1, "eos_token_id": [2, 5]},
            "generation_config.json": {"eos_token_id": [7, 2]},
            "tokenizer_config.json": {"add_bos_token": True, "add_eos_token": False, "chat_template": [
                {"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]}}.items():
        (tmp_path / name).write_text(json.dumps(content))
    material = folder_material(tmp_path)
    assert (material.bos, material.eos, material.add_bos, material.add_eos) == (1, 2, True, False)
    assert set(material.ends) == {2, 5, 7} and material.chat_template == "D"
    assert set(material.files) == {"tokenizer.model", "tokenizer_config.json"}
    assert build_tokenizer(material, {}).ends == {2, 5, 7}
    (tmp_path / "chat_template.jinja").write_text("J")
    assert folder_material(tmp_path).chat_template == "J"
    (tmp_path / "config.json").write_text('{"bos_token_id": -1, "eos_token_id": null}')
    (tmp_path / "generation_config.json").unlink()
    material = folder_material(tmp_path)
    assert material.bos is None and material.eos is None and material.ends == ()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BestiaryError, match="config.json cannot be read as JSON"):
        folder_material(tmp_path)
