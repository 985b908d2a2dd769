"""How much memory a merge takes at most, and how long, at the size of LLaMA-7B: base + delta -> q4_0 in one pass.

    python benchmarks/merge_memory.py [--layers 32] [--lora] [--steps] [--folder FOLDER] [--json]

Base and delta are of random f16, 13.5 GB each, written as they are made; both lie in three shards, and the delta has
one row more, as Chimera's. Memory is measured as in peak_memory.py: the largest resident set of the command's own
process, mapped and shared pages included.

--lora: an adapter of rank 64 on all matrices instead, with 49954 rows in its embedding and output matrix. --steps: a
merged Hugging Face folder as well, another 13.5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peak_memory import Shape, config, fill, measured, shapes, size
from temporary import temporary

SHARDS, RANK, GROWN = 3, 64, 49954
PREFIX = "base_model.model."


def save(path: Path, of: dict[str, Shape]) -> None:
    """A safetensors file of random f16."""
    header, at = {}, 0
    for name, shape in of.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in of.values():
            fill(file, size(shape), False)


def make_model(folder: Path, of: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(of))
    tensors = shapes(of)
    names, places = list(tensors), dict[str, str]()
    for i in range(SHARDS):
        mine = names[i * len(names) // SHARDS:(i + 1) * len(names) // SHARDS]
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        save(folder / file, {name: tensors[name] for name in mine})
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def make_adapter(folder: Path, of: dict[str, Any]) -> None:
    """Factors as large as weights: what they make of a model is of no interest here."""
    folder.mkdir()
    tensors: dict[str, Shape] = {}
    for name, shape in shapes(of).items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[PREFIX + name] = (GROWN, shape[1])
        elif len(shape) == 2:
            module = PREFIX + name.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": (RANK, shape[1]), f"{module}.lora_B.weight": (shape[0], RANK)}
    save(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK,
                                                            "modules_to_save": ["embed_tokens", "lm_head"]}))


MAKERS = {"model": make_model, "adapter": make_adapter}


def made(kind: str, folder: Path, of: dict[str, Any]) -> int:
    """Makes it in a process of its own, see peak_memory.py. Gives its bytes."""
    print(f"making {folder.name}", file=sys.stderr)
    subprocess.run([sys.executable, __file__, "--make", kind, str(folder), json.dumps(of)], check=True)
    return sum(file.stat().st_size for file in folder.iterdir())


def run(place: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    ours = [sys.executable, "-m", "bestiary"]
    base, other, out = place / "base", place / ("adapter" if given.lora else "delta"), place / "q4_0.gguf"
    count = made("model", base, config(4096, 11008, given.layers, 32000, 32, False))
    if given.lora:
        count += made("adapter", other, config(4096, 11008, given.layers, 32000, 32, False))
        words = [*ours, "convert", "--base", str(base), "--lora", str(other)]
        merge = ["--base", str(base), "--lora", str(other)]
    else:
        count += made("model", other, config(4096, 11008, given.layers, 32001, 32, False))
        words = [*ours, "convert", str(other), "--base", str(base)]
        merge = ["--base", str(base), "--delta", str(other)]
    os.sync()  # what is still to be written of the inputs is no part of a merge
    what = "base + " + other.name
    yield measured(f"{what} to gguf q4_0, one pass", [*words, "--outfile", str(out), "--outtype", "q4_0"], count, out)
    out.unlink()
    if given.steps:
        whole = place / "merged"
        yield measured(f"{what} to a Hugging Face folder", [*ours, "merge", *merge, "--target", str(whole)], count,
                       whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", nargs=3, metavar=("KIND", "FOLDER", "CONFIG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        kind, folder, text = given.make
        MAKERS[kind](Path(folder), json.loads(text))
        return
    with temporary(given.folder) as place:
        results = list(run(place, given))
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
