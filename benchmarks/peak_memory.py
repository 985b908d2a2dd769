"""How much memory `convert` and `quantize` take at most, and how fast they are, on synthetic models of gigabytes.

    python benchmarks/peak_memory.py [--gigabytes 4] [--huge] [--torch] [--folder FOLDER] [--json] [--beside PYTHON]

The model is llama-shaped, of random f16, and written as it is made. What is measured is each command's own process:
the largest resident set that `wait4` tells of its child (ru_maxrss), which is VmHWM, mapped and shared pages included;
polling /proc would miss the last moment. It cannot be less than this process had when it forked, so nothing is imported
here, and files are made in a child as well.

--huge: a model of one matrix of 250,880 x 14,336 (7.2 GB, sparse). --torch: the same weights as a torch file.
--beside: an interpreter that has llama-cpp-python, to quantize the same file with llama.cpp's own code.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from temporary import temporary

Shape = tuple[int, ...]
BLOCK = 1 << 24  # bytes of random data that are made at once

LLAMA_CPP = """
import sys, llama_cpp as l
l.llama_backend_init()
parameters = l.llama_model_quantize_default_params()
parameters.ftype = 2
sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), parameters))
"""


def config(width: int, inner: int, layers: int, vocabulary: int, heads: int, shared: bool) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
            "vocab_size": vocabulary, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": shared, "torch_dtype": "float16"}


def shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """Of all tensors, by their names in a Hugging Face folder."""
    width, inner, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    found: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        found |= {f"{layer}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (width, inner), f"{layer}.input_layernorm.weight": (width,),
                  f"{layer}.post_attention_layernorm.weight": (width,)}
    return {**found, "model.norm.weight": (width,), **({} if config["tie_word_embeddings"] else {
        "lm_head.weight": (vocabulary, width)})}


def size(shape: Shape) -> int:
    """Bytes in f16."""
    return 2 * math.prod(shape)


def noise(count: int) -> Iterator[bytes]:
    """Random f16 numbers between 2^-6 and 2^-3, of either sign, `count` bytes of them."""
    import numpy as np

    random = np.random.default_rng(1)
    while count:
        some = min(count, BLOCK)
        bits = random.integers(0, 1 << 16, some // 2, np.uint16)
        yield (bits & 0x8FFF | 0x2400).tobytes()
        count -= some


def fill(file: IO[bytes], count: int, sparse: bool) -> None:
    if sparse:
        file.seek(count, os.SEEK_CUR)
        return
    for some in noise(count):
        file.write(some)


def make_safetensors(folder: Path, of: dict[str, Any], sparse: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(of))
    header, at = {}, 0
    for name, shape in shapes(of).items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes(of).values():
            fill(file, size(shape), sparse)
        file.truncate(8 + len(text) + at)


def make_torch(folder: Path, of: dict[str, Any], sparse: bool) -> None:
    """What torch.save writes for the weights, made without torch: a pickle that names its classes, and an archive that
    is stored, not compressed."""
    import zipfile

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(of))

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def numbers(values: Shape) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    parts = [b"\x80\x02}("]
    for i, (name, shape) in enumerate(shapes(of).items()):
        storage = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text(str(i)) + text("cpu") \
            + b"\x8a\x08" + struct.pack("<q", math.prod(shape)) + b"tQ"
        strides = tuple(math.prod(shape[k + 1:]) for k in range(len(shape)))
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, b"K\x00", numbers(shape),
                  numbers(strides), b"\x89ccollections\nOrderedDict\n)RtR"]
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"".join([*parts, b"u."]))
        archive.writestr("archive/byteorder", b"little")
        for i, shape in enumerate(shapes(of).values()):
            with archive.open(f"archive/data/{i}", "w", force_zip64=True) as file:
                for some in noise(size(shape)):
                    file.write(some)


MAKERS = {"safetensors": make_safetensors, "torch": make_torch}


def measured(title: str, words: list[str], read: int, written: Path) -> dict[str, Any]:
    """Runs a command and says what it took. read: bytes of the source, which the speed counts."""
    print(f"{title:44}", end="", flush=True, file=sys.stderr)
    started = time.perf_counter()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"\n{said.decode(errors='replace')}\n{' '.join(words)}: status {child.returncode}")
    peak = usage.ru_maxrss * 1024
    print(f"{peak / 1e6:6.0f} MB at most {seconds:7.1f} s {read / seconds / 1e6:6.0f} MB/s of the source",
          file=sys.stderr)
    return {"what": title, "peak_bytes": peak, "seconds": seconds, "source_bytes": read,
            "target_bytes": written.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--beside", default="")
    parser.add_argument("--make", nargs=3, metavar=("KIND", "FOLDER", "CONFIG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        kind, folder, text = given.make
        of = json.loads(text)
        MAKERS[kind](Path(folder), of, of["vocab_size"] > 200_000)
        return
    with temporary(given.folder) as place:
        results = list(run(place, given))
    if given.json:
        print(json.dumps(results))


def run(place: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    ours = [sys.executable, "-m", "bestiary"]
    layer, ends = size((4096, 4096)) * 4 + size((4096, 11008)) * 3, 2 * size((32000, 4096))
    plain = config(4096, 11008, max(1, math.ceil((given.gigabytes * 1e9 - ends) / layer)), 32000, 32, False)

    def make(kind: str, of: dict[str, Any]) -> tuple[Path, int]:
        folder = place / kind
        print(f"making {kind} of {sum(map(size, shapes(of).values())) / 1e9:.2f} GB", file=sys.stderr)
        subprocess.run([sys.executable, __file__, "--make", kind, str(folder), json.dumps(of)], check=True)
        return folder, sum(map(size, shapes(of).values()))

    def remove(*paths: Path) -> None:
        for path in paths:
            for file in path.iterdir() if path.is_dir() else [path]:
                file.unlink()

    folder, count = make("safetensors", plain)
    f16, q4_0 = place / "f16.gguf", place / "q4_0.gguf"
    yield measured("convert, safetensors f16 to gguf q4_0",
                   [*ours, "convert", str(folder), str(q4_0), "--outtype", "q4_0"], count, q4_0)
    remove(q4_0)
    yield measured("convert, safetensors f16 to gguf f16", [*ours, "convert", str(folder), str(f16)], count, f16)
    remove(folder)
    for kind in ("q4_0", "q8_0"):
        yield measured(f"quantize, gguf f16 to {kind}", [*ours, "quantize", str(f16), str(place / kind), kind], count,
                       place / kind)
        remove(place / kind)
    if given.beside:
        yield measured("llama_model_quantize, gguf f16 to q4_0", [given.beside, "-c", LLAMA_CPP, str(f16), str(q4_0)],
                       count, q4_0)
        remove(q4_0)
    remove(f16)
    if given.torch:
        folder, count = make("torch", plain)
        yield measured("convert, torch file f16 to gguf q4_0",
                       [*ours, "convert", str(folder), str(q4_0), "--outtype", "q4_0"], count, q4_0)
        remove(folder, q4_0)
    if given.huge:
        (place / "safetensors").rmdir()
        folder, count = make("safetensors", config(14336, 1024, 1, 250_880, 112, True))
        yield measured("convert, one matrix of 7.2 GB f16 to q4_0",
                       [*ours, "convert", str(folder), str(q4_0), "--outtype", "q4_0"], count, q4_0)


if __name__ == "__main__":
    main()
