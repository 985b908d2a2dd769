"""Tokenizers without a model: vocabulary-only files as checkpoints with no tensors."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary.rank_list import is_rank_list

if TYPE_CHECKING:
    from bestiary.host import Host

MAX_FILE = 64 << 20
MAX_LLAMA2C_PIECE = 1 << 12


def open_file(path: Path, name: str) -> Checkpoint:
    """The checkpoint of a tokenizer's own file, under the name it has in a folder."""
    file = DataFile(path)
    if file.size > MAX_FILE:
        raise BestiaryError(f"{path}: {file.size} bytes; a tokenizer file has at most {MAX_FILE}")
    material = TokenizerMaterial(files={name: file.read(0, file.size, "the tokenizer")})
    return Checkpoint(path, {}, {}, CANONICAL, material, source=(open_file, (path, name)))


def open_llama2c(path: Path) -> Checkpoint:
    """The checkpoint of llama2.c's tokenizer file. The format is fixed to bos 1 and eos 2, like its program."""
    vocabulary = read_llama2c_vocabulary(path)
    material = TokenizerMaterial(vocabulary=vocabulary, bos=1, eos=2) if len(vocabulary.pieces) > 2 else (
        TokenizerMaterial(vocabulary=vocabulary))
    return Checkpoint(path, {}, {}, CANONICAL, material, source=(open_llama2c, (path,)))


def read_llama2c_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of llama2.c's tokenizer file. Raises BestiaryError for a damaged one.

    Layout (llama2.c, tokenizer.py, export): u32 longest piece in bytes; then a piece: f32 score, i32 bytes, bytes.
    Nothing says how many; they reach to the end. The exporter wrote sentencepiece's pieces with a space for each
    U+2581, and ids 1 and 2 as "\\n<s>\\n" and "\\n</s>\\n".
    """
    file = DataFile(path)
    if file.size > MAX_FILE:
        raise BestiaryError(f"{path}: {file.size} bytes; a tokenizer file has at most {MAX_FILE}")
    entries = walk_llama2c(file.read(0, file.size, "the vocabulary"))
    if entries is None:
        raise BestiaryError(f"{path} is no llama2.c tokenizer, or it is truncated or damaged")
    pieces, kinds = [], []
    for i, (_, piece) in enumerate(entries):
        name = piece.strip() if i in (1, 2) else piece
        byte = len(piece) == 6 and piece[:3] == b"<0x" and piece[5:] == b">"
        kinds.append(2 if i == 0 else 3 if i in (1, 2) else 6 if byte else 1)
        pieces.append(name.replace(b" ", "\u2581".encode()))
    return Vocabulary("bpe", pieces, [score for score, _ in entries], kinds, unknown=0)


def walk_llama2c(data: bytes) -> list[tuple[float, bytes]] | None:
    """(score, piece) of each, or None where the bytes are not exactly such a file."""
    if len(data) < 4:
        return None
    (longest,) = struct.unpack_from("<I", data)
    entries, at = [], 4
    while at + 8 <= len(data):
        score, size = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= size <= min(longest, MAX_LLAMA2C_PIECE, len(data) - at) or not math.isfinite(score):
            return None
        entries.append((score, data[at:at + size]))
        at += size
    return entries if entries and at == len(data) else None


def _start(path: Path, count: int) -> bytes:
    """The first bytes of a file; empty where there is none to read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


class SentencePieceFile(Loader):
    """A sentencepiece model."""

    name = "sentencepiece"

    def recognise(self, path: Path) -> int:
        start = _start(path, 1024)
        named = path.suffix == ".model"
        # a record of field 1, in which field 1 is the piece and field 2, a float, its score
        size = start[3] if len(start) > 3 else 0
        if start[:1] != b"\n" or start[2:3] != b"\n" or size > 100 or start[4 + size:5 + size] != b"\x15":
            return 0
        return 90 if named else 70

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_file(path, "tokenizer.model")


class RankListFile(Loader):
    """A list of BPE ranks in tiktoken's form. Which family's it is, and so its rules, its size says."""

    name = "tiktoken"

    def recognise(self, path: Path) -> int:
        return 90 if is_rank_list(_start(path, 4096)) else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_file(path, "tokenizer.model")


class TokenizerJsonFile(Loader):
    """A tokenizer.json."""

    name = "tokenizer.json"

    def recognise(self, path: Path) -> int:
        start = _start(path, 4096).lstrip()
        keys = sum(f'"{key}"'.encode() in start for key in ("truncation", "padding", "added_tokens", "model"))
        return 0 if not start.startswith(b"{") or keys < 2 else 90 if path.suffix == ".json" else 70

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_file(path, "tokenizer.json")


class Llama2cVocabularyFile(Loader):
    """llama2.c's tokenizer file: no magic, so the whole of it must make sense."""

    name = "llama2c-tokenizer"

    def recognise(self, path: Path) -> int:
        start = _start(path, 1024)
        if len(start) < 12 or not 1 <= int.from_bytes(start[:4], "little") <= MAX_LLAMA2C_PIECE:
            return 0
        if int.from_bytes(start[8:12], "little") > MAX_LLAMA2C_PIECE:
            return 0
        data = _start(path, MAX_FILE + 1)
        return 80 if len(data) <= MAX_FILE and walk_llama2c(data) is not None else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_llama2c(path)
