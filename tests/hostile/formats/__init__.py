"""Every format that is read: a small sample of each, damage that knows the format, and what it means to use it."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.formats.adapters import ggml_lora, peft, peft_torch
from tests.hostile.formats.bloom_falcon import bloomz, ggcc, ggllm
from tests.hostile.formats.chatglm_cpp import chatglm_cpp
from tests.hostile.formats.folders import huggingface, safetensors, safetensors_sharded
from tests.hostile.formats.ggml_llama import ggjt, ggmf_parts, ggml_planar
from tests.hostile.formats.gguf import gguf_planes, gguf_split, gguf_types, gguf_v1, gguf_v2, gguf_v3
from tests.hostile.formats.quantized import quantized
from tests.hostile.formats.sample import Sample
from tests.hostile.formats.torch import meta, torch_old, torch_zip
from tests.hostile.formats.vocabularies import (
    llama2c,
    llama2c_tokenizer,
    sentencepiece,
    template,
    tiktoken,
    tokenizer_json,
)

FORMATS: dict[str, Callable[[], Sample]] = {
    "gguf-v3": gguf_v3, "gguf-v2": gguf_v2, "gguf-v1": gguf_v1, "gguf-split": gguf_split, "gguf-planes": gguf_planes,
    "gguf-types": gguf_types,
    "safetensors": safetensors, "safetensors-sharded": safetensors_sharded, "huggingface": huggingface,
    "torch-zip": torch_zip, "torch-old": torch_old, "meta": meta, "peft": peft, "peft-torch": peft_torch,
    "llama2c": llama2c, "ggml-planar": ggml_planar, "ggmf-parts": ggmf_parts, "ggjt": ggjt,
    "chatglm.cpp": chatglm_cpp, "ggml-lora": ggml_lora,
    "bloomz.cpp": bloomz, "ggllm.cpp": ggllm, "ggllm.cpp-ggcc": ggcc, **quantized(),
    "sentencepiece": sentencepiece, "tiktoken": tiktoken, "tokenizer.json": tokenizer_json,
    "llama2c-tokenizer": llama2c_tokenizer, "template": template,
}
