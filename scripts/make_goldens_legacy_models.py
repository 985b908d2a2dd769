"""What today's llama.cpp says of files that we converted from old ones: greedy ids, kept in tests/goldens.

Run by hand, with llama-cpp-python installed beside Bestiary:

    python scripts/make_goldens_legacy_models.py $BESTIARY_TEST_DATA/legacy-models
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import bestiary
from bestiary.host import Host, HostSettings
from bestiary.saving import save_as

GOLDENS = Path(__file__).parents[1] / "tests/goldens"
FILES = ("meta-pth", "llama-gguf1-f16.gguf", "llama-gguf1-q4_0.gguf", "llama-gguf2-q4_0.gguf",
         "llama-gguf2-q4_0-nulstrings.gguf", "llama-gguf3-q8_0.gguf")
BEFORE_GGUF = ("llama-gg[mj]*.bin", "rnd-gg[mj]*.bin")
F32 = 0  # ggml's number for it
COUNT = 24


def greedy(path: Path, text: str) -> dict[str, Any]:
    """The text's ids, the likeliest ids after it, and the smallest lead that one of them had in logits."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, type_k=F32,
                            type_v=F32, flash_attn=False, verbose=False)
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    model.eval(ids)
    chosen, lead = list[int](), np.inf
    for _ in range(COUNT):
        logits = model.scores[model.n_tokens - 1]
        second, first = np.sort(logits)[-2:]
        lead = min(lead, float(first - second))
        chosen.append(int(np.argmax(logits)))
        model.eval(chosen[-1:])
    return {"prompt_ids": ids, "ids": chosen, "smallest_lead": round(lead, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the old files, with expected.json")
    folder = parser.parse_args().folder
    text = json.loads((folder / "expected.json").read_text())["prompt_text_llama"]
    before = sorted(path.name for pattern in BEFORE_GGUF for path in folder.glob(pattern))
    make(folder, FILES, None, text, GOLDENS / "legacy.json")
    make(folder, before, "f16", text, GOLDENS / "before_gguf.json")


def make(folder: Path, files: Iterable[str], type: str | None, text: str, target: Path) -> None:
    """Converts the files to the type and writes what llama.cpp says of them. type: None for their own types."""
    goldens = []
    with tempfile.TemporaryDirectory() as work:
        for name in files:
            file = Path(work) / "x.gguf"
            save_as(folder / name, file, type, Host(HostSettings(names=())), force=True)
            goldens.append({"file": name, **greedy(file, text)})
    command = "bestiary convert FILE" + (f" --outtype {type}" if type else "")
    facts = {"made_by": f"scripts/{Path(__file__).name}", "command": command, "text": text,
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": f"{'weights in ' + type if type else 'types as in the file'}, cache in f32, one thread, no "
                         "flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    target.write_text(f'{{\n{head},\n "generations": [\n{lines}\n ]\n}}\n')
    print(f"{target}: smallest lead {min(golden['smallest_lead'] for golden in goldens)}")


if __name__ == "__main__":
    main()
