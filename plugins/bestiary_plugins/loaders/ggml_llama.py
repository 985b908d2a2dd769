"""LLaMA in the files of llama.cpp before GGUF, March to August 2023: ggml (without a version), ggmf, and ggjt 1 to 3.

A start, seven i32, the vocabulary, and tensors to the end of the file, in Meta's names and row order. Until the end of
March 2023 the larger models were in several files, as Meta's own: `name`, `name.1`, `name.2` ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import Checkpoint, Provenance, TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import K_QUANTS, OF_SPRING_2023, Q4_0_V1
from bestiary_plugins.loaders.ggml_container import read_entry
from bestiary_plugins.loaders.ggml_llama_file import (
    EARLY_Q8_0,
    FIELDS,
    Head,
    Part,
    open_part,
    read_head,
    read_words,
    spelled,
    wrong_sizes,
)
from bestiary_plugins.loaders.ggml_llama_vocabulary import is_llamas, rebuilt
from bestiary_plugins.loaders.meta import joined

if TYPE_CHECKING:
    from bestiary.host import Host

ERAS = {
    ("ggml", 0): "10 to 20 March 2023; alpaca.cpp's and GPT4All's later too",
    ("ggmf", 1): "20 to 30 March 2023",
    ("ggjt", 1): "30 March to 11 May 2023; unquantized ones until August",
    ("ggjt", 2): "12 to 19 May 2023",
    ("ggjt", 3): "19 May to 21 August 2023",
}
TENSOR = re.compile(r"(tok_embeddings|norm|output|layers\.[0-9]+\.(attention\.w[qkvo]|attention_norm|ffn_norm|"
                    r"feed_forward\.w[123]))\.weight|rope\.freqs")
PART = re.compile(r"(.+)\.([1-9][0-9]?)", re.DOTALL)
EMBEDDING, KEYS, GATE = "tok_embeddings.weight", "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"

CONTEXT, EPS, THETA = 2048, 1e-6, 10000.0
"""Of LLaMA 1. Nothing tells LLaMA 2 from it but heads that share keys."""
SHARED_CONTEXT, SHARED_EPS = 4096, 1e-5


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
    if not first.tensors:
        lacks = (*lacks, "the weights: it holds a vocabulary alone")
    else:
        tensors = join_parts(path, parts)
        config, assumed = config_of(first.head, tensors)
    origin = Provenance("llama.cpp", era_of(first, words.replaced), container_of(parts), assumed, lacks)
    return Checkpoint(path, {**config, **assumed}, tensors, "meta", material, source=(open_ggml_llama, (path,)),
                      provenance=origin)


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
        raise BestiaryError(f"{two}: only one of it and {one} holds tensor {different[0]}; they do not belong "
                            "together")
    for name, tensor in first.tensors.items():
        its = other.tensors[name]
        if (tensor.shape, first.codes[name]) != (its.shape, other.codes[name]):
            raise BestiaryError(f"{two}: tensor {name} has shape {list(its.shape)} and type "
                                f"{other.codes[name]}; in {one} it has {list(tensor.shape)} and {first.codes[name]}")


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
