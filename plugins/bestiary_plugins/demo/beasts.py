"""`bestiary demo --beasts`: a tiny checkpoint of every family that is there is converted, quantized and run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.canonical import from_canonical, to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.errors import BestiaryError
from bestiary.tensor import ArrayTensor
from bestiary_plugins.demo.merges import FAMILY, MERGES, Parts

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.host import Host

NAMING = "huggingface"
PLAIN, SMALL = "f16", "q8_0"
TEXT = ("Tyger Tyger, burning bright, In the forests of the night; What immortal hand or eye, Could frame thy fearful "
        "symmetry?")
SPECIAL = ("<unk>", "<s>", "</s>")
SEED, PREFILL, DECODE, SPOKEN = 11, 64, 16, 12
FIGURES = (("family", 13), ("weights", 8), (PLAIN, 8), (SMALL, 8), ("agrees", 6), ("prefill tokens/s", 16),
           ("decode tokens/s", 15), ("says", 4))


@dataclass(frozen=True)
class Row:
    """What was seen of a family. same: the share of the positions of a text at which the quantized model finds the
    token likeliest that the model finds so as it was published."""

    family: str
    weights: int
    plain: int
    small: int
    same: float
    prefill: float
    decode: float
    says: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.family, f"{self.weights:,}", _size(self.plain), _size(self.small), f"{self.same:.0%}",
                f"{self.prefill:,.0f}", f"{self.decode:,.0f}", self.says)


def beasts(host: Host, folder: Path, backend: str | None, threads: int | None, seed: int) -> None:
    """Prints the table, a row as soon as it is measured; the models are written to a folder each in `folder`. Raises
    BestiaryError at the end where a family failed."""
    print("Tiny models of random weights, one of every family: published, converted, quantized, run; and two that are "
          "merged.\n")
    print(_line(tuple(title for title, _ in FIGURES)), flush=True)
    failed = []
    merges = MERGES if FAMILY in host.architectures else ()
    for name in (*sorted(host.architectures), *merges):
        try:
            row = beast(name, folder / name, host, backend, threads, seed)
            print(_line(row.cells), flush=True)
        except BestiaryError as error:
            failed.append(name)
            print(f"{name}: {error}", flush=True)
    print(f"\n{PLAIN}, {SMALL}: sizes of the files. agrees: at how many tokens of a text the {SMALL} file finds the "
          "same next one likeliest\nas the checkpoint does. Random weights know nothing: they waver most, and speak "
          "nonsense.")
    if failed:
        raise BestiaryError(f"{len(failed)} of the beasts did not run: {', '.join(failed)}")


def beast(name: str, folder: Path, host: Host, backend: str | None, threads: int | None, seed: int) -> Row:
    """One family or merge, from a checkpoint that is made of random weights to what its files are worth."""
    from bestiary.benchmark import Bench
    from bestiary.model import load
    from bestiary.saving import save_as

    plain, small = folder / f"{PLAIN}.gguf", folder / f"{SMALL}.gguf"
    make = MERGES.get(name) if name not in host.architectures else None
    architecture = host.architectures[name if make is None else FAMILY]
    with host.calling(architecture, "make a tiny model"):
        if make is None:
            parts = Parts(folder / "published", publish(architecture, folder / "published", seed))
        else:
            folder.mkdir(parents=True)
            parts = make(architecture, folder, publish, seed)
    save_as(parts.source, plain, PLAIN, host, architecture=architecture.name, base=parts.base, adapters=parts.adapters)
    save_as(plain, small, SMALL, host, architecture=architecture.name)
    with load(parts.source if make is None else plain, backend, threads, host=host,
              architecture=architecture.name) as model:
        ids = model.tokenizer.encode(TEXT, bos=True)[-model.plan.limits.context:]
        wanted = model.logits(ids).argmax(axis=1)
    with load(small, backend, threads, host=host, architecture=architecture.name) as model:
        same = float((model.logits(ids).argmax(axis=1) == wanted).mean())
        says = model.generate(TEXT[:24], max_tokens=SPOKEN, temperature=0, ignore_eos=True)
        bench, room = Bench(model), model.plan.limits.context
        return Row(name, parts.weights, plain.stat().st_size, small.stat().st_size, same,
                   bench.prefill(min(PREFILL, room)).tokens_per_second,
                   bench.decode(min(DECODE, room)).tokens_per_second, repr("".join(says)))


def publish(architecture: Architecture, folder: Path, seed: int, **values: Any) -> int:
    """Writes the family's example as its authors would have: a folder with config.json, safetensors in their names and
    row orders, and a tokenizer. values: in place of the example's. Gives the number of weights."""
    from safetensors.numpy import save_file

    config = {**architecture.example_config(), **values}
    normal = architecture.normalise(config, {})
    graph = architecture.graph(normal, normal["max_position_embeddings"])
    derived = architecture.derived(normal)
    random = np.random.default_rng(seed)
    made = Checkpoint(folder, config, {name: ArrayTensor(weights(name, shape, random))
                                       for name, shape in graph.weights.items() if name not in derived}, CANONICAL)
    theirs = from_canonical(to_canonical(made, architecture)[0], architecture, NAMING)
    folder.mkdir(parents=True)
    save_file({name: tensor.decode().reshape(tensor.shape).astype(np.float16)
               for name, tensor in theirs.tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(graph.vocabulary)))
    return sum(math.prod(tensor.shape) for tensor in theirs.tensors.values())


def weights(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Any:
    """Such that values keep their size from layer to layer, and norms and biases are no ones and zeros."""
    values = random.standard_normal(shape).astype(np.float32)
    if name.endswith(".bias"):
        return values * np.float32(0.1)
    if len(shape) == 1:
        return 1 + values * np.float32(0.1)
    return values * np.float32(1 / math.sqrt(shape[-1]))


def tokenizer(size: int) -> dict[str, Any]:
    """A tokenizer.json of as many pieces as the model has rows: the letters of a keyboard, pairs of them."""
    text = TEXT.replace(" ", "Ġ")
    letters = sorted({"Ġ", *map(chr, range(33, 127))}, key=lambda letter: (-text.count(letter), letter))
    often = [letter for letter in letters if letter.islower()]
    pieces = [*SPECIAL, *letters][:size]
    merges = [(a, b) for b in often for a in ("Ġ", *often)][:size - len(pieces)]
    pieces += [a + b for a, b in merges]
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": piece, "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False} for i, piece in enumerate(pieces[:len(SPECIAL)])],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": [" ".join(pair) for pair in merges]}}


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) if title in ("family", "says") else cell.rjust(width)
                     for cell, (title, width) in zip(cells, FIGURES, strict=True)).rstrip()


def _size(count: int) -> str:
    return f"{count / 1e3:.0f} kB"
