"""How long it takes to open a GGUF file with a vocabulary of Llama 3's size: ours beside the `gguf` package.

    python benchmarks/gguf_header.py [--json]
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from temporary import temporary

from bestiary.host import Host, HostSettings
from bestiary_plugins.loaders.gguf import open_gguf

PIECES, MERGES = 128_256, 280_147


def write(path: Path) -> None:
    """A file with nothing in it but a vocabulary and one small tensor."""
    rng = random.Random(1)
    word = lambda: "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 10)))  # noqa: E731
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"{word()}{i}" for i in range(PIECES)])
    writer.add_token_types([1] * PIECES)
    writer.add_token_merges([f"{word()} {word()}" for _ in range(MERGES)])
    writer.add_bos_token_id(128_000)
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds(function: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    host = Host(HostSettings(names=()))
    with temporary() as folder:
        path = folder / "vocabulary.gguf"
        write(path)
        open_gguf(path, host)  # imports and plugins are not what is measured
        result = {"pieces": PIECES, "merges": MERGES, "bytes": path.stat().st_size,
                  "bestiary": seconds(lambda: open_gguf(path, host), 5),
                  "gguf package": seconds(lambda: gguf.GGUFReader(path), 1)}
    if "--json" in sys.argv[1:]:
        print(json.dumps(result))
        return
    print(f"{PIECES} pieces, {MERGES} merges, {result['bytes'] / 1e6:.1f} MB")
    for name in ("bestiary", "gguf package"):
        print(f"{name:13} {result[name]:7.3f} s")


if __name__ == "__main__":
    main()
