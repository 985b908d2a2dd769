"""What today's llama.cpp says of files of 2023 that we converted to GGUF: greedy ids, in tests/goldens/converted.json.

Run by hand, with llama-cpp-python installed beside Bestiary:

    python scripts/make_goldens_converted.py $BESTIARY_TEST_DATA/legacy-models
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

GOLDENS = Path(__file__).parents[1] / "tests/goldens/converted.json"
F32 = 0  # ggml's number for it
COUNT = 24


def greedy(path: Path, ids: list[int]) -> dict[str, Any]:
    """The likeliest ids after these, the smallest lead that one of them had in logits, and the logits before them."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, type_k=F32,
                            type_v=F32, flash_attn=False, verbose=False)
    model.eval(ids)
    first = model.scores[model.n_tokens - 1].copy()
    chosen, lead = list[int](), np.inf
    for _ in range(COUNT):
        logits = model.scores[model.n_tokens - 1]
        second, best = np.sort(logits)[-2:]
        lead = min(lead, float(best - second))
        chosen.append(int(np.argmax(logits)))
        model.eval(chosen[-1:])
    return {"prompt_ids": ids, "ids": chosen, "smallest_lead": round(lead, 5),
            "logits": [round(float(value), 4) for value in first[:8]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the old files, with expected.json")
    folder = parser.parse_args().folder
    goldens = []
    with tempfile.TemporaryDirectory() as work:
        for name, notes in json.loads((folder / "expected.json").read_text())["files"].items():
            said = notes.get("logits_numpy_float64")
            if name.endswith(".gguf") or said is None:
                continue
            file = Path(work) / "x.gguf"
            config = {"rms_norm_eps": said["eps"]} if "eps" in said else {}
            save_as(folder / name, file, None, Host(HostSettings(names=())), config=config, force=True)
            goldens.append({"file": name, "config": config, **greedy(file, said["ids"])})
    facts = {"made_by": f"scripts/{Path(__file__).name}", "command": "bestiary convert FILE FILE.gguf -eps X",
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "bestiary": bestiary.__version__},
             "settings": "cache in f32, one thread, no flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    GOLDENS.write_text(f'{{\n{head},\n "generations": [\n{lines}\n ]\n}}\n')
    print(f"{GOLDENS}: smallest lead {min(golden['smallest_lead'] for golden in goldens)}")


if __name__ == "__main__":
    main()
