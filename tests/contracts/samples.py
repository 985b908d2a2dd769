"""A small valid file of every format that the built-in loaders read."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bestiary.canonical import spelled
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.host import Host
from bestiary.testing.tiny import Floats, Model, make_model
from bestiary_plugins.architectures.llama import Llama
from bestiary_plugins.loaders.gguf_writer import GgufWriter
from tests.loaders import bloom_falcon_files
from tests.loaders.conftest import TorchFiles
from tests.loaders.ggml_llama_writer import old_file

Arrays = dict[str, Floats]


def model() -> Model:
    return make_model(Llama(), {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
                                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                                "vocab_size": 12, "max_position_embeddings": 32})


def arrays(naming: str) -> Arrays:
    made, _, _ = spelled(Llama.namings[naming], model().given, model().tensors)
    return {name: tensor.array() for name, tensor in made.items()}


def gguf(folder: Path) -> Path:
    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([letter]) for letter in b"abcdefghi")]
    material = TokenizerMaterial({}, Vocabulary("bpe", pieces, [0.0] * 12, [2, 3, 3, *[1] * 9], unknown=0), 1, 2)
    path = folder / "model.gguf"
    GgufWriter().save(model().checkpoint.having(tokenizer=material), path, Host())
    return path


def huggingface(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(model().given))
    save_file(arrays("huggingface"), folder / "model.safetensors")
    return folder


def meta(folder: Path) -> Path:
    (folder / "consolidated.00.pth").write_bytes(TorchFiles.zip(arrays("meta"), prefix="consolidated.00"))
    (folder / "params.json").write_text(json.dumps({
        "dim": 16, "multiple_of": 8, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-6, "vocab_size": -1,
        "ffn_dim_multiplier": 24 / 40}))
    return folder


def llama2c(folder: Path) -> Path:
    """Version 1 of its exporter: a header of 256 bytes, the norms, then the matrices."""
    given = arrays("meta")
    order = ("attention_norm", "ffn_norm", "norm", "tok_embeddings", "attention.wq", "attention.wk", "attention.wv",
             "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "output")
    data = b""
    for part in order:
        names = [f"{part}.weight"] if f"{part}.weight" in given else [f"layers.{i}.{part}.weight" for i in range(2)]
        data += b"".join(given[name].tobytes() for name in names)
    path = folder / "model.bin"
    path.write_bytes(struct.pack("<Ii7iB", 0x616B3432, 1, 16, 24, 2, 4, 2, 12, 32, False).ljust(256, b"\0") + data)
    return path


def ggml_llama(folder: Path) -> Path:
    path = folder / "ggml-model-q4_0.bin"
    path.write_bytes(old_file("ggjt", 1, 2).data())
    return path


def sentencepiece(folder: Path) -> Path:
    import sentencepiece as library

    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "hello world"] * 20), model_writer=model, model_type="bpe",
        vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def tiktoken(folder: Path) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256)))
    return path


def tokenizer_json(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<bos>", "<eos>"])
    path = folder / "tokenizer.json"
    path.write_text(made.to_str())
    return path


def llama2c_tokenizer(folder: Path) -> Path:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b"b", b"ab"]
    path = folder / "tokenizer.bin"
    path.write_bytes(struct.pack("<I", 6) + b"".join(
        struct.pack("<fi", -float(i), len(piece)) + piece for i, piece in enumerate(pieces)))
    return path


def peft(folder: Path) -> Path:
    """It adds to one matrix and replaces another."""
    given, rng = arrays("huggingface"), np.random.default_rng(4)
    module, kept = "model.layers.0.mlp.up_proj", "model.norm.weight"
    rows, columns = given[f"{module}.weight"].shape
    save_file({f"base_model.model.{module}.lora_A.weight": rng.standard_normal((3, columns)).astype(np.float32),
               f"base_model.model.{module}.lora_B.weight": rng.standard_normal((rows, 3)).astype(np.float32),
               f"base_model.model.{kept}": given[kept]}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "modules_to_save": ["norm"], "target_modules": ["up_proj"]}))
    return folder


def bloomz(folder: Path) -> Path:
    path = folder / "model.bin"
    path.write_bytes(bloom_falcon_files.bloom(bloom_falcon_files.q4_1))
    return path


def ggllm(folder: Path) -> Path:
    path = folder / "model.bin"
    path.write_bytes(bloom_falcon_files.falcon("ggcc", 10, 40))
    return path


SAMPLES: Mapping[str, Callable[[Path], Path]] = {
    "gguf": gguf, "huggingface": huggingface, "meta": meta, "peft": peft, "llama2.c": llama2c,
    "ggml-llama": ggml_llama,
    "sentencepiece": sentencepiece, "tiktoken": tiktoken, "tokenizer.json": tokenizer_json,
    "llama2c-tokenizer": llama2c_tokenizer, "bloomz.cpp": bloomz, "ggllm.cpp": ggllm}
"""By the loader's name: a new loader needs a line here."""

HEADERS = {"gguf": 2048, "llama2.c": 256, "ggml-llama": 2560, "bloomz.cpp": 2048, "ggllm.cpp": 3072}
"""Bytes that tell how to read the rest, where they are not the usual ones."""

