"""ChatGLM-6B and ChatGLM2: hidden states of one-layer models that the published code computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor

LAYER = "transformer.layers.0."
FIRST = {
    "transformer.word_embeddings.weight": (5, 32),
    **{f"{LAYER}{name}.{part}": shape[:2 if part == "weight" else 1] for name, shape in (
        ("input_layernorm", (32,)), ("attention.query_key_value", (96, 32)), ("attention.dense", (32, 32)),
        ("post_attention_layernorm", (32,)), ("mlp.dense_h_to_4h", (128, 32)), ("mlp.dense_4h_to_h", (32, 128)))
       for part in ("weight", "bias")},
    **{f"transformer.final_layernorm.{part}": (32,) for part in ("weight", "bias")},
}
SECOND = {
    "transformer.embedding.word_embeddings.weight": (5, 32),
    "transformer.encoder.layers.0.input_layernorm.weight": (32,),
    "transformer.encoder.layers.0.self_attention.query_key_value.weight": (48, 32),
    "transformer.encoder.layers.0.self_attention.query_key_value.bias": (48,),
    "transformer.encoder.layers.0.self_attention.dense.weight": (32, 32),
    "transformer.encoder.layers.0.post_attention_layernorm.weight": (32,),
    "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight": (96, 32),
    "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight": (32, 48),
    "transformer.encoder.final_layernorm.weight": (32,),
}
MODELS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "chatglm1": ("glm_model.data", FIRST, {
        "model_type": "chatglm", "hidden_size": 32, "num_attention_heads": 8, "num_layers": 1, "vocab_size": 5,
        "inner_hidden_size": 128, "layernorm_epsilon": 1e-5, "max_sequence_length": 16}),
    "chatglm": ("glm2_model.data", SECOND, {
        "model_type": "chatglm", "hidden_size": 32, "num_attention_heads": 8, "num_layers": 1, "padded_vocab_size": 5,
        "ffn_hidden_size": 48, "kv_channels": 4, "multi_query_attention": True, "multi_query_group_num": 2,
        "layernorm_epsilon": 1e-5, "seq_length": 16, "add_qkv_bias": True, "add_bias_linear": False}),
}
# The masks of the vectors: of the first three tokens two see one another, the others see all before them.
STEPS = {"chatglm1": ([[0, 1, 1], [0, 0, 1]], [[1], [2]], [[1], [3]]), "chatglm": ([[0, 1, 2]], [[3]], [[4]])}
PREFIXES = {"chatglm1": {0: 2}, "chatglm": None}


def read(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[tuple[Any, Any]]]:
    """The weights, and (ids, hidden states) of three steps."""
    words = np.fromfile(path, "<f4")
    tensors: dict[str, Tensor] = {}
    at = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = ArrayTensor(words[at:at + size].reshape(shape).copy())
        at += size
    steps = []
    for count in (3, 1, 1):
        ids = words[at:at + count].view("<i4")
        at += count
        steps.append((ids, words[at:at + 32 * count].reshape(count, 32)))
        at += 32 * count
    assert at == len(words)
    return tensors, steps


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("family", MODELS)
def test_hidden_states_are_those_of_the_published_code(data: Path, host: Host, family: str, backend: str) -> None:
    file, shapes, config = MODELS[family]
    tensors, steps = read(data / "chatglm" / file, shapes)
    architecture = host.architecture_of(config, Checkpoint(Path("x"), config, {}, "huggingface").tokenizer)
    assert architecture.name == family
    if family == "chatglm":
        tensors["transformer.output_layer.weight"] = tensors["transformer.embedding.word_embeddings.weight"]
    checkpoint, graph = to_canonical(Checkpoint(Path("x"), config, tensors, "huggingface"), architecture)
    limits = Limits(16, cache_type_k="f32", cache_type_v="f32")
    plan = host.backends[backend].compile(graph, checkpoint.tensors, limits)
    cache = plan.new_cache()
    for (ids, wanted), positions in zip(steps, STEPS[family], strict=True):
        every = np.arange(len(ids), dtype=np.int32)
        batch = Batch(ids.astype(np.int32), np.array(positions, np.int32), np.zeros(len(ids), np.int32), every,
                      prefixes=PREFIXES[family])
        found: NDArray[np.float32] = plan.forward(batch, cache, "hidden")
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
