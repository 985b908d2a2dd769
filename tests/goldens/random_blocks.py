"""A tiny model whose matrices are random blocks of one of ggml's types, the same on every machine, as a GGUF file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor

Bytes = NDArray[np.uint8]
CONFIG = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 512,
          "rms_norm_eps": 1e-5}


class Scales(NamedTuple):
    """How blocks of random codes become weights of about the size that they have in a model.

    scale: of a typical block. f16: where its numbers stand, and what each is in scales. split: the f16 is in the high
    nibbles of the four 16-bit words from there on. bytes: first and last byte that is a scale of 8 bits, and the
    smallest and the largest that it may be. ternary: of codes of 2 bits the fourth is not used.
    """

    scale: float = 0.0
    f16: tuple[tuple[int, float], ...] = ()
    split: int | None = None
    bytes: tuple[int, int, int, int] | None = None
    ternary: bool = False


TYPES = {
    "q8_0": Scales(0.0014, ((0, 1.0),)),
    "q2_k": Scales(0.01, ((80, 1.0), (82, 1.5))), "q3_k": Scales(0.0025, ((108, 1.0),)),
    "q4_k": Scales(0.0006, ((0, 1.0), (2, 7.5))), "q5_k": Scales(0.0003, ((0, 1.0), (2, 15.5))),
    "q6_k": Scales(0.00007, ((208, 1.0),)),
    "iq4_nl": Scales(0.0014, ((0, 1.0),)), "iq4_xs": Scales(0.00007, ((0, 1.0),)),
    "mxfp4": Scales(bytes=(0, 0, 121, 123)), "nvfp4": Scales(bytes=(0, 3, 0x0C, 0x1C)),
    "q1_0": Scales(0.09, ((0, 1.0),)), "q2_0": Scales(0.08, ((0, 1.0),)), "tq1_0": Scales(0.11, ((52, 1.0),)),
    "tq2_0": Scales(0.13, ((64, 1.0),), ternary=True), "iq1_s": Scales(0.015, ((0, 1.0),)),
    "iq1_m": Scales(0.015, split=48), "iq2_xxs": Scales(0.0018, ((0, 1.0),)), "iq2_xs": Scales(0.0018, ((0, 1.0),)),
    "iq2_s": Scales(0.0018, ((0, 1.0),)), "iq3_xxs": Scales(0.0008, ((0, 1.0),)),
    "iq3_s": Scales(0.0007, ((0, 1.0),)),
}


def random_blocks(type: str, count: int, size: int, random: np.random.Generator) -> Bytes:
    """Blocks of that many bytes, (count, size): every code as likely as any other, scales around the typical one."""
    given = TYPES[type]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    if given.ternary:
        blocks ^= (blocks & blocks >> 1 & 0x55) << 1
    scale = given.scale * random.uniform(0.5, 1.5, (count, 1))
    for place, factor in given.f16:
        blocks[:, place:place + 2] = (scale * factor).astype("<f2").view(np.uint8)
    if given.split is not None:
        bits = scale.astype("<f2").view(np.uint16)
        for i in range(4):
            place = given.split + 2 * i + 1
            blocks[:, place] = blocks[:, place] & 15 | (bits[:, 0] >> 4 * i & 15).astype(np.uint8) << 4
    if given.bytes is not None:
        first, last, low, high = given.bytes
        blocks[:, first:last + 1] = random.integers(low, high + 1, (count, last + 1 - first), dtype=np.uint8)
    return blocks


def save_blocks(types: tuple[str, ...], host: Host, path: Path, seed: int = 0) -> str:
    """Writes the model; its matrices have the types in turn. Gives the sha256 of all matrices in the order of the
    graph, which says whether the random numbers are those that they were."""
    family = host.architecture_of(CONFIG, TokenizerMaterial())
    config = family.normalise(CONFIG, {})
    random = np.random.default_rng(seed)
    total = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    matrices = 0
    for name, shape in family.graph(config, 512).weights.items():
        if len(shape) < 2:
            tensors[name] = ArrayTensor(1 + random.integers(-8, 9, shape).astype(np.float32) / np.float32(64))
            continue
        encoding = host.encodings[types[matrices % len(types)]]
        matrices += 1
        rows, columns = shape
        blocks = random_blocks(encoding.name, rows * columns // encoding.block_size, sum(encoding.block_bytes), random)
        total.update(blocks.tobytes())
        tensors[name] = BlockTensor(blocks, shape, encoding)
    checkpoint = Checkpoint(path, config, tensors, CANONICAL, family.material(TokenizerMaterial(), config))
    host.writers["gguf"].save(checkpoint, path, host, force=True)
    return total.hexdigest()
