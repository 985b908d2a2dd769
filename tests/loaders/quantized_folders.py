"""Tiny Llama folders whose weights are packed as a quantization's documentation says, each beside the same weights
plain."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend, Plan
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.host import Host
from bestiary.past import compiled
from bestiary.testing.tiny import LIMITS, Runs, difference, random_ids

Array = NDArray[Any]
Floats = NDArray[np.float32]
Stored = tuple[str, Array]
"""A safetensors dtype and the bytes of the numbers, as an array of its shape and of their size."""
WIDTH, FORWARD, VOCABULARY = 128, 256, 96
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FORWARD,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
LAYER = "model.layers.0."
LINEARS = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH // 2, WIDTH),
           "self_attn.v_proj": (WIDTH // 2, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
           "mlp.gate_proj": (FORWARD, WIDTH), "mlp.up_proj": (FORWARD, WIDTH), "mlp.down_proj": (WIDTH, FORWARD)}


@dataclass(frozen=True)
class Packed:
    """parts: what stands in the file in place of a weight, by the end of its name. values: what it decodes to,
    (outputs, inputs). exact: what it is, where decoding rounds."""

    parts: Mapping[str, Stored]
    values: Floats
    exact: Floats | None = None


Pack = Callable[[np.random.Generator, int, int], Packed]
"""Random weights of so many outputs and inputs, packed."""


def plain(array: Array) -> Stored:
    return {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}[
        array.dtype.name], array


def with_part(pack: Pack, part: str, changed: Array | None) -> Pack:
    """Packed so, but for one part, which is another or missing."""
    def damaged(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = pack(rng, outputs, inputs)
        parts = {name: stored for name, stored in made.parts.items() if name != part}
        return Packed(parts if changed is None else {**parts, part: plain(changed)}, made.values)

    return damaged


def bf16(values: Array) -> Stored:
    """Cut, not rounded: whoever wants them exact gives such numbers."""
    return "BF16", (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(stored: Stored) -> Floats:
    return (stored[1].astype(np.uint32) << 16).view(np.float32)


def write_tensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


@dataclass(frozen=True)
class Folders:
    """quantized, plain: folders. values: what the quantized weights decode to, by their plain names; exact: what they
    are, which the plain folder holds."""

    quantized: Path
    plain: Path
    values: Mapping[str, Floats]
    exact: Mapping[str, Floats]


def others(rng: np.random.Generator) -> dict[str, Stored]:
    """The weights that nobody quantizes."""
    return {name: plain(rng.standard_normal(shape).astype(np.float32)) for name, shape in (
        ("model.embed_tokens.weight", (VOCABULARY, WIDTH)), ("lm_head.weight", (VOCABULARY, WIDTH)),
        ("model.norm.weight", (WIDTH,)), (f"{LAYER}input_layernorm.weight", (WIDTH,)),
        (f"{LAYER}post_attention_layernorm.weight", (WIDTH,)))}


def write(folder: Path, pack: Pack, section: Mapping[str, Any] | None, seed: int = 0,
          more: Mapping[str, Stored] | None = None) -> Folders:
    """Both folders. section: quantization_config. more: further tensors of the quantized one, or others of a name."""
    rng = np.random.default_rng(seed)
    kept = others(rng)
    packed = {f"{LAYER}{name}": pack(rng, *shape) for name, shape in LINEARS.items()}
    values = {f"{name}.weight": one.values for name, one in packed.items()}
    exact = {f"{name}.weight": one.values if one.exact is None else one.exact for name, one in packed.items()}
    parts = {f"{name}{end}": stored for name, one in packed.items() for end, stored in one.parts.items()}
    for name, tensors, config in (
            ("quantized", {**kept, **parts, **(more or {})},
             CONFIG if section is None else {**CONFIG, "quantization_config": dict(section)}),
            ("plain", {**kept, **{name: plain(value) for name, value in exact.items()}}, CONFIG)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        write_tensors(folder / name / "model.safetensors", tensors)
    return Folders(folder / "quantized", folder / "plain", values, exact)


def check_values(checkpoint: Checkpoint, values: Mapping[str, Floats], off: float = 0) -> None:
    """Each weight decodes to just these numbers, whole and by ranges of rows. off: by so much of the largest they may
    differ."""
    for name, wanted in values.items():
        tensor = checkpoint.tensors[name]
        np.testing.assert_equal(tensor.shape, wanted.shape, err_msg=name)
        found = tensor.array()
        np.testing.assert_allclose(found, wanted, 0, off * np.abs(wanted).max(), err_msg=name)
        rows = tensor.rows
        for start, stop in ((0, 1), (rows // 3, rows // 2 + 1), (rows - 1, rows), (5, 5)):
            np.testing.assert_array_equal(tensor.decode(start, stop), found[start:stop], err_msg=name)


def plan_of(path: Path, host: Host, backend: str | Backend) -> Plan:
    checkpoint = host.open(path)
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer)
    canonical, graph = to_canonical(checkpoint, family)
    runs_on = host.backends[backend] if isinstance(backend, str) else backend
    return compiled(runs_on, graph, canonical.tensors, LIMITS)


def logits(path: Path, host: Host, backend: str | Backend) -> Floats:
    return Runs(plan_of(path, host, backend)).prefill(random_ids(VOCABULARY, 20))


def check_logits(folders: Folders, host: Host, bound: float = 0.02) -> None:
    """Those of the quantized folder are those of the plain one, on both backends."""
    wanted = logits(folders.plain, host, "numpy")
    for backend, most in (("numpy", 1e-5), ("cpu", bound)):
        np.testing.assert_array_less(difference(logits(folders.quantized, host, backend), wanted), most)


def stream(codes: Array, bits: int) -> NDArray[np.uint32]:
    """Codes along the first axis in words of 32 bits, the first code in the lowest bits: (codes * bits / 32, ...)."""
    single = (codes.astype(np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)[:, None]) & np.uint64(1)
    single = single.reshape(-1, 32, codes.shape[1])  # (words, bits of a word, columns)
    words: NDArray[np.uint32] = (single << np.arange(32, dtype=np.uint64)[:, None]).sum(1).astype(np.uint32)
    return words
