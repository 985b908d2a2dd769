"""LLaMA in the files of llama.cpp before GGUF: ggml (without a version), ggmf, and ggjt 1 to 3, of March to August 2023.

A start, seven i32, the vocabulary, and tensors to the end of the file, in Meta's names and row order. Until the end of
March 2023 the larger models were in several files, as Meta's own: `name`, `name.1`, `name.2` ...
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.checkpoint import Checkpoint, Provenance, TokenizerMaterial
from bestiary.encoding import F16, F32, Encoding
from bestiary.errors import BestiaryError, short
from bestiary.files import DataFile, FileTensor
from bestiary.loader import Loader
from bestiary.table_tokenizer import MAX_PIECES
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import (
    K_QUANTS,
    OF_SPRING_2023,
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
from bestiary_plugins.loaders.ggml_container import (
    Entry,
    Start,
    read_entries,
    read_entry,
    read_start,
    read_vocabulary,
)
from bestiary_plugins.loaders.ggml_llama_vocabulary import LLAMA, is_llamas, rebuilt
from bestiary_plugins.loaders.meta import joined
from bestiary_plugins.loaders.planar_rows import PLANES, Planar, in_planes

if TYPE_CHECKING:
    from bestiary.host import Host

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
ERAS = {
    ("ggml", 0): "10 to 20 March 2023; alpaca.cpp's and GPT4All's later too",
    ("ggmf", 1): "20 to 30 March 2023",
    ("ggjt", 1): "30 March to 11 May 2023; unquantized ones until August",
    ("ggjt", 2): "12 to 19 May 2023",
    ("ggjt", 3): "19 May to 21 August 2023",
}
FIELDS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
LIMITS = (MAX_PIECES, 1 << 20, (1 << 31) - 1, 1 << 16, 1 << 12, (1 << 31) - 1, 1 << 10)
"""The largest that makes sense, field by field; nothing says what n_mult and n_rot are for any more."""
FIRST_N_ROT = 64
"""What the first converter wrote for it, whatever the model."""
GPT4ALL = LLAMA + 1
"""GPT4All's header counts a row for padding that its vocabulary has no piece for."""
TENSOR = re.compile(r"(tok_embeddings|norm|output|layers\.[0-9]+\.(attention\.w[qkvo]|attention_norm|ffn_norm|"
                    r"feed_forward\.w[123]))\.weight|rope\.freqs")
PART = re.compile(r"(.+)\.([1-9][0-9]?)", re.DOTALL)
EMBEDDING, KEYS, GATE = "tok_embeddings.weight", "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"

CONTEXT, EPS, THETA = 2048, 1e-6, 10000.0
"""Of LLaMA 1. Nothing tells LLaMA 2 from it but heads that share keys."""
SHARED_CONTEXT, SHARED_EPS = 4096, 1e-5


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


class GgmlLlama(Loader):
    """A single file, or the first of several."""

    name, encodings = "ggml-llama", (*OF_SPRING_2023, *K_QUANTS)

    def recognise(self, path: Path) -> int:
        try:
            file = DataFile(path)
            head = read_head(file)
            return 0 if head is None or wrong_sizes(head) else sureness(file, head)
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_ggml_llama(path)


def read_head(file: DataFile) -> Head | None:
    """None where the file begins otherwise."""
    start = read_start(file)
    if start is None or (start.container, start.version) not in TYPES or file.size - start.offset < 28:
        return None
    return Head(start, *struct.unpack("<7i", file.read(start.offset, 28)), offset=start.offset + 28)


def wrong_sizes(head: Head) -> str | None:
    """The first of the numbers that no model has, in words."""
    for name, value, most in zip(FIELDS, head.sizes, LIMITS, strict=True):
        least = int(name in ("n_vocab", "n_head"))  # files of a vocabulary alone have 0 for the rest
        if not least <= value <= most:
            return f"{name} = {value} in the header; it must be {least} to {most}"
    return None


def sureness(file: DataFile, head: Head) -> int:
    """Other programs put numbers of their own behind the same magic: what they wrote looks like a vocabulary and a
    tensor of LLaMA's only where it is one."""
    damaged = 30 * head.likely  # opening it says what is wrong
    try:
        words = read_words(file, head)
    except BestiaryError:
        return damaged
    entry = read_entry(file, words.offset, head.alignment)
    if entry is not None:
        return 100 if TENSOR.fullmatch(entry.name) else 0
    return 100 if words.offset == file.size and is_llamas(words.pieces) else damaged


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


def open_ggml_llama(path: Path) -> Checkpoint:
    """The checkpoint of the file and of those that belong to it; one without tensors is a tokenizer. Raises
    BestiaryError for what is damaged, missing or not understood."""
    first = open_part(path)
    parts = [first, *other_parts(first)]
    count, words = len(first.words.pieces), rebuilt(first.words.pieces, first.words.scores)
    lacks = words.lacks
    if first.head.n_vocab > count:
        lacks = (*lacks, f"the piece of id {count}, which GPT4All had for padding")
    bos, eos = (1, 2) if count > 2 else (None, None)
    material = TokenizerMaterial(vocabulary=words.vocabulary, bos=bos, eos=eos, add_bos=True)
    tensors, config, assumed = dict[str, Tensor](), dict[str, Any](), dict[str, Any]()
    if first.tensors:
        tensors = join_parts(path, parts)
        config, assumed = config_of(first.head, tensors)
    origin = Provenance("llama.cpp", era_of(first, words.replaced), container_of(parts), assumed, lacks)
    return Checkpoint(path, {**config, **assumed}, tensors, "meta", material, source=(open_ggml_llama, (path,)),
                      provenance=origin)


def open_part(path: Path) -> Part:
    """One file, its tensors unread."""
    file = DataFile(path)
    head = read_head(file)
    if head is None:
        start = read_start(file)
        if start is not None and (start.container, start.version) not in TYPES:
            versions = [str(version) for name, version in TYPES if name == start.container] or ["none"]
            raise BestiaryError(f"{path} is a {start.container} file of version {start.version}; of LLaMA, versions "
                                f"{', '.join(versions)} are read")
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
    tensors = {name: Planar(tensor) if name in found else tensor for name, tensor in tensors.items()}
    return Part(file, head, words, tensors, codes, bool(found))


def encoding_of(entry: Entry, head: Head, path: Path) -> Encoding:
    types = TYPES[head.kind]
    encoding = Q8_0_V1 if (head.ftype, entry.code) == EARLY_Q8_0 and head.kind == ("ggjt", 1) else types.get(entry.code)
    if encoding is None:
        raise BestiaryError(f"{path}: tensor {short(entry.name)} is of type {entry.code}; known in {spelled(head)}: "
                            + ", ".join(f"{code} ({one.name})" for code, one in types.items()))
    if encoding in K_QUANTS and not encoding.fits(entry.shape[-1]):
        raise BestiaryError(f"{path}: tensor {short(entry.name)} is {encoding.name}, with rows of {entry.shape[-1]} "
                            f"weights; {SMALL_SUPER_BLOCKS}")
    return encoding


SMALL_SUPER_BLOCKS = "builds of llama.cpp with super-blocks of 64 weights (QK_K = 64) wrote such files, and only those " \
                     "of 256 are read"


def small_super_blocks(tensors: Mapping[str, Tensor]) -> str:
    """What a walk that stopped behind a tensor with super-blocks may mean."""
    last = next(reversed(tensors.values()), None)
    return f"; or {SMALL_SUPER_BLOCKS}" if last is not None and last.encoding in K_QUANTS else ""


def planar_names(head: Head, tensors: Mapping[str, Tensor]) -> set[str]:
    """The tensors whose rows are planes. Only files without a version have such."""
    names = set[str]()
    if head.start.container == "ggml":
        for encoding in PLANES:
            alike = {name: tensor for name, tensor in tensors.items() if tensor.encoding.name == encoding}
            if in_planes(list(alike.values())):
                names |= alike.keys()
    return names


def other_parts(first: Part) -> list[Part]:
    """The other files of a model in several, in order. Raises BestiaryError where one is missing or another's, or the
    file is not the first."""
    path, width = first.file.path, first.head.n_embd
    embedding = first.tensors.get(EMBEDDING)
    if embedding is None or embedding.columns == width or first.head.start.container == "ggjt":
        return []
    if embedding.columns > width or width % embedding.columns:
        raise BestiaryError(f"{path}: {EMBEDDING} has rows of {embedding.columns} weights, which do not divide "
                            f"n_embd = {width}")
    count, named = width // embedding.columns, PART.fullmatch(path.name)
    if named and int(named[2]) < count and path.with_name(named[1]).is_file():
        raise BestiaryError(f"{path} is part {int(named[2]) + 1} of a model in {count} files; open the first: "
                            f"{named[1]}")
    parts = []
    for i in range(1, count):
        other = path.with_name(f"{path.name}.{i}")
        if not other.is_file():
            raise BestiaryError(f"{path} is the first of {count} files of one model; {other.name} is missing")
        parts.append(open_part(other))
        check_same(first, parts[-1])
    return parts


def check_same(first: Part, other: Part) -> None:
    """Raises BestiaryError where two files are no parts of one model."""
    one, two = first.file.path.name, other.file.path
    for name, mine, theirs in zip(FIELDS, first.head.sizes, other.head.sizes, strict=True):
        if mine != theirs:
            raise BestiaryError(f"{two}: {name} = {theirs} in the header, {mine} in that of {one}; they do not belong "
                                "together")
    if first.head.kind != other.head.kind or first.words[:2] != other.words[:2]:
        what = "vocabularies" if first.head.kind == other.head.kind else "kinds of file"
        raise BestiaryError(f"{two} and {one} are of different {what}; they do not belong together")
    if different := sorted(first.tensors.keys() ^ other.tensors.keys()):
        raise BestiaryError(f"{two}: only one of it and {one} holds tensor {short(different[0])}; they do not belong "
                            "together")
    for name, tensor in first.tensors.items():
        its = other.tensors[name]
        if (tensor.shape, first.codes[name]) != (its.shape, other.codes[name]):
            raise BestiaryError(f"{two}: tensor {short(name)} has shape {list(its.shape)} and type {other.codes[name]}; "
                                f"in {one} it is {list(tensor.shape)} and {first.codes[name]}")


def join_parts(path: Path, parts: list[Part]) -> dict[str, Tensor]:
    """Divided as Meta's shards are: the first converters turned one of those into one of these."""
    if len(parts) == 1:
        return parts[0].tensors
    return {name: joined(path, name, found, parts[0].head.n_embd, sum(tensor.rows for tensor in found))
            for name in parts[0].tensors for found in [[part.tensors[name] for part in parts]]}


def config_of(head: Head, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says, and what it does not. n_mult is not used, which converters guessed: the tensors tell how wide
    the feed-forward part is, and how many heads of keys there are."""
    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": head.n_embd, "num_hidden_layers": head.n_layer,
        "num_attention_heads": head.n_head, "vocab_size": head.n_vocab}
    keys, gate, size = tensors.get(KEYS), tensors.get(GATE), head.n_embd // head.n_head
    if gate is not None:
        config["intermediate_size"] = gate.rows
    shared = False
    if keys is not None and size and keys.rows % size == 0:
        config["num_key_value_heads"] = keys.rows // size
        shared = keys.rows // size < head.n_head
    return config, {"max_position_embeddings": SHARED_CONTEXT if shared else CONTEXT,
                    "rms_norm_eps": SHARED_EPS if shared else EPS, "rope_theta": THETA, "bos_token_id": 1,
                    "eos_token_id": 2}


def spelled(head: Head) -> str:
    return f"{head.start.container} v{head.start.version}" if head.start.version else "ggml without a version"


def container_of(parts: list[Part]) -> str:
    return spelled(parts[0].head) + (", rows in planes" if parts[0].planar else "") + (
        f", in {len(parts)} files" if len(parts) > 1 else "")


def era_of(part: Part, replaced: bool) -> str:
    """replaced: whether byte pieces were written as U+FFFD."""
    if replaced:
        return "10 to 13 March 2023"
    if part.planar and any(tensor.encoding == Q4_0_V1 for tensor in part.tensors.values()):
        return "10 to 11 March 2023"
    if part.head.kind == ("ggjt", 1) and part.head.ftype == EARLY_Q8_0[0] and EARLY_Q8_0[1] in part.codes.values():
        return "25 to 26 April 2023"
    return ERAS[part.head.kind]
