"""How fast a third party's encoding runs that is given by its layout alone: nf4 beside our q4_0, on one shape.

    python benchmarks/nf4.py [--threads N] [--rounds 41] [--json]

Both take 4.5 bits a weight. The model is llama-shaped, of about 90 million random weights in memory, and runs on the
cpu backend. The machine may be shared: a round runs both for a moment, in turn the one and the other first, and what
counts is the median of the rounds' ratios. Tokens/s are medians too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.backend import Batch, KVCache, Limits, Plan
from bestiary.host import Host, HostSettings
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor

PLUGIN = Path(__file__).parents[1] / "tests/packages/good-nf4/nf4.py"
OURS, THEIRS = "q4_0", "nf4"
PREFILL, DECODE, PAST = 256, 16, 64
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 1024,
    "tie_word_embeddings": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, help="by default as many as the backend chooses")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    host = Host(HostSettings(names=(), files=(str(PLUGIN),)))
    limits = Limits(CONFIG["max_position_embeddings"], batch=PREFILL, threads=given.threads)
    plans, sizes = {}, {}
    for name in (OURS, THEIRS):
        plans[name], sizes[name] = made(host, name, limits)
        time_prefill(plans[name])  # the first is slower: memory is touched, threads begin
        time_decode(plans[name])
    result: dict[str, Any] = {"weights' bytes": sizes, "isa": host.backends["cpu"].describe()["isa"],
                              "rounds": given.rounds, "threads": given.threads}
    for what, timed, tokens in (("prefill", time_prefill, PREFILL), ("decode", time_decode, DECODE)):
        seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
        for i in range(given.rounds):
            for name in (OURS, THEIRS) if i % 2 else (THEIRS, OURS):
                seconds[name].append(timed(plans[name]))
        per_byte = sizes[THEIRS] / sizes[OURS]
        ratios = [ours / theirs * per_byte for ours, theirs in zip(seconds[OURS], seconds[THEIRS], strict=True)]
        result[what] = {**{name: tokens / statistics.median(taken) for name, taken in seconds.items()},
                        "ratio": statistics.median(ratios), "quartiles": statistics.quantiles(ratios)[::2]}
    if given.json:
        print(json.dumps(result))
        return
    threads = given.threads or host.backends["cpu"].describe()["threads"]
    held = ", ".join(f"{size / 1e6:.1f} MB of {name}" for name, size in sizes.items())
    print(f"isa {result['isa']}, threads {threads}; {held}")
    print(f"{'tokens/s':<10}{OURS:>10}{THEIRS:>10}   {THEIRS} / {OURS} at equal bytes, {given.rounds} pairs")
    for what in ("prefill", "decode"):
        its = result[what]
        low, high = its["quartiles"]
        print(f"{what:<10}{its[OURS]:>10.1f}{its[THEIRS]:>10.1f}   {its['ratio']:.3f} ({low:.3f} to {high:.3f})")


def made(host: Host, quantizer: str, limits: Limits) -> tuple[Plan, int]:
    """The plan, and the bytes of its matrices. Matrices of one shape hold the same numbers, each in its own place."""
    family, by, random = host.architectures["llama"], host.quantizers[quantizer], np.random.default_rng(1)
    graph = family.graph(family.normalise(CONFIG, {}), limits.context)
    blocks: dict[tuple[int, ...], Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, shape in graph.weights.items():
        if len(shape) == 1:
            tensors[name] = ArrayTensor(np.ones(shape, np.float32))
            continue
        if shape not in blocks:
            blocks[shape] = by.quantize(random.standard_normal(shape, np.float32) * np.float32(0.04))
        tensors[name] = BlockTensor(blocks[shape], shape, by.encoding)
    plan = host.backends["cpu"].compile(graph, tensors, limits)
    return plan, sum(tensor.nbytes for tensor in tensors.values() if len(tensor.shape) > 1)


def batch(first: int, count: int) -> Batch:
    ids = np.random.default_rng(first).integers(0, CONFIG["vocab_size"], count, np.int32)
    return Batch(ids, np.arange(first, first + count, dtype=np.int32)[None], np.zeros(count, np.int32),
                 np.array([count - 1], np.int32))


def time_prefill(plan: Plan) -> float:
    cache, prompt = plan.new_cache(), batch(0, PREFILL)
    started = time.perf_counter()
    plan.forward(prompt, cache)
    return time.perf_counter() - started


def time_decode(plan: Plan) -> float:
    cache: KVCache = plan.new_cache()
    plan.forward(batch(0, PAST), cache)
    steps = [batch(PAST + i, 1) for i in range(DECODE)]
    started = time.perf_counter()
    for step in steps:
        plan.forward(step, cache)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
