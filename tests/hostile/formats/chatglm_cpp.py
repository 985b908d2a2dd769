"""chatglm.cpp's files: of the first release, of version 1, and of version 2 with a learned prefix, in turn."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from bestiary.host import Host, HostSettings
from bestiary.testing.damage import Place, damaged
from tests.hostile.formats.sample import Files, Sample
from tests.loaders.chatglm_cpp_files import record, written

CONFIG: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "inner_hidden_size": 128, "vocab_size": 300,
    "max_sequence_length": 32, "bos_token_id": 298, "eos_token_id": 299, "gmask_token_id": 295, "mask_token_id": 294,
    "pad_token_id": 3}
LATER: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 64, "padded_vocab_size": 300,
    "seq_length": 32, "multi_query_group_num": 1, "eos_token_id": 2, "pad_token_id": 0, "pre_seq_len": 3}
FORMS = ((1, 0, "q8_0"), (1, 1, "f16"), (2, 2, "q4_0"))


def shapes(model: int) -> dict[str, tuple[int, ...]]:
    if model == 1:
        layer, parts = "transformer.layers.0.", ("weight", "bias")
        sizes = {"input_layernorm": (32,), "attention.query_key_value": (96, 32), "attention.dense": (32, 32),
                 "post_attention_layernorm": (32,), "mlp.dense_h_to_4h": (128, 32), "mlp.dense_4h_to_h": (32, 128)}
        return {"transformer.word_embeddings.weight": (300, 32),
                **{f"{layer}{name}.{part}": shape[:2 if part == "weight" else 1] for name, shape in sizes.items()
                   for part in parts},
                **{f"transformer.final_layernorm.{part}": (32,) for part in parts}}
    layer = "transformer.encoder.layers.0."
    return {"past_key_values": (2, 1, 3, 16), "transformer.embedding.word_embeddings.weight": (300, 32),
            f"{layer}input_layernorm.weight": (32,), f"{layer}self_attention.query_key_value.weight": (64, 32),
            f"{layer}self_attention.query_key_value.bias": (64,), f"{layer}self_attention.dense.weight": (32, 32),
            f"{layer}post_attention_layernorm.weight": (32,), f"{layer}mlp.dense_h_to_4h.weight": (128, 32),
            f"{layer}mlp.dense_4h_to_h.weight": (32, 64), "transformer.encoder.final_layernorm.weight": (32,),
            "transformer.output_layer.weight": (300, 32)}


def vocabulary() -> bytes:
    import sentencepiece as library

    made = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "hello world, hello there", "numbers 1 22"] * 20),
        model_writer=made, model_type="bpe", vocab_size=290, byte_fallback=True, hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2)
    return made.getvalue()


class Made(NamedTuple):
    """header: bytes of the record and of the tokenizer's size. fields: places of numbers. pieces: of tensors' headers.
    """

    data: bytes
    header: int
    fields: list[Place]
    pieces: list[Place]


@lru_cache
def files() -> tuple[Made, ...]:
    """One of each form."""
    host, tokenizer, found = Host(HostSettings(names=())), vocabulary(), list[Made]()
    for model, version, kind in FORMS:
        random_, config = np.random.default_rng(model), CONFIG if model == 1 else LATER
        tensors = {name: (random_.standard_normal(shape) * 0.2).astype(np.float32)
                   for name, shape in shapes(model).items()}
        data, front = written(model, version, config, tensors, kind, tokenizer, host), record(
            model, version, config, kind)
        fields = [(at, 4) for at in range(4, len(front) + 4, 4)]
        pieces: list[Place] = []
        for name, shape in shapes(model).items():
            at = data.index(name.encode())
            before = (12 + 4 * len(shape)) if version == 0 else 4
            after = 0 if version == 0 else 8 + 4 * len(shape)
            fields += [(place, 4) for place in (*range(at - before, at, 4), *range(
                at + len(name), at + len(name) + after, 4))]
            pieces.append((at - before, before + len(name) + after))
        found.append(Made(data, len(front) + 4, fields, pieces))
    return tuple(found)


def chatglm_cpp() -> Sample:
    def damage(given: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"chatglm.cpp {seed}")
        data, header, fields, pieces = source.choice(files())
        how, changed = damaged(data, seed, header, fields if source.random() < 0.6 else fields[:header // 4], pieces)
        return how, {"model.bin": changed}

    return Sample({"model.bin": files()[-1].data}, "chatglm.cpp", "model.bin", damage)
