"""Checkpoints of llama2.c: version 0 (a header of seven numbers, no magic) and version 1 (magic "ak42"), float32.

The program's export.py writes both. Tensors stand one after the other, stacked over the layers, in Meta's names and
row order.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

from bestiary.checkpoint import Checkpoint, TokenizerMaterial
from bestiary.encoding import F32
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.host import Host
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.vocabulary_files import read_llama2c_vocabulary

MAGIC = 0x616B3432
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size", "max_position_embeddings")
SMALL = (1 << 20, 1 << 22, 1 << 12, 1 << 12, 1 << 12, 1 << 24, 1 << 24)  # what no header of seven numbers exceeds


def read_config(file: DataFile) -> tuple[int, dict[str, Any]] | None:
    """The version and the config, or None where the file does not begin like one."""
    if file.size < 36:
        return None
    magic, version = struct.unpack("<Ii", file.read(0, 8))
    if magic == MAGIC:
        numbers, tied = struct.unpack("<7i", file.read(8, 28)), file.read(36, 1, "header")[0] != 0
    else:
        version, numbers = 0, struct.unpack("<7i", file.read(0, 28))
        tied = numbers[5] > 0  # a negative vocabulary size says that the output matrix is a tensor of its own
        numbers = (*numbers[:5], abs(numbers[5]), numbers[6])
    if not all(0 < number <= limit for number, limit in zip(numbers, SMALL, strict=True)):
        return None
    config = dict(zip(FIELDS, numbers, strict=True))
    if config["hidden_size"] % config["num_attention_heads"] \
            or config["num_attention_heads"] % config["num_key_value_heads"]:
        return None
    return version, {"model_type": "llama", **config, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5,
                     "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2}


def table(version: int, c: dict[str, Any]) -> list[tuple[str, bool, tuple[int, ...]]]:
    """What follows the header: (name, whether one a layer, shape), in the order of the file."""
    dim, hidden = c["hidden_size"], c["intermediate_size"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    d = dim // heads
    embed = [("tok_embeddings.weight", False, (c["vocab_size"], dim))]
    norms = [("attention_norm.weight", True, (dim,)), ("ffn_norm.weight", True, (dim,))]
    attention = [("attention.wq.weight", True, (heads * d, dim)), ("attention.wk.weight", True, (kv * d, dim)),
                 ("attention.wv.weight", True, (kv * d, dim)), ("attention.wo.weight", True, (dim, heads * d))]
    forward = [("feed_forward.w1.weight", True, (hidden, dim)), ("feed_forward.w2.weight", True, (dim, hidden)),
               ("feed_forward.w3.weight", True, (hidden, dim))]
    last = [("norm.weight", False, (dim,))]
    output = [] if c["tie_word_embeddings"] else [("output.weight", False, (c["vocab_size"], dim))]
    if version == 1:
        return [*norms, *last, *embed, *attention, *forward, *output]
    unused = [("", False, (c["max_position_embeddings"], d // 2))] * 2  # cosines and sines of the rotation
    return [*embed, *norms[:1], *attention, *norms[1:], *forward, *last, *unused, *output]


def size(version: int, config: dict[str, Any]) -> int:
    """Bytes of a whole file."""
    weights = sum(prod(shape) * (config["num_hidden_layers"] if layered else 1)
                  for _, layered, shape in table(version, config))
    return 4 * weights + (256 if version else 28)


def open_llama2c(path: Path) -> Checkpoint:
    """The checkpoint of a llama2.c file, with the tokenizer that lies beside it."""
    file = DataFile(path)
    header = read_config(file)
    if header is None:
        raise BestiaryError(f"{path} is no llama2.c checkpoint")
    version, config = header
    if version not in (0, 1):
        raise BestiaryError(f"{path} is a llama2.c checkpoint of version {version}; versions 0 and 1 are read")
    if file.size != size(version, config):
        raise BestiaryError(f"{path} has {file.size} bytes; its header asks for {size(version, config)}: "
                            "it is truncated or damaged")
    tensors: dict[str, Tensor] = {}
    offset = 256 if version else 28
    for name, layered, shape in table(version, config):
        for i in range(config["num_hidden_layers"] if layered else 1):
            full = f"layers.{i}.{name}" if layered else name
            if name:
                tensors[full] = FileTensor(file, offset, shape, F32, full)
            offset += 4 * prod(shape)
    return Checkpoint(path, config, tensors, "meta", tokenizer_beside(path, config["vocab_size"]),
                      source=(open_llama2c, (path,)))


def tokenizer_beside(path: Path, vocabulary: int) -> TokenizerMaterial:
    """tok{vocabulary}.bin or tokenizer.bin in the same folder; empty where there is neither."""
    for name in (f"tok{vocabulary}.bin", "tokenizer.bin"):
        if (path.parent / name).is_file():
            return TokenizerMaterial(vocabulary=read_llama2c_vocabulary(path.parent / name), bos=1, eos=2)
    return TokenizerMaterial()


class Llama2c(Loader):
    """A single .bin file."""

    name = "llama2.c"

    def recognise(self, path: Path) -> int:
        if not path.is_file():
            return 0
        try:
            file = DataFile(path)
            header = read_config(file)
        except BestiaryError:
            return 0
        if header is None:
            return 0
        if file.read(0, 4) == struct.pack("<I", MAGIC):
            return 100
        if file.size == size(*header):
            return 90  # seven plausible numbers that give exactly the file's size
        return 20 if path.suffix == ".bin" and file.size < size(*header) else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_llama2c(path)
