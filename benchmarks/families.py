"""Our own speed of the families' shapes beside llama's at equal bytes (decode) and multiply-adds (prefill).

    python benchmarks/families.py [--shapes bloom-1b,falcon-1b,chatglm-1b] [--type q4_0] [--threads 2] [--rounds 7]
        [--prompt 512] [--seconds 0.5] [--models FOLDER] [--json]

All shapes run in turn, a child process each, every other round backwards; a ratio is the median of the rounds' ratios.
Wanted: 0.90 at least. What counts as work is that with weights: attention over the cache, norms and activations are
what a family's share may be lost to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import synthetic
from children import Sides, usable_cpus
from program import Test
from temporary import temporary

from bestiary.host import Host

BESIDE = "1.1b"
WANTED = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="bloom-1b,falcon-1b,chatglm-1b", metavar="NAME,...",
                        help=", ".join(synthetic.SHAPES))
    parser.add_argument("--type", default="q4_0", choices=synthetic.DRAWN)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompts")
    parser.add_argument("--seconds", type=float, default=0.5, help="the least that a run takes")
    parser.add_argument("--isa", help="the instruction set that Bestiary is held to")
    parser.add_argument("--models", type=Path, default=synthetic.FOLDER, metavar="FOLDER",
                        help="where the synthetic files are kept")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shapes = [BESIDE, *(name for name in given.shapes.split(",") if name != BESIDE)]
    if unknown := [name for name in shapes if name not in synthetic.SHAPES]:
        parser.error(f"--shapes {','.join(unknown)}; known: {', '.join(synthetic.SHAPES)}")
    host, results = Host(), list[dict[str, Any]]()
    sides, cpus = Sides(sys.executable, given.isa), usable_cpus()[:given.threads]
    with temporary(), contextlib.ExitStack() as stack:
        paths = {shape: synthetic.made(synthetic.SHAPES[shape], shape, given.type, given.models, host)
                 for shape in shapes}
        children = {}
        for shape, path in paths.items():
            children[shape] = stack.enter_context(sides.ours(cpus))
            children[shape].do("begin", path=str(path), threads=given.threads, trials=False)
        isa = children[BESIDE].do("facts")["isa"]
        for test in (Test("prefill", given.prompt), Test("decode", 32)):
            runs: dict[str, list[float]] = {shape: [] for shape in shapes}
            for child in children.values():
                child.do("prepare", test=test)
            for i in range(given.rounds):
                for shape in shapes if i % 2 else shapes[::-1]:
                    runs[shape].append(children[shape].do("sample", seconds=given.seconds))
            results += [row(test, shape, runs, paths, host) for shape in shapes]
    if given.json:
        print(json.dumps({"isa": isa, "threads": given.threads, "type": given.type, "rows": results}, indent=1))
        return
    print(f"isa {isa}, {given.threads} threads, {given.type}, {given.rounds} rounds")
    print(f"{'':12}{'shape':12}{'tokens/s':>10}{'work/s':>16}   beside {BESIDE}")
    for one in results:
        work = f"{one['work'] / 1e9:.1f} {'GB' if one['test'] == 'decode' else 'GMAC'}"
        said = "" if one["shape"] == BESIDE else f"   {one['ratio']:.2f}{'' if one['ratio'] >= WANTED else ' NOT MET'}"
        print(f"{one['test']:12}{one['shape']:12}{one['speed']:>10.1f}{work:>16}{said}")


def row(test: Test, shape: str, runs: dict[str, list[float]], paths: dict[str, Path], host: Host) -> dict[str, Any]:
    """speed: tokens a second. work: bytes or multiply-adds a second. ratio: of the work, to that of BESIDE."""
    def amount(name: str) -> int:
        if test.kind == "decode":
            return synthetic.read(paths[name], host)
        return synthetic.multiplied(synthetic.SHAPES[name], host)

    per_token = amount(shape) / amount(BESIDE)
    ratios = [per_token * a / b for a, b in zip(runs[shape], runs[BESIDE], strict=True)]
    speed = statistics.median(runs[shape])
    return {"test": test.kind, "shape": shape, "runs": runs[shape], "speed": speed, "work": speed * amount(shape),
            "ratio": statistics.median(ratios)}


if __name__ == "__main__":
    main()
