"""What is left of the speed beside a process that keeps a core busy, and with more threads than there are cores.

    python benchmarks/busy_neighbour.py [MODEL] [--threads 2] [--over 8] [--tests decode,prefill] [--rounds 5]
        [--seconds 0.5] [--json FILE]

MODEL: a file or folder that Bestiary loads, by default a synthetic one of 100M weights. A round runs every setting
once: one thread and the idle machine; as many as --threads; these beside a busy loop, which is pinned to one of our
cores or free to move; and --over of them, as a library may ask for. Ratios are medians of the rounds' ratios to one
idle thread, for --over to the better of one thread and --threads. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import synthetic
from children import neighbour, usable_cpus

from bestiary import load
from bestiary.benchmark import Bench
from bestiary.host import Host

PROMPT, DECODED = 256, 16
SETTLED = 0.2
"""Seconds until a neighbour is at work and the scheduler has moved what it moves."""


@contextlib.contextmanager
def beside(cpus: list[int]) -> Iterator[None]:
    """A busy loop on one of these CPUs; none where there are none."""
    if not cpus:
        yield
        return
    busy = neighbour(cpus)
    try:
        time.sleep(SETTLED)
        yield
    finally:
        busy.kill()
        busy.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--over", type=int, default=8, help="more threads than there are cores")
    parser.add_argument("--tests", default="decode,prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="the least that a run takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    given = parser.parse_args()
    if unknown := set(given.tests.split(",")) - {"decode", "prefill"}:
        parser.error(f"--tests {','.join(sorted(unknown))}; known: decode, prefill")
    path = given.model or synthetic.made(synthetic.SHAPES["100m"], "100m", "q4_0", synthetic.FOLDER, Host())
    cpus = usable_cpus()
    settings: dict[str, tuple[int, list[int]]] = {
        "one": (1, []), "idle": (given.threads, []), "pinned": (given.threads, cpus[:1]),
        "free": (given.threads, cpus), "over": (given.over, [])}
    benches = {threads: Bench(load(path, threads=threads, context=PROMPT)) for threads, _ in settings.values()}
    runs: dict[str, dict[str, list[float]]] = {test: {name: [] for name in settings} for test in given.tests.split(",")}
    for test, found in runs.items():
        for _ in range(given.rounds):
            for name, (threads, busy) in settings.items():
                with beside(busy):
                    bench, speeds, started = benches[threads], list[float](), time.perf_counter()
                    while not speeds or time.perf_counter() - started < given.seconds:
                        measured = bench.decode(DECODED, 1) if test == "decode" else bench.prefill(PROMPT, 1)
                        speeds.append(measured.tokens_per_second)
                    found[name].append(len(speeds) / sum(1 / speed for speed in speeds))
        best = [max(one, idle) for one, idle in zip(found["one"], found["idle"], strict=True)]
        for name, speeds in found.items():
            beneath = best if name == "over" else found["one"]
            ratio = statistics.median(a / b for a, b in zip(speeds, beneath, strict=True))
            print(f"{test:8} {name:7} {settings[name][0]} threads  {statistics.median(speeds):8.1f} tokens/s  "
                  f"{ratio:.2f} of {'the best' if name == 'over' else 'one'}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
