"""What today's llama.cpp says of files that we converted from those of bloomz.cpp and ggllm.cpp, kept in
tests/goldens/bloom_falcon_files.json: the ids of texts, and greedy ids.

Run by hand, with llama-cpp-python installed beside Bestiary:

    python scripts/make_goldens_bloom_falcon_files.py $BESTIARY_TEST_DATA/legacy-models
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import bestiary
from bestiary.host import Host, HostSettings
from bestiary.saving import save_as

GOLDENS = Path(__file__).parents[1] / "tests/goldens/bloom_falcon_files.json"
FILES = ("bloom-bloomzcpp-f16.bin", "bloom-bloomzcpp-q4_0.bin", "bloom-bloomzcpp-q4_1.bin", "falcon7-ggmf1-f16.bin",
         "falcon7-ggcc-q4_0.bin", "falcon40-ggcc-q4_k.bin")
PROMPT = "Before we proceed any further, hear me speak."
TEXTS = (PROMPT, "Once upon a time, there was a king. 话说宝玉。", "Hello, world!  two  spaces\n\nnew line", " a",
         "a.b,c 12345 (x|y) don't", "红楼梦 第一回 甄士隐", "emoji \U0001f600 na\u00efve \ufffd",
         "<s> </s> <|endoftext|>")
F32 = 0  # ggml's number for it
COUNT = 24


def said(path: Path) -> dict[str, Any]:
    """Ids of the texts, the likeliest ids after the prompt, and the smallest lead that one of them had in logits."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, type_k=F32,
                            type_v=F32, flash_attn=False, verbose=False)
    texts = [model.tokenize(text.encode(), add_bos=True, special=False) for text in TEXTS]
    model.eval(texts[0])
    chosen, lead = list[int](), np.inf
    for _ in range(COUNT):
        logits = model.scores[model.n_tokens - 1]
        second, first = np.sort(logits)[-2:]
        lead = min(lead, float(first - second))
        chosen.append(int(np.argmax(logits)))
        model.eval(chosen[-1:])
    return {"texts": texts, "ids": chosen, "smallest_lead": round(lead, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the old files")
    folder = parser.parse_args().folder
    goldens = []
    with tempfile.TemporaryDirectory() as work:
        for name in FILES:
            file = Path(work) / "x.gguf"
            save_as(folder / name, file, "f16", Host(HostSettings(names=())), force=True)
            goldens.append({"file": name, **said(file)})
    facts = {"made_by": f"scripts/{Path(__file__).name}", "command": "bestiary convert --outtype f16 FILE",
             "texts": list(TEXTS),
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": "cache in f32, one thread, no flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    GOLDENS.write_text(f'{{\n{head},\n "files": [\n{lines}\n ]\n}}\n')
    print(f"{GOLDENS}: smallest lead {min(golden['smallest_lead'] for golden in goldens)}")


if __name__ == "__main__":
    main()
