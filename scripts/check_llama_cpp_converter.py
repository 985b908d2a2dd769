"""Whether files that llama.cpp's own converter writes give the logits of transformers here, family by family. Where
transformers has no such model, they must give what the checkpoint itself gives here.

Run by hand from the root of the tree, with torch, transformers, gguf and sentencepiece installed beside Bestiary, and
llama.cpp's source, which is in the source package of llama-cpp-python:

    PYTHONPATH=. python scripts/check_llama_cpp_converter.py llama_cpp_python-*/vendor/llama.cpp

Fails where a model is further off than 1e-4 of the spread, unless the converter keeps silent about what makes it so.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

import bestiary
from bestiary.canonical import from_canonical, to_canonical
from bestiary.host import Host, HostSettings
from tests.goldens.random_models import save_random
from tests.parity.conftest import Parity
from tests.parity.test_families_parity import MODELS as OTHERS
from tests.parity.test_llama_kin_parity import BASE, CONTEXT, MODELS, older

FALCONS = ("falcon 7b", "falcon 40b", "falcon 11b", "falcon, untied")
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", BASE), **MODELS,
    **{name: model for name, model in OTHERS.items()
       if "goes on" not in name and (name in FALCONS or not name.startswith("falcon"))}}
"""Of those that are in the tests what llama.cpp can run: no Falcon with biases, linear biases or another order, no
BLOOM whose normed input goes on."""
CHATGLM = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "hidden_size": 96, "num_layers": 3,
           "num_attention_heads": 6, "multi_query_group_num": 2, "multi_query_attention": True, "kv_channels": 16,
           "ffn_hidden_size": 160, "padded_vocab_size": 199, "vocab_size": 199, "seq_length": 128,
           "layernorm_epsilon": 1e-5, "add_qkv_bias": True}
PUBLISHED = {"chatglm2 and 3": CHATGLM, "chatglm2, longer": {**CHATGLM, "rope_ratio": 50.0}}
CORPUS = ["the cat sat on the mat", "a dog and a cat went to the market", "hello world"] * 20
BOUND = 1e-4
SILENT = {  # what its files do not say
    "mistral, window": "the window", "mixtral, window, one expert": "the window",
    "qwen2, tied, window in later layers": "the window", "qwen2, windows listed": "the window",
    "gemma2, another scale, biases": "the scale", "gemma2, no caps": "that there are none",
    "gpt2, scaled by layer, erf, untied": "the width, the scale, the form of GELU", "gpt2, unscaled": "the scale",
    "gpt-neox, one after the other": "the base, the form of GELU",
    "gpt-neox, no biases of attention, linear, tied": "the scaling",
    "glm, all rotated": "the base", "glm, odd sizes": "the width of a head"}
BYTE_LEVEL = ("gpt2", "gpt_neox", "bloom", "falcon", "chatglm", "glm", "glm4")
# The converter knows vocabularies by their hash, and a config of GPT-NeoX as transformers 4 gives it.
RUN = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/gguf-py"]
import convert_hf_to_gguf
from conversion import base, gptneox
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
keys = gptneox.GPTNeoXModel.set_gguf_parameters
def with_share(self):
    self.hparams.setdefault("rotary_pct", self.rope_parameters.get("partial_rotary_factor"))
    keys(self)
gptneox.GPTNeoXModel.set_gguf_parameters = with_share
convert_hf_to_gguf.main()
"""


def add_tokenizer(path: Path, byte_level: bool) -> None:
    """Some tokenizer: without one the converter writes nothing."""
    if byte_level:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
            vocab_size=80, show_progress=False, special_tokens=["<|endoftext|>", "<|user|>"]))
        tokenizer.save(str(path / "tokenizer.json"))
    else:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe",
                                                 vocab_size=60, hard_vocab_limit=False, minloglevel=2)
        (path / "tokenizer.model").write_bytes(model.getvalue())
    kind = "PreTrainedTokenizerFast" if byte_level else "LlamaTokenizer"
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))


def converted(path: Path, root: Path) -> Path | None:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    elif config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        config["num_kv_heads"] = 1  # transformers writes the number of heads, and the converter believes it
    elif config["model_type"] not in ("phi3", *BYTE_LEVEL) or config["model_type"] == "gpt_neox":
        older(config)
    (path / "config.json").write_text(json.dumps(config))
    add_tokenizer(path, config["model_type"] in BYTE_LEVEL)
    target = path / "converted.gguf"
    done = subprocess.run([sys.executable, "-c", RUN.format(root=str(root)), str(path), "--outtype", "f32", "--outfile",
                           str(target)], capture_output=True, text=True, check=False)
    return target if done.returncode == 0 else None


def difference(parity: Parity, name: str, root: Path) -> str | float:
    """Over the spread of the logits; or why there is none."""
    model_class, config = FAMILIES[name]
    reference = parity.reference(name.replace(",", ""), model_class, config)
    file = converted(reference.path, root)
    if file is None:
        return "the converter fails"
    try:
        with bestiary.load(file, "numpy", context=CONTEXT.get(name), host=parity.host) as model:
            return reference.difference(model.logits(np.asarray(reference.ids).tolist()))
    except bestiary.BestiaryError as error:
        return str(error)


def difference_of_published(name: str, host: Host, root: Path, path: Path) -> str | float:
    """The same, of a model that transformers does not have."""
    config = PUBLISHED[name]
    save_random(config, host, path / "model.gguf")
    checkpoint = host.open(path / "model.gguf")
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer)
    canonical = from_canonical(to_canonical(checkpoint, family)[0], family, "huggingface")
    arrays = {key: np.ascontiguousarray(tensor.array()) for key, tensor in canonical.tensors.items()}
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.gguf").unlink()
    ids = np.random.default_rng(0).integers(0, 199, 60).tolist()
    with bestiary.load(path, "numpy", host=host) as model:
        wanted = model.logits(ids)
    file = converted(path, root)
    if file is None:
        return "the converter fails"
    with bestiary.load(file, "numpy", host=host) as model:
        return float(np.abs(model.logits(ids) - wanted).max() / np.ptp(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path, help="the source of llama.cpp")
    root = parser.parse_args().llama_cpp.resolve()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        parity = Parity(Path(folder), Host(HostSettings(names=())), {})
        for name in (*FAMILIES, *PUBLISHED):
            if name in FAMILIES:
                found = difference(parity, name, root)
            else:
                (place := Path(folder) / name).mkdir()
                found = difference_of_published(name, parity.host, root, place)
            good = isinstance(found, float) and found < BOUND
            failed |= not good and name not in SILENT
            said = f"{found:.1e}" if isinstance(found, float) else found
            print(f"{name:48} {said}" + (f"  (its files do not say {SILENT[name]})" if name in SILENT else ""))
    sys.exit(failed)


if __name__ == "__main__":
    main()
