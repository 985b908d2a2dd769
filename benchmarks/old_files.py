"""How fast LLaMA runs from llama.cpp's files of 2023, beside the same shape in GGUF.

    python benchmarks/old_files.py [--shape 1.1b] [--threads 2] [--rounds 9] [--tests prefill512 decode] [--json]

Files of q4_0 and random weights: GGUF; ggjt v3, whose blocks are the same; ggjt v1 (April 2023), whose scales are f32
and whose nibbles stand in another order, 20 bytes for 32 weights instead of 18. Of v1 there are two: until 25 April
scales were a seventh of a weight, any f32; then an eighth, an f16 number where the weights were f16. The machine may be
shared: a round runs all files, each time in another order, and what counts is the median of the rounds' ratios. Beside
it stands the ratio of the best runs, which others disturb least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import ggjt_writer
from synthetic import DRAWN, FOLDER, SHAPES, Config, checkpoint, made, wide_blocks

from bestiary import load
from bestiary.benchmark import Cache
from bestiary.host import Host, HostSettings

DECODED = 24
FILES: dict[str, tuple[str, int, Any]] = {
    "gguf": ("q4_0", 0, DRAWN["q4_0"]), "ggjt v3": ("q4_0", 3, DRAWN["q4_0"]),
    "ggjt v1, sevenths": ("q4_0_v1", 1, DRAWN["q4_0_v1"]),
    "ggjt v1, eighths": ("q4_0_v1", 1, lambda random, count, deviation: wide_blocks(random, count, deviation, True))}
"""Name -> the encoding of its matrices, the version of ggjt, and how weights are drawn."""


def file(config: Config, shape: str, name: str, folder: Path, host: Host) -> Path:
    """The file of that name, written where it is not there yet."""
    type_, version, drawn_by = FILES[name]
    if not version:
        return made(config, shape, type_, folder, host)
    path = folder / f"{shape}-{name.replace(', ', '-').replace(' ', '-')}.bin"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = checkpoint(config, type_, host, drawn_by)
        vocabulary = drawn.tokenizer.vocabulary
        assert vocabulary is not None
        ggjt_writer.write(path, version, drawn.config, vocabulary.pieces, vocabulary.scores, drawn.tensors)
    return path


class Timed:
    """A model, and how long it takes for a test: "prefillN" or "decode"."""

    def __init__(self, path: Path, threads: int) -> None:
        started = time.perf_counter()
        self.model = load(path, threads=threads, context=1024, sequences=1)
        self.loading = time.perf_counter() - started
        self.cache = Cache(self.model, 1, 0)

    def seconds(self, test: str) -> float:
        self.cache.rewind()
        prompt = int(test.removeprefix("prefill")) if test.startswith("prefill") else 0
        started = time.perf_counter()
        if prompt:
            self.cache.fill([0], prompt)
        else:
            for i in range(DECODED):
                self.cache.step(self.cache.ids[i:i + 1], i)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("100m", "1.1b", "7b"), default="1.1b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tests", nargs="+", default=["prefill512", "decode"])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    host = Host(HostSettings(names=()))
    paths = {name: file(SHAPES[given.shape], given.shape, name, given.folder, host) for name in FILES}
    models = {name: Timed(path, given.threads) for name, path in paths.items()}
    result: dict[str, Any] = {"shape": given.shape, "threads": given.threads, "rounds": given.rounds,
                              "isa": host.backends["cpu"].describe()["isa"],
                              "loading": {name: model.loading for name, model in models.items()}}
    for test in given.tests:
        for model in models.values():
            model.seconds(test)  # the first is slower
        seconds: dict[str, list[float]] = {name: [] for name in models}
        names = list(models)
        for i in range(given.rounds):
            for name in names[i % len(names):] + names[:i % len(names)]:
                seconds[name].append(models[name].seconds(test))
        result[test] = {name: {"seconds": taken, "speed": [a / b for a, b in zip(seconds["gguf"], taken, strict=True)]}
                        for name, taken in seconds.items()}
    if given.json:
        print(json.dumps(result))
        return
    print(f"{given.shape}, isa {result['isa']}, {given.threads} threads, {given.rounds} rounds; loading "
          + ", ".join(f"{taken:.2f} s ({name})" for name, taken in result["loading"].items()))
    for test in given.tests:
        for name, its in result[test].items():
            tokens = int(test.removeprefix("prefill")) if test.startswith("prefill") else DECODED
            low, high = statistics.quantiles(its["speed"])[::2] if given.rounds > 1 else its["speed"] * 2
            print(f"{test:<11}{name:<18}{tokens / statistics.median(its['seconds']):9.1f} tokens/s, "
                  f"{statistics.median(its['speed']):.3f} of GGUF's speed ({low:.3f} to {high:.3f}), "
                  f"best runs {min(result[test]['gguf']['seconds']) / min(its['seconds']):.3f}")


if __name__ == "__main__":
    main()
