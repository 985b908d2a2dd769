"""Products with a codebook of 4 bits (NF4's shape: groups of 64, f32) against q4_0's of the same size, in pairs.

    python benchmarks/codebook.py [--rounds 15] [--threads 1] [--layers 12] [--isa avx2]

Medians of a forward pass through `layers` pairs of matrices (2048 x 5632 and back: 13 MB a pair, beyond every cache),
for one token and for 256, and the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from bestiary.backend import Batch, Limits, Plan
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.graph import Trace
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.encodings import Q4_0, Q8_0

BOOK = Encoding("codebook", 64, (32, 4), Layout(
    (Bits(4, (4, 0), 8),), 64, Factor("f32", Bits(32, (0,), 32, 1)),
    codebook=tuple(float(x) for x in np.cbrt(np.linspace(-1, 1, 16)) ** 5)))
WIDE, NARROW = 5632, 2048


def plan_of(encoding: Encoding, layers: int, backend: CpuBackend, threads: int) -> Plan:
    """A chain of products; every weight is a small number."""
    random = np.random.default_rng(0)
    g = Trace()
    x = g.embed("rows", 256, NARROW)
    for i in g.layers(layers):
        x = g.linear(g.linear(x, f"{i}.up", WIDE), f"{i}.down", NARROW)
    graph = g.finish(x, x)
    tensors: dict[str, Tensor] = {"rows": ArrayTensor(random.standard_normal((256, NARROW)).astype(np.float32))}
    for name, shape in graph.weights.items():
        if name != "rows":
            data = random.integers(0, 256, (shape[0], encoding.row_bytes(shape[1])), dtype=np.uint8)
            if encoding is BOOK:
                data[:, shape[1] // 2:] = np.full(shape[1] // 64, 0.01, np.float32).view(np.uint8)
            else:
                scale = np.full(1, 0.001, np.float16).view(np.uint8)
                data.reshape(shape[0], -1, encoding.block_bytes[0])[:, :, :2] = scale
            tensors[name] = BlockTensor(data, tuple(shape), encoding)
    return backend.compile(graph, tensors, Limits(1024, threads=threads))


def seconds(plan: Plan, tokens: int) -> float:
    n = np.arange(tokens, dtype=np.int32)
    cache = plan.new_cache()
    start = time.perf_counter()
    plan.forward(Batch(n, n[None], n * 0, n), cache)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--isa")
    given = parser.parse_args()
    backend = CpuBackend(given.isa)
    plans = {encoding.name: plan_of(encoding, given.layers, backend, given.threads) for encoding in (Q4_0, BOOK, Q8_0)}
    print(f"{backend.isa()}, {given.threads} threads")
    for tokens in (1, 256):
        times: dict[str, list[float]] = {name: [] for name in plans}
        for plan in plans.values():
            seconds(plan, tokens)
        for _ in range(given.rounds):
            for name, plan in plans.items():
                times[name].append(seconds(plan, tokens))
        for name, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["q4_0"], taken, strict=True))
            print(f"{tokens:4} tokens  {name:9} {1e3 * statistics.median(taken):8.2f} ms   {ratio:.3f} of q4_0's speed")


if __name__ == "__main__":
    main()
