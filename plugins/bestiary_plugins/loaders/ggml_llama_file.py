"""One file of LLaMA in ggml, ggmf or ggjt: its header, its vocabulary and its tensors, unread."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bestiary.encoding import F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.table_tokenizer import MAX_PIECES
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import (
    K_QUANTS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_0_V1,
    Q4_0_V2,
    Q4_1,
    Q4_1_V1,
    Q4_1_V2,
    Q4_2,
    Q4_3,
    Q4_K,
    Q5_0,
    Q5_0_V1,
    Q5_1,
    Q5_1_V1,
    Q5_K,
    Q6_K,
    Q8_0,
    Q8_0_V1,
)
from bestiary_plugins.loaders.cursor import Cursor
from bestiary_plugins.loaders.ggml_container import Entry, Start, read_entries, read_entry, read_start, read_vocabulary
from bestiary_plugins.loaders.ggml_llama_vocabulary import LLAMA
from bestiary_plugins.loaders.planar_rows import PLANES, PlanarRows, is_planar

FIRST = {0: F32, 1: F16, 2: Q4_0_V1, 3: Q4_1_V1}
THIRD = {0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0}
TYPES: Mapping[tuple[str, int], Mapping[int, Encoding]] = {
    ("ggml", 0): FIRST, ("ggmf", 1): FIRST,
    ("ggjt", 1): {**FIRST, 4: Q4_2, 5: Q4_3, 6: Q5_0_V1, 7: Q5_1_V1, 8: Q8_0_V1},
    ("ggjt", 2): {**THIRD, 2: Q4_0_V2, 3: Q4_1_V2, 8: Q8_0_V1},
    ("ggjt", 3): {**THIRD, 10: Q2_K, 11: Q3_K, 12: Q4_K, 13: Q5_K, 14: Q6_K}}
"""Container and version -> a tensor's type code -> its encoding. The codes stayed while what they mean changed."""
EARLY_Q8_0 = (7, 6)
"""A file's type and a tensor's code: on 25 April 2023 the code of Q8_0 was that of Q5_0 since."""
FIELDS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
LIMITS = (MAX_PIECES, 1 << 20, (1 << 31) - 1, 1 << 16, 1 << 12, (1 << 31) - 1, 1 << 10)
"""The largest that makes sense, field by field; nothing says what n_mult and n_rot are for any more."""
FIRST_N_ROT = 64
"""What the first converter wrote for it, whatever the model."""
SMALL_SUPER_BLOCKS = ("builds of llama.cpp with super-blocks of 64 weights (QK_K = 64) wrote such files, and only "
                      "those of 256 are read")
GPT4ALL = LLAMA + 1
"""GPT4All's header counts a row for padding that its vocabulary has no piece for."""


class Head(NamedTuple):
    """The first words, and where the vocabulary begins."""

    start: Start
    n_vocab: int
    n_embd: int
    n_mult: int
    n_head: int
    n_layer: int
    n_rot: int
    ftype: int
    offset: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return self[1:8]

    @property
    def kind(self) -> tuple[str, int]:
        return self.start.container, self.start.version

    @property
    def alignment(self) -> int:
        return 32 if self.start.container == "ggjt" else 1

    @property
    def likely(self) -> bool:
        """Whether the numbers fit together as LLaMA's do."""
        return self.n_embd % self.n_head == 0 and self.n_rot in (self.n_embd // self.n_head, FIRST_N_ROT)


class Words(NamedTuple):
    """The vocabulary as it stands there, and where the tensors begin."""

    pieces: list[bytes]
    scores: list[float]
    offset: int


class Part(NamedTuple):
    """One file of a model. codes: type codes of the tensors. planar: whether rows are planes."""

    file: DataFile
    head: Head
    words: Words
    tensors: dict[str, Tensor]
    codes: dict[str, int]
    planar: bool


def read_head(file: DataFile) -> Head | None:
    """None where the file begins otherwise."""
    start = read_start(file)
    if start is None or (start.container, start.version) not in TYPES or file.size - start.offset < 28:
        return None
    return Head._make((start, *struct.unpack("<7i", file.read(start.offset, 28)), start.offset + 28))


def wrong_sizes(head: Head) -> str | None:
    """The first of the numbers that no model has, in words."""
    for name, value, most in zip(FIELDS, head.sizes, LIMITS, strict=True):
        least = int(name in ("n_vocab", "n_head"))  # files of a vocabulary alone have 0 for the rest
        if not least <= value <= most:
            return f"{name} = {value} in the header; it must be {least} to {most}"
    return None


def read_words(file: DataFile, head: Head) -> Words:
    cursor, scored = Cursor(file), head.start.container != "ggml"
    cursor.take(head.offset, "the header")
    if not scored and head.n_vocab == GPT4ALL:
        pieces, _ = read_vocabulary(cursor, LLAMA, scored)
        if read_entry(file, cursor.offset) is None:  # no tensor yet: the piece is there
            pieces += read_vocabulary(cursor, 1, scored)[0]
        return Words(pieces, [], cursor.offset)
    pieces, scores = read_vocabulary(cursor, head.n_vocab, scored)
    return Words(pieces, scores, cursor.offset)


def open_part(path: Path) -> Part:
    """One file, its tensors unread."""
    file = DataFile(path)
    head = read_head(file)
    if head is None:
        start = read_start(file)
        if start is not None and (start.container, start.version) not in TYPES:
            versions = [str(version) for name, version in TYPES if name == start.container]
            known = f"versions {', '.join(versions)} are read" if versions else "there are no such files"
            raise BestiaryError(f"{path} is a {start.container} file of version {start.version}; of LLaMA, {known}")
        raise BestiaryError(f"{path} is no LLaMA file of llama.cpp before GGUF, or it is truncated")
    if wrong := wrong_sizes(head):
        raise BestiaryError(f"{path}: {wrong}")
    words = read_words(file, head)
    tensors, codes = dict[str, Tensor](), dict[str, int]()
    try:
        for entry, encoding in read_entries(file, words.offset, head.alignment,
                                            lambda entry: encoding_of(entry, head, path)):
            tensors[entry.name] = FileTensor(file, entry.offset, entry.shape, encoding, entry.name)
            codes[entry.name] = entry.code
    except BestiaryError as error:
        raise BestiaryError(f"{error}{small_super_blocks(tensors)}") from None
    found = planar_names(head, tensors)
    tensors = {name: PlanarRows(tensor) if name in found else tensor for name, tensor in tensors.items()}
    return Part(file, head, words, tensors, codes, bool(found))


def encoding_of(entry: Entry, head: Head, path: Path) -> Encoding:
    types = TYPES[head.kind]
    encoding = Q8_0_V1 if (head.ftype, entry.code) == EARLY_Q8_0 and head.kind == ("ggjt", 1) else types.get(entry.code)
    if encoding is None:
        raise BestiaryError(f"{path}: tensor {entry.name} is of type {entry.code}; known in {spelled(head)}: "
                            + ", ".join(f"{code} ({one.name})" for code, one in types.items()))
    if encoding in K_QUANTS and not encoding.fits(entry.shape[-1]):
        raise BestiaryError(f"{path}: tensor {entry.name} is {encoding.name}, with rows of {entry.shape[-1]} "
                            f"weights; {SMALL_SUPER_BLOCKS}")
    return encoding


def small_super_blocks(tensors: Mapping[str, Tensor]) -> str:
    """What a walk that stopped behind a tensor with super-blocks may mean."""
    last = next(reversed(list(tensors.values())), None)
    return f"; or {SMALL_SUPER_BLOCKS}" if last is not None and last.encoding in K_QUANTS else ""


def planar_names(head: Head, tensors: Mapping[str, Tensor]) -> set[str]:
    """The tensors whose rows are planes. Only files without a version have such."""
    names = set[str]()
    if head.start.container == "ggml":
        for encoding in PLANES:
            alike = {name: tensor for name, tensor in tensors.items() if tensor.encoding.name == encoding}
            if is_planar(alike.values()):
                names |= alike.keys()
    return names


def spelled(head: Head) -> str:
    return f"{head.start.container} v{head.start.version}" if head.start.version else "ggml without a version"
