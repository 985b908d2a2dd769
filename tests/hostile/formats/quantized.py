"""Quantized Hugging Face folders: damage to the settings, to the header, and to the parts of weights."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bestiary.testing.damage import VALUES, damaged, hit_text
from tests.hostile.formats.folders import CONFIG, arrays, texts, with_length
from tests.hostile.formats.sample import Files, Sample
from tests.loaders import test_quantized_awq as awq
from tests.loaders import test_quantized_bitsandbytes as bitsandbytes
from tests.loaders import test_quantized_bytes as eight
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders import test_quantized_packed as packed
from tests.loaders.quantized_folders import Pack, Stored, plain

SCHEMES: dict[str, tuple[Pack, dict[str, Any]]] = {
    "gptq": (gptq.packer(4, 16, False),
             {**gptq.section(4, 16, False), "dynamic": {"+:.*mlp.*": {"bits": 8, "group_size": 32}, "-:lm_head": {}}}),
    "gptq-order": (gptq.packer(2, 16, True, True, True), gptq.section(2, 16, True, True, True)),
    "awq": (awq.packer(16), {**awq.SECTION, "group_size": 16}),
    "fp8": (eight.packer(block=(16, 16)), {**eight.FP8, "weight_block_size": [16, 16]}),
    "compressed-tensors": (packed.packer(4, 16, False), packed.section(4, 16, False)),
    "compressed-tensors-two": (packed.packer(3, 16), packed.both(packed.section(3, 16), packed.section(8, 32))),
    "autoround": (gptq.packer(4, 16), {
        "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 16,
        "sym": True, "data_type": "int", "extra_config": {"lm_head": {"bits": 16}}}),
    "bitsandbytes": (bitsandbytes.packer("nf4", 64, True), bitsandbytes.FOUR),
    "llm-int8": (bitsandbytes.bytes_and_scales, bitsandbytes.EIGHT),
}
OTHERS: tuple[Any, ...] = (None, -1, 0, 2, 3, 8, 16, 10 ** 30, 1 << 31, True, "4", "", [], {}, [8, 8], [[]], 0.5,
                           "gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", {"group_0": {}}, "x" * 70000)


def tensors(pack: Pack) -> dict[str, Stored]:
    """All matrices of the layer in their parts."""
    source, made = np.random.default_rng(3), dict[str, Stored]()
    for name, array in arrays().items():
        if ".layers." in name and array.ndim == 2:
            module = name.removesuffix(".weight")
            made |= {module + end: stored for end, stored in pack(source, *array.shape).parts.items()}
        else:
            made[name] = plain(array)
    return made


def file_of(given: dict[str, Stored]) -> bytes:
    header, data = {}, bytearray()
    for name, (dtype, array) in given.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    return with_length(json.dumps(header).encode(), bytes(data))


def damage(files: Files, seed: int) -> tuple[str, Files]:
    """Settings, the header, a part's numbers, or any bytes."""
    source, name = random.Random(f"quantized {seed}"), "model.safetensors"
    choice, data = source.random(), files["model.safetensors"]
    if choice < 0.35:
        return settings(files, source)
    if choice < 0.7:
        how, data = header(data, source)
    elif choice < 0.85:
        how, data = numbers(data, source)
    else:
        how, data = damaged(data, seed, 8 + int.from_bytes(data[:8], "little"), ((0, 8),))
    return f"{name}: {how}", {**files, name: data}


def settings(files: Files, source: random.Random) -> tuple[str, Files]:
    config = json.loads(files["config.json"])
    section = config["quantization_config"]
    groups = section.get("config_groups")
    where = groups["group_0"]["weights"] if groups and source.random() < 0.6 else section
    if source.random() < 0.3:
        text = bytearray(json.dumps(config).encode())
        return f"config.json: {hit_text(text, source, (0, len(text)))}", {**files, "config.json": bytes(text)}
    key = source.choice(list(where))
    if source.random() < 0.1:
        key, where = "quantization_config", config
    where[key] = source.choice(OTHERS)
    return f"config.json: {key} = {where[key]!r:.40}", {**files, "config.json": json.dumps(config).encode()}


def header(data: bytes, source: random.Random) -> tuple[str, bytes]:
    """Other shapes of as many bytes, other types, parts that are gone or change places."""
    length = int.from_bytes(data[:8], "little")
    entries: dict[str, Any] = json.loads(data[8:8 + length])
    parts = [name for name in entries if ".layers." in name and "norm" not in name]
    name, other = source.choice(parts), source.choice(parts)
    entry = entries[name]
    shape = entry["shape"]
    how = source.choice(("shape", "shape", "flat", "dtype", "swap", "gone", "renamed", "value"))
    if how == "shape":
        entry["shape"] = source.choice((shape[::-1], [*shape, 1], [1, *shape], [2 * size for size in shape],
                                        [shape[0] * 2, *(size // 2 for size in shape[1:])] if shape else [1]))
    elif how == "flat":
        entry["shape"] = [int(np.prod(shape))]
    elif how == "dtype":
        entry["dtype"] = source.choice(("I32", "F32", "U8", "I8", "F16", "BF16", "F8_E4M3", "F8_E8M0", "I64", "U32"))
    elif how == "swap":
        entries[name], entries[other] = entries[other], entries[name]
    elif how == "gone":
        del entries[name]
    elif how == "renamed":
        entries[name[:-1] if source.random() < 0.5 else f"{other}.x"] = entries.pop(name)
    else:
        entry["shape"] = [source.choice(VALUES), *shape[1:]]
    return f"{how} of {name}", with_length(json.dumps(entries).encode(), data[8 + length:])


def numbers(data: bytes, source: random.Random) -> tuple[str, bytes]:
    """A part's bytes made zeros, ones or noise: zeros, groups and scales beyond what they may be."""
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8:8 + length])
    small = sorted((entry["data_offsets"][1] - entry["data_offsets"][0], name) for name, entry in entries.items())
    name = source.choice([name for _, name in small[:len(small) * 2 // 3]])
    begin, end = (8 + length + offset for offset in entries[name]["data_offsets"])
    fill = source.choice((bytes(end - begin), b"\xff" * (end - begin), source.randbytes(end - begin)))
    return f"other bytes in {name}", data[:begin] + fill + data[end:]


def sample(name: str) -> Sample:
    pack, section = SCHEMES[name]
    config = json.dumps({**CONFIG, "quantization_config": section}).encode()
    return Sample({**texts(), "config.json": config, "model.safetensors": file_of(tensors(pack))}, "huggingface", "",
                  damage)


def quantized() -> dict[str, Callable[[], Sample]]:
    return {name: partial(sample, name) for name in SCHEMES}
