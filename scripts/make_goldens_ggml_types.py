"""What today's llama.cpp computes with each of its types, kept in tests/goldens/ggml_types.json.

Run by hand from the root of the tree, with llama-cpp-python installed beside Bestiary:

    PYTHONPATH=. python scripts/make_goldens_ggml_types.py

Each model is tiny, of random blocks that the tests make again, so that nothing but logits is kept: those after the last
token of a random text, the likeliest id after each, and by how much it leads over the spread of the logits. llama.cpp
rounds what it multiplies weights with to 8 bits.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

import bestiary
from bestiary.host import Host, HostSettings
from scripts.make_goldens_families import logits_of
from tests.goldens.random_blocks import CONFIG, TYPES, save_blocks

GOLDENS = Path(__file__).parents[1] / "tests/goldens/ggml_types.json"
TOKENS = 32
MIXES = (("q4_k", "q6_k"), ("iq2_xs", "q2_k", "iq3_s", "iq4_xs"), ("tq1_0", "q4_k", "iq1_m", "nvfp4", "q8_0"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    host, goldens = Host(HostSettings(names=())), []
    ids = np.random.default_rng(1).integers(0, CONFIG["vocab_size"], TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        for types in (*((name,) for name in TYPES), *MIXES):
            file = Path(folder) / "model.gguf"
            total = save_blocks(types, host, file)
            theirs = logits_of(file, ids)
            with bestiary.load(file, "numpy", context=256, host=host) as model:
                ours = model.logits(ids)
            spread = float(np.ptp(theirs))
            second, first = np.sort(theirs)[:, -2:].T
            print(f"{'-'.join(types):32} spread {spread:6.2f}, difference {np.abs(ours - theirs).max() / spread:8.1e}")
            lead = (first - second).astype(float) / spread  # (tokens,)
            goldens.append({"types": types, "sha256": total, "spread": round(spread, 4),
                            "likeliest": theirs.argmax(axis=1).tolist(), "lead": np.round(lead, 3).tolist(),
                            "last": np.round(theirs[-1].astype(float), 3).tolist()})
    facts = {"made_by": f"scripts/{Path(__file__).name}", "ids": ids,
             "versions": {"llama_cpp_python": llama_cpp.__version__, "python": platform.python_version(),
                          "numpy": np.__version__, "bestiary": bestiary.__version__},
             "settings": "cache in f32, one thread, no flash attention"}
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in facts.items())
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    GOLDENS.write_text(f'{{\n{head},\n "models": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
