"""What today's llama.cpp says of files that we wrote, family by family, kept in tests/goldens/families.json.

Run by hand from the root of the tree, with llama-cpp-python installed beside Bestiary:

    BESTIARY_TEST_DATA=... PYTHONPATH=. python scripts/make_goldens_families.py

Each model is tiny and random. Kept are the likeliest id after each token of a random text, and by how much it leads,
over the spread of the logits: llama.cpp computes some operations in less than f32, so only a clear lead says anything.
Kept too is how it cuts up texts by the arrays that we write of ChatGLM3's vocabulary.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

import bestiary
from bestiary.host import Host, HostSettings
from tests.goldens.random_models import save_random, save_tiny_chatglm3

GOLDENS = Path(__file__).parents[1] / "tests/goldens/families.json"
CONTEXT = 256  # llama.cpp rounds up to it
TOKENS = 160
BASE: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 512}
NEOX = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"type": "longrope", "short_factor": [1 + j / 16 for j in range(8)], "long_factor": [1.5 + j for j in range(8)]}
BLOOM = {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "vocab_size": 199, "seq_length": 512}
FALCON = {"model_type": "falcon", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
          "vocab_size": 199, "max_position_embeddings": 512}
CHATGLM = {"model_type": "chatglm", "hidden_size": 96, "num_layers": 2, "num_attention_heads": 6,
           "multi_query_group_num": 2, "multi_query_attention": True, "kv_channels": 16, "ffn_hidden_size": 160,
           "padded_vocab_size": 199, "vocab_size": 199, "seq_length": 512}
TEXTS = ("Hello world", "你好，世界", " leading  two spaces\n\tx", "def f(x):\n    return x + 1", "😀 emoji é",
         "今天天气怎么样？3.14", "<|user|>\n hi", "geopolitics, jeopardy, people, Aesop")
# Not "]sop": llama.cpp merges letters to control tokens too, where no other merge takes them.
LETTERS = "abcdefgh  \n\t.,!?0123你好世界今天天气中文字符éñ😀ß"
MODELS: Mapping[str, dict[str, Any]] = {
    "llama": {**BASE, "model_type": "llama"},
    "mistral": {**BASE, "model_type": "mistral", "sliding_window": None, "rope_scaling": YARN},
    "mixtral": {**BASE, "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2": {**BASE, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, yarn": {**BASE, "model_type": "qwen2", "rope_scaling": YARN},
    "qwen2, linear": {**BASE, "model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "qwen3": {**BASE, "model_type": "qwen3", "head_dim": 24},
    "gemma2": {**BASE, "model_type": "gemma2", "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 32},
    "phi3": {**BASE, "model_type": "phi3"},
    "phi3, long": {**BASE, "model_type": "phi3", "rope_scaling": LONG, "original_max_position_embeddings": 64},
    "phi3, short": {**BASE, "model_type": "phi3", "rope_scaling": LONG, "original_max_position_embeddings": 256},
    "phi3, part of a head": {**BASE, "model_type": "phi3", "partial_rotary_factor": 0.75},
    "gpt2": {"model_type": "gpt2", "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 512, "vocab_size": 199},
    "gpt-neox": {**NEOX, "model_type": "gpt_neox", "rotary_pct": 0.25},
    "gpt-neox, one after the other": {**NEOX, "model_type": "gpt_neox", "rotary_pct": 0.5,
                                      "use_parallel_residual": False},
    "bloom of 8 heads": {**BLOOM, "num_attention_heads": 8},
    "bloom of 6 heads": {**BLOOM, "num_attention_heads": 6},  # no power of two: the last two slopes lie between others
    "falcon, 7b": {**FALCON, "multi_query": True},
    "falcon, 40b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, 11b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
    "chatglm2 and 3": CHATGLM,
    "chatglm, longer": {**CHATGLM, "rope_ratio": 50.0},
    "glm, 4-9b": {**BASE, "model_type": "glm", "attention_bias": True},
    "glm, tied, no biases": {**BASE, "model_type": "glm", "attention_bias": False, "tie_word_embeddings": True},
    "glm4": {**BASE, "model_type": "glm4", "head_dim": 24},
    "glm4, biases": {**BASE, "model_type": "glm4", "attention_bias": True},
}


def logits_of(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """(tokens, vocabulary), by f32 weights and cache on one thread."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = CONTEXT
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # ggml's number of f32
    settings.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit(f"llama.cpp cannot run {path}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    found = np.ctypeslib.as_array(rows, (len(ids), vocabulary)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def cut_up(host: Host, file: Path) -> list[tuple[str, list[int]]]:
    """Texts and what llama.cpp makes of them, by the vocabulary of ChatGLM3."""
    save_tiny_chatglm3(Path(os.environ["BESTIARY_TEST_DATA"]), host, file)
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    random = np.random.default_rng(1)
    texts = [*TEXTS, *("".join(random.choice(list(LETTERS), random.integers(1, 40))) for _ in range(100))]
    return [(text, model.tokenize(text.encode(), add_bos=True, special=False)) for text in texts]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    host, goldens = Host(HostSettings(names=())), []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            file = Path(folder) / "model.gguf"
            file.unlink(missing_ok=True)
            save_random(config, host, file)
            ids = np.random.default_rng(1).integers(0, config["vocab_size"], TOKENS).tolist()
            theirs = logits_of(file, ids)
            with bestiary.load(file, "numpy", context=CONTEXT, host=host) as model:
                ours = model.logits(ids)
            spread = float(theirs.max() - theirs.min())
            second, first = np.sort(theirs)[:, -2:].T
            lead = (first - second) / spread  # (tokens,)
            print(f"{name:30} spread {spread:6.2f}, difference {np.abs(ours - theirs).max() / spread:8.1e}, "
                  f"{(lead > 0.02).sum()} clear leads")
            goldens.append({"name": name, "config": config, "context": CONTEXT, "prompt_ids": ids,
                            "likeliest": theirs.argmax(axis=1).tolist(), "lead": np.round(lead, 4).tolist()})
        texts = cut_up(host, Path(folder) / "chatglm3.gguf")
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    cut = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in texts)
    facts = {"made_by": "scripts/make_goldens_families.py",
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": "f32 weights and cache, one thread, no flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    GOLDENS.write_text(f'{{\n{head},\n "texts": [\n{cut}\n ],\n "models": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
