"""Hugging Face folders: their JSON, and safetensors whole and in shards."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.testing.damage import VALUES, damaged, hit_text
from tests.hostile.formats.sample import Files, Sample, generic

WIDTH, FORWARD, HEADS, KEYS_OF, VOCABULARY = 32, 64, 2, 1, 265
Array = NDArray[Any]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FORWARD,
    "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KEYS_OF, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 263,
    "eos_token_id": 264, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "head_dim": 16,
    "mlp_bias": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32}}


def arrays() -> dict[str, Array]:
    rng, kv = np.random.default_rng(0), WIDTH // HEADS * KEYS_OF
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH)}
    for name, shape in (("self_attn.q_proj", (WIDTH, WIDTH)), ("self_attn.k_proj", (kv, WIDTH)),
                        ("self_attn.v_proj", (kv, WIDTH)), ("self_attn.o_proj", (WIDTH, WIDTH)),
                        ("mlp.gate_proj", (FORWARD, WIDTH)), ("mlp.up_proj", (FORWARD, WIDTH)),
                        ("mlp.down_proj", (WIDTH, FORWARD)), ("input_layernorm", (WIDTH,)),
                        ("post_attention_layernorm", (WIDTH,))):
        shapes[f"model.layers.0.{name}.weight"] = shape
    return {name: (rng.standard_normal(shape) * 0.2).astype(np.float16) for name, shape in shapes.items()}


def tokenizer_json() -> dict[str, Any]:
    """Byte-level, as Llama 3's: the alphabet, four merges, two special tokens."""
    from bestiary.library_tokenizer import byte_alphabet

    letters = [*byte_alphabet(), "He", "ll", "llo", "Hello", "Ġw", "or", "orl"]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 263 + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, name in enumerate(("<s>", "</s>"))],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                                    {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [263], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {letter: i for i, letter in enumerate(letters)},
                  "merges": [["H", "e"], ["l", "l"], ["ll", "o"], ["He", "llo"], ["Ġ", "w"], ["o", "r"], ["or", "l"]]}}


def settings() -> dict[str, Any]:
    return {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 263, "eos_token_id": [264, 263], "temperature": 0.6},
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {"263": {"content": "<s>", "special": True}}, "model_max_length": 64,
            "chat_template": "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}",
            "tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
        "added_tokens.json": {"<s>": 263, "</s>": 264}, "tokenizer.json": tokenizer_json()}


def texts() -> Files:
    return {name: json.dumps(value).encode() for name, value in settings().items()}


def header_of(tensors: Mapping[str, Array]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, array in tensors.items():
        dtype = {"float16": "F16", "float32": "F32", "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    return header, bytes(data)


def with_length(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def file_of(tensors: Mapping[str, Array]) -> bytes:
    header, data = header_of(tensors)
    return with_length(json.dumps(header).encode(), data)


def restructured(content: bytes, source: random.Random) -> tuple[str, bytes]:
    """Another header of the right length, or other values in its entries."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8:8 + length], content[8 + length:]
    if source.random() < 0.4:
        changed = bytearray(text)
        how = hit_text(changed, source, (0, len(changed)))
        return how, with_length(bytes(changed), data)
    header = json.loads(text)
    names = [name for name in header if name != "__metadata__"]
    name, other = source.choice(names), source.choice(names)
    entry = header[name]
    how = source.choice(("shape", "offsets", "dtype", "overlap", "product", "extra", "rename", "drop", "metadata",
                         "unread"))
    value = source.choice((*VALUES, -1, 2, len(data)))
    if how == "shape":
        entry["shape"] = source.choice(([value], [value, *entry["shape"]], entry["shape"][::-1], [], [0], [1] * 9, None,
                                        [1.0], ["3"], [True], [*entry["shape"], 1], [value, value]))
    elif how == "offsets":
        entry["data_offsets"] = source.choice(([value, value + 2], [0, value], entry["data_offsets"][::-1], [0], [],
                                               None, [0.5, 1], [-2, 0], [value, 0], "01"))
    elif how == "dtype":
        entry["dtype"] = source.choice(("F32", "BF16", "F64", "I64", "F8_E4M3", "F4", "", None, 5, ["F16"], "BOOL",
                                        "I8"))
    elif how == "overlap":
        header[name] = dict(header[other])
    elif how == "product":  # wraps to the right size in 64 bits
        count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
        entry["shape"] = source.choice(([1 << 32, 1 << 32, count], [(1 << 64) + count], [1 << 63, 2], [-1, -count],
                                        [1 << 48, 1 << 48, 1 << 48]))
    elif how == "extra":
        entry[source.choice(("x", "dtype ", ""))] = value
    elif how == "rename":
        header[source.choice(("", "\x1b[2J", "x" * 70000, "model.layers.99999.mlp.up_proj.weight", "\u202e", "a\nb"))] \
            = header.pop(name)
    elif how == "drop":
        del header[name]
    elif how == "metadata":
        header["__metadata__"] = source.choice(({"a": 1}, [], None, {"a": {"b": [1]}}, "x" * 1000))
    else:
        entry["dtype"], entry["shape"] = "I8", [entry["data_offsets"][1] - entry["data_offsets"][0]]
    return f"{how} of {name}", with_length(json.dumps(header).encode(), data)


def damage(files: Files, seed: int) -> tuple[str, Files]:
    source = random.Random(f"safetensors {seed}")
    name = source.choice([name for name in sorted(files) if name.endswith(".safetensors")])
    if source.random() < 0.5:
        how, data = restructured(files[name], source)
        return f"{name}: {how}", {**files, name: data}
    if len(files) > 8 and source.random() < 0.6:
        name = "model.safetensors.index.json"
    content = files[name]
    header = 8 + int.from_bytes(content[:8], "little") if name.endswith("s") else None
    how, data = damaged(content, seed, header, ((0, 8),) if header else ())
    return f"{name}: {how}", {**files, name: data}


def safetensors() -> Sample:
    return Sample({**texts(), "model.safetensors": file_of(arrays())}, "huggingface", "", damage)


def safetensors_sharded() -> Sample:
    tensors = arrays()
    places = {name: f"model-0000{1 + (i > 5)}-of-00002.safetensors" for i, name in enumerate(tensors)}
    shards = {shard: file_of({name: tensors[name] for name in places if places[name] == shard})
              for shard in dict.fromkeys(places.values())}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    return Sample({**texts(), **shards, "model.safetensors.index.json": json.dumps(index).encode()}, "huggingface", "",
                  damage)


def huggingface() -> Sample:
    """The weights are left alone: generic damage to the JSON beside them."""
    whole = safetensors()

    def beside(files: Files, seed: int) -> tuple[str, Files]:
        how, changed = generic({name: data for name, data in files.items() if name.endswith(".json")}, seed)
        return how, {**changed, "model.safetensors": files["model.safetensors"]}

    return Sample(whole.files, "huggingface", "", beside)
