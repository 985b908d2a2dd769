"""The perplexities that llama.cpp gives files that we wrote, kept in tests/goldens/perplexity.json.

Run by hand, with llama-cpp-python installed beside Bestiary:

    python scripts/make_goldens_perplexity.py $BESTIARY_TEST_DATA

Its program for it is not in the package; this one cuts and scores as that does (tools/perplexity/perplexity.cpp):
chunks of the whole text's ids, BOS in the place of each chunk's first token where the vocabulary adds one, and of a
chunk of n tokens the losses of those after the first n/2 + 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import bestiary
from bestiary.host import Host, HostSettings
from bestiary.saving import save_as
from bestiary_plugins.demo.command import HERE, model

GOLDENS = Path(__file__).parents[1] / "tests/goldens/perplexity.json"
TYPES = {"f32": 0, "f16": 1}  # ggml's numbers, for the cache
# Both programs round activations to 8 bits, each in its way. On a model this small and a text it cannot read that moves
# a loss here and there: over 1,785 tokens with an f16 cache the two differed by 0.12 % (as much as from the same file
# computed in f32), over ten times as many by 0.04 %.
CASES = (  # model, its type, the cache's type, text, characters of it, context
    ("stories260K", "f32", "f32", "stories", None, 128),
    ("stories260K", "q8_0", "f16", "stories", None, 128),
    ("stories260K", "f32", "f32", "shakespeare", 6000, 512),
    ("stories260K", "q8_0", "f32", "shakespeare", 6000, 512),
    ("stories260K", "q8_0", "f16", "shakespeare", 60000, 512),
    ("demo", "f16", "f16", "held back", None, 256),
    ("demo", "q8_0", "f16", "held back", None, 256),
    *(("demo", kind, "f16", "held back", None, 256) for kind in ("q5_1", "q5_0", "q4_1", "q4_0")),
    ("demo", "f16", "f16", "held back", None, 512),
    ("demo", "f16", "f16", "shakespeare", 12000, 512),
)


def text_of(name: str, characters: int | None, data: Path) -> str:
    """stories: what the model's description prints; held back: what the demo's model has not seen."""
    if name == "stories":
        said = (data / "tiny-llama/stories260K.md").read_text("utf-8")
        text = said[said.index("Once upon a time"):].partition("\n```")[0]
    elif name == "held back":
        text = (HERE / "held_back.txt").read_text("utf-8")
    else:
        text = (data / "texts/tinyshakespeare.txt").read_text("utf-8")
    return text[:characters].removesuffix("\n")


def perplexity(file: Path, text: str, context: int, cache: str) -> dict[str, Any]:
    model = llama_cpp.Llama(str(file), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=2, logits_all=True,
                            type_k=TYPES[cache], type_v=TYPES[cache], flash_attn=False, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    begins = llama_cpp.llama_vocab_get_add_bos(vocabulary)
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    first, losses = context // 2, []
    for start in range(0, len(ids) - context + 1, context):
        chunk = ids[start:start + context]
        if begins:
            chunk[0] = model.token_bos()
        model.reset()
        model.eval(chunk)
        logits = np.array(model.scores[first:context - 1], np.float64)  # (context - 1 - first, vocabulary)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), chunk[first + 1:]]
        losses += (np.log(np.exp(logits).sum(axis=1)) - chosen).tolist()
    mean = float(np.mean(losses))
    spread = float(np.mean(np.square(losses))) - mean * mean
    value = math.exp(mean)
    return {"perplexity": value, "error": value * math.sqrt(spread / (len(losses) - 1)), "tokens": len(losses),
            "ids": len(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of test data")
    data = parser.parse_args().data
    sources = {"stories260K": data / "tiny-llama/stories260K.bin", "demo": model()}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, cache, text, characters, context in CASES:
            file = Path(folder) / f"{name}-{kind}.gguf"
            if not file.exists():
                save_as(sources[name], file, kind, Host(HostSettings(names=())))
            found.append({"model": name, "type": kind, "cache": cache, "text": text, "characters": characters,
                          "context": context, **perplexity(file, text_of(text, characters, data), context, cache)})
            print(found[-1])
    lines = ",\n".join("  " + json.dumps(golden) for golden in found)
    weights = {"stories260K": sources["stories260K"], "demo": sources["demo"] / "model.safetensors"}
    facts = {"made_by": "scripts/make_goldens_perplexity.py",
             "sha256": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in weights.items()},
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": "two threads, no flash attention; a chunk is one batch"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    GOLDENS.write_text(f'{{\n{head},\n "perplexities": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
