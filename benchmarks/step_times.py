"""Where the time of a forward pass goes: the products with weights, attention, and all between them.

    python benchmarks/step_times.py MODEL [--threads 2] [--sequences 1] [--depth 0] [--prompt 0] [--repeats 16]

MODEL: a file or folder that Bestiary loads. A step is decoded of every sequence, after --depth tokens, or with
--prompt N a prompt of N tokens. Each product is timed alone, which adds about a microsecond; what stands between two of
them is one run, as in a plan. Times are medians over the repeats, of all layers together. Beside products stands what
they read (decode) or multiply (a prompt), and the best read probe of the same minute (needs gcc).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from children import Probes, compiled_probes, usable_cpus
from temporary import temporary

import bestiary_kernels
from bestiary import load
from bestiary.benchmark import Cache

BETWEEN, ATTENTION = "between", "attention"
Program = bestiary_kernels.Program


class Timed(Program):
    """A program that knows what its steps are, and how long each took."""

    def __init__(self, *arguments: Any) -> None:  # what it is made of, __new__ took
        self.labels: dict[int, str] = {}
        self.taken: dict[int, list[float]] = defaultdict(list)
        self.weights: dict[str, list[int]] = {}  # label -> bytes, multiply-adds a token, whether of wanted tokens

    def linear(self, a: int, parts: Any, tail: bool) -> None:
        super().linear(a, parts, tail)
        shape = " + ".join(str(matrix.rows) for matrix, _, _ in parts)
        label = f"product {shape} x {parts[0][0].columns}" + " of the wanted tokens" * tail
        self._name(label)
        total = self.weights.setdefault(label, [0, 0, tail])
        total[0] += sum(matrix.nbytes for matrix, _, _ in parts)
        total[1] += sum(matrix.rows * matrix.columns for matrix, _, _ in parts)

    def attention(self, *arguments: Any, **named: Any) -> int:
        layer = super().attention(*arguments, **named)
        self._name(ATTENTION)
        return layer

    def experts(self, *arguments: Any, **named: Any) -> None:
        super().experts(*arguments, **named)  # their own products become part of it
        self.labels = {step: label for step, label in self.labels.items() if step < self.steps - 1}
        self._name("experts")

    def _name(self, label: str) -> None:
        """The last step is what does the work; those before it prepare its input."""
        self.labels[self.steps - 1] = label

    def run(self, start: int, stop: int) -> None:
        while start < stop:
            end = start + 1
            while start not in self.labels and end < stop and end not in self.labels:
                end += 1
            began = time.perf_counter()
            super().run(start, end)
            self.taken[start].append(time.perf_counter() - began)
            start = end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--depth", type=int, default=0, help="tokens that are in the context before")
    parser.add_argument("--prompt", type=int, default=0, metavar="N", help="a prompt of N tokens instead of a step")
    parser.add_argument("--repeats", type=int, default=16)
    given = parser.parse_args()
    if given.threads not in range(1, len(usable_cpus()) + 1) or min(given.sequences, given.repeats) < 1 or \
            min(given.depth, given.prompt) < 0:
        parser.error(f"--threads 1 to {len(usable_cpus())}, --sequences and --repeats at least 1, no number below 0")
    bestiary_kernels.Program = Timed  # type: ignore[misc]
    model = load(given.model, threads=given.threads, sequences=given.sequences,
                 context=given.depth + max(given.prompt, given.repeats + 1))
    program: Any = model.plan.program
    cache = Cache(model, given.sequences, given.depth)
    ids = np.zeros(given.sequences, np.int32)
    tokens = given.prompt or given.sequences
    with temporary() as folder, Probes(compiled_probes(folder, None), usable_cpus()[:given.threads],
                                       given.threads).child as child:
        probes = [float(child.line(f"read {given.threads}")["best"])]
        for i in range(given.repeats + 1):
            if not i:
                cache.rewind()
            if given.prompt:
                cache.rewind()
                cache.fill([0], given.prompt)
            else:
                cache.step(ids, i)
            if not i:
                program.taken.clear()  # the first is to warm up
        probes.append(float(child.line(f"read {given.threads}")["best"]))
    spent: dict[str, float] = defaultdict(float)
    for step, times in program.taken.items():
        spent[program.labels.get(step, BETWEEN)] += statistics.median(times)
    total = sum(spent.values())
    print(f"{given.model.name}, {given.threads} threads, {tokens} tokens: {1e3 * total:.2f} ms; the best "
          f"read probe before and after: {' and '.join(f'{probe / 1e9:.1f}' for probe in probes)} GB/s")
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        size, count, wanted = program.weights.get(label, (0, 0, False))
        rows = given.sequences if wanted else tokens
        speed = f"{size / seconds / 1e9:7.1f} GB/s {rows * count / seconds / 1e9:7.1f} GMAC/s" if size else ""
        print(f"{100 * seconds / total:5.1f} %  {1e3 * seconds:8.2f} ms  {speed}  {label}")


if __name__ == "__main__":
    main()
