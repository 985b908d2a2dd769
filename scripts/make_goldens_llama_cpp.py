"""What llama.cpp says of a file that we wrote: greedy ids of stories260K, kept in tests/goldens/stories260k.json.

Run by hand, with llama-cpp-python installed beside Bestiary:

    python scripts/make_goldens_llama_cpp.py $BESTIARY_TEST_DATA/tiny-llama/stories260K.bin
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

GOLDENS = Path(__file__).parents[1] / "tests/goldens/stories260k.json"
F32 = 0  # ggml's number for it
CONTEXT = 512
PROMPTS = (("", 200), ("Once upon a time", 100), ("Tim and his dog Max", 100), ("Lily's mom said, \"", 100),
           ("The big red ball", 100), ("One day, a little bird wanted to fly, but", 100))


def greedy(model: llama_cpp.Llama, prompt: str, count: int) -> dict[str, Any]:
    """The prompt's ids, the likeliest `count` ids after it, and the smallest lead that one of them had in logits."""
    ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
    model.reset()
    model.eval(ids)
    chosen: list[int] = []
    lead = np.inf
    for _ in range(count):
        logits = model.scores[model.n_tokens - 1]
        second, first = np.sort(logits)[-2:]
        lead = min(lead, float(first - second))
        chosen.append(int(np.argmax(logits)))
        model.eval(chosen[-1:])
    return {"prompt": prompt, "prompt_ids": ids, "ids": chosen, "smallest_lead": round(lead, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="stories260K.bin, with tok512.bin beside it")
    path = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.gguf"
        save_as(path, file, "f32", Host(HostSettings(names=())))
        model = llama_cpp.Llama(str(file), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, logits_all=True,
                                type_k=F32, type_v=F32, flash_attn=False, verbose=False)
        goldens = [greedy(model, prompt, count) for prompt, count in PROMPTS]
    GOLDENS.parent.mkdir(exist_ok=True)
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    facts = {"made_by": "scripts/make_goldens_llama_cpp.py", "command": f"bestiary convert {path.name} --outtype f32",
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": "f32 weights and cache, one thread, no flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    GOLDENS.write_text(f'{{\n{head},\n "generations": [\n{lines}\n ]\n}}\n')
    print(f"{GOLDENS}: smallest lead {min(golden['smallest_lead'] for golden in goldens)}")


if __name__ == "__main__":
    main()
