"""Models of real shapes and random weights as GGUF files that Bestiary and llama.cpp both run.

Only the time that a weight takes is of interest, so its bytes are drawn. Their scales are such that activations keep
the size that they have in a trained model. K-quants, their kin and mixes are what llama.cpp's quantizer makes of the
f16 file.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial, Vocabulary
from bestiary.encoding import Encoding
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor

Config = Mapping[str, Any]
Bytes = NDArray[np.uint8]
FOLDER = Path(tempfile.gettempdir(), "bestiary-bench-models")
"""Where the files are kept, unless another place is given."""


def llama(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int = 32000) -> Config:
    return {"model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}


def bloom(width: int, layers: int, heads: int, vocabulary: int = 250_880) -> Config:
    return {"model_type": "bloom", "hidden_size": width, "n_layer": layers, "num_attention_heads": heads,
            "vocab_size": vocabulary, "seq_length": 4096, "tie_word_embeddings": True}


def falcon(width: int, layers: int, heads: int, vocabulary: int = 65_024) -> Config:
    return {"model_type": "falcon", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False,
            "alibi": False, "vocab_size": vocabulary, "max_position_embeddings": 4096, "tie_word_embeddings": False}


def chatglm(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int = 65_024) -> Config:
    return {"model_type": "chatglm", "hidden_size": width, "num_layers": layers, "num_attention_heads": heads,
            "multi_query_attention": True, "multi_query_group_num": kv_heads, "kv_channels": width // heads,
            "ffn_hidden_size": inner, "padded_vocab_size": vocabulary, "seq_length": 4096, "add_qkv_bias": True,
            "tie_word_embeddings": False}


SHAPES: Mapping[str, Config] = {
    "100m": llama(768, 12, 12, 12, 2048),
    "1.1b": llama(2048, 22, 32, 4, 5632),  # TinyLlama's
    "7b": llama(4096, 32, 32, 32, 11008),  # Llama 2's
    "bloom-1b": bloom(1536, 24, 16),  # BLOOM 1.1B's
    "falcon-1b": falcon(2048, 20, 32),  # Falcon 7B's proportions
    "chatglm-1b": chatglm(2048, 16, 16, 2, 6848),  # ChatGLM2's proportions
}
TINY: Mapping[str, Config] = {
    "llama": llama(128, 1, 2, 2, 128, 512), "bloom": bloom(128, 1, 2, 512), "falcon": falcon(128, 1, 2, 512),
    "chatglm": chatglm(128, 1, 2, 1, 128, 512)}
"""A family's smallest model: what has loaded one has imported all that loading takes."""


def plain(random: np.random.Generator, count: int, deviation: float, mantissa: int, bias: int) -> Bytes:
    """Numbers of 16 bits: any sign and mantissa, exponents of four binary orders."""
    top = round(float(np.log2(deviation)) + 0.18)  # the root of the mean square is 0.88 of the highest power of two
    bits = np.frombuffer(random.bytes(2 * count), np.uint16)
    return ((bits & np.uint16(0x8000 | (4 << mantissa) - 1)) + np.uint16(top - 3 + bias << mantissa)).view(np.uint8)


def blocks(random: np.random.Generator, count: int, deviation: float, size: int, spread: float,
           lowest: float = 0) -> Bytes:
    """Blocks of 32 codes of `size` bytes: any codes, of standard deviation `spread`, and scales within half of what is
    wanted, of both signs: weights whose mean is not 0 make all activations alike. lowest: the minimum of a block in
    units of its scale, which is stored behind the scale; 0 for none."""
    data = np.frombuffer(random.bytes(count * size), np.uint8).reshape(count, size).copy()
    scale = (deviation / spread * random.uniform(0.5, 1.5, count) * random.choice((-1, 1), count)).astype(np.float16)
    data[:, :2] = scale.view(np.uint8).reshape(count, 2)
    if lowest:
        data[:, 2:4] = (scale * np.float16(lowest)).view(np.uint8).reshape(count, 2)
    return data


def signed_bytes(random: np.random.Generator, count: int, deviation: float) -> Bytes:
    """q8_0's blocks. No quantizer writes -128, and kernels may rely on it."""
    data = blocks(random, count, deviation, 34, 73.6)
    codes = data[:, 2:].view(np.int8)
    np.maximum(codes, -127, out=codes)
    return data


def wide_blocks(random: np.random.Generator, count: int, deviation: float, halves: bool) -> Bytes:
    """As `blocks` of 4 bits, with scales of f32: q4_0 of April 2023. halves: whether they are f16 numbers all the
    same, as those that the quantizer wrote from 25 April on; before, it divided by 7."""
    data = np.frombuffer(random.bytes(count * 20), np.uint8).reshape(count, 20).copy()
    scale = (deviation / 4.6 * random.uniform(0.5, 1.5, count) * random.choice((-1, 1), count)).astype(np.float32)
    if halves:
        scale = scale.astype(np.float16).astype(np.float32)
    data[:, :4] = scale.view(np.uint8).reshape(count, 4)
    return data


def powers(random: np.random.Generator, count: int, deviation: float) -> Bytes:
    """mxfp4's blocks: a power of two and 32 codes of four bits, each a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    data = np.frombuffer(random.bytes(count * 17), np.uint8).reshape(count, 17).copy()
    data[:, 0] = 127 + round(float(np.log2(deviation / 2.93))) + random.integers(-1, 2, count)
    return data


DRAWN: Mapping[str, Any] = {
    "f16": lambda random, count, deviation: plain(random, count, deviation, 10, 15),
    "bf16": lambda random, count, deviation: plain(random, count, deviation, 7, 127),
    "q8_0": signed_bytes,
    "q4_0": lambda random, count, deviation: blocks(random, count, deviation, 18, 4.6),
    "q4_0_v1": lambda random, count, deviation: wide_blocks(random, count, deviation, False),
    "q4_1": lambda random, count, deviation: blocks(random, count, deviation, 20, 4.6, -7.5),
    "q5_0": lambda random, count, deviation: blocks(random, count, deviation, 22, 9.2),
    "mxfp4": powers,
}
"""Encoding -> (generator, blocks, standard deviation of the weights) to their bytes."""

QUANTIZED = {"q2_k": ("Q2_K", True), "q3_k": ("Q3_K_S", True), "q4_k": ("Q4_K_S", True), "q5_k": ("Q5_K_S", True),
             "q6_k": ("Q6_K", True), "iq4_nl": ("IQ4_NL", True), "iq4_xs": ("IQ4_XS", True),
             "q2_k_m": ("Q2_K", False), "q3_k_m": ("Q3_K_M", False), "q4_k_m": ("Q4_K_M", False),
             "q5_k_m": ("Q5_K_M", False)}
"""Name here -> llama.cpp's for what its quantizer makes, and whether every matrix is to be of that type."""

Quantize = Callable[[Path, Path, str, bool], None]
"""(f16 file, file to make, llama.cpp's name of a type, whether for every matrix)."""


class RandomTensor(Tensor):
    """A matrix that is drawn while it is read. The same ranges of rows give the same bytes again."""

    def __init__(self, name: str, shape: tuple[int, ...], encoding: Encoding, drawn: Any = None) -> None:
        self.shape, self.encoding, self._drawn = shape, encoding, drawn or DRAWN[encoding.name]
        self._seed = zlib.crc32(name.encode())
        self._deviation = 1.0 if name == "token_embd.weight" else self.columns ** -0.5

    def read(self, start: int, stop: int) -> Bytes:
        random = np.random.Generator(np.random.SFC64([self._seed, start]))
        count = (stop - start) * self.columns // self.encoding.block_size
        drawn: Bytes = self._drawn(random, count, self._deviation)
        return drawn.reshape(stop - start, self.row_bytes)


def vector(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights of norms are near 1, biases near 0."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    centre = 0.0 if name.endswith("bias") else 1.0
    return ArrayTensor((centre + 0.05 * random.standard_normal(shape)).astype(np.float32))


def vocabulary(count: int) -> TokenizerMaterial:
    """As small as llama.cpp takes one: three special pieces, the bytes, and words."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    words = count - len(pieces)
    pieces += ["\u2581".encode() + letters(i) for i in range(words)]
    return TokenizerMaterial(vocabulary=Vocabulary(
        "bpe", pieces, [0.0] * 259 + [-float(i) for i in range(words)], kinds + [1] * words, unknown=0),
        bos=1, eos=2, ends=(2,), add_bos=True, add_eos=False)


def letters(number: int) -> bytes:
    """A word for each number."""
    word = bytearray()
    while not word or number:
        number, letter = divmod(number, 26)
        word.append(97 + letter)
    return bytes(word)


def checkpoint(config: Config, type: str, host: Host, drawn: Any = None) -> Checkpoint:
    """Every matrix, the embedding and the output too, in the encoding named. drawn: in the place of DRAWN's."""
    family = host.architecture_of(config, TokenizerMaterial())
    normal = family.normalise(config, {})
    encoding = host.encodings[type]
    graph = family.graph(normal, normal["max_position_embeddings"])
    tensors = {name: RandomTensor(name, shape, encoding, drawn) if len(shape) > 1 else vector(name, shape)
               for name, shape in graph.weights.items()}
    return Checkpoint(Path("synthetic"), normal, tensors, CANONICAL, vocabulary(normal["vocab_size"]))


def multiplied(config: Config, host: Host) -> int:
    """Weights that every token of a prompt is multiplied with: the layers' matrices. Only the last token passes the
    output's."""
    return sum(rows * columns for name, (rows, columns) in matrices(config, host).items() if name.startswith("blk."))


def read(path: Path, host: Host) -> int:
    """Bytes of weights that a step of decoding reads: all matrices but an embedding that is only looked up in."""
    found = {name: tensor for name, tensor in host.open(path).tensors.items() if len(tensor.shape) == 2}
    looked_up = "token_embd.weight" if "output.weight" in found else None
    return sum(tensor.nbytes for name, tensor in found.items() if name != looked_up)


def cached(config: Config, tokens: int, host: Host) -> int:
    """Bytes of the keys and values of so many tokens, in f16."""
    nodes = graph(config, host).nodes
    return 2 * tokens * sum(nodes[i].width for node in nodes if node.op == "attention" for i in node.inputs[1:3])


def matrices(config: Config, host: Host) -> dict[str, tuple[int, int]]:
    return {name: (shape[0], shape[1]) for name, shape in graph(config, host).weights.items() if len(shape) == 2}


def graph(config: Config, host: Host) -> Graph:
    family = host.architecture_of(config, TokenizerMaterial())
    normal = family.normalise(config, {})
    return family.graph(normal, normal["max_position_embeddings"])


def made(config: Config, name: str, type: str, folder: Path, host: Host, quantize: Quantize | None = None) -> Path:
    """The file of that name in the folder, written where it is not there yet: it is there whole or not at all.
    quantize: what makes those of QUANTIZED."""
    path = folder / f"{name}-{type}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if type in QUANTIZED and quantize:
        part = path.with_suffix(".part")
        quantize(made(config, name, "f16", folder, host), part, *QUANTIZED[type])
        part.rename(path)
    else:
        host.writers["gguf"].save(checkpoint(config, type, host), path, host)
    return path
