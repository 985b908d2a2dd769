"""Whether what llama.cpp quantizes, in every type and mix of today, has the same weights here as there, and nearly the
same logits on both backends.

Run by hand from the root of the tree, with llama-cpp-python installed beside Bestiary:

    PYTHONPATH=. python scripts/check_llama_cpp_types.py

Fails where a weight differs at all from what ggml's own decoder gives, or logits by more than 0.05 of their spread
after most tokens: llama.cpp rounds what it multiplies weights with to 8 bits, and here and there that makes another
expert the likelier one.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

import bestiary
from bestiary.convert import types
from bestiary.host import Host, HostSettings
from bestiary.tensor import Tensor
from scripts.make_goldens_families import CONTEXT, logits_of
from tests.goldens.random_models import save_random

BASE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 512}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**BASE, "model_type": "llama"},
    "mixtral": {**BASE, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}}
BOUND = 0.05
KINDS = {name.removeprefix("LLAMA_FTYPE_MOSTLY_"): code for name, code in sorted(vars(llama_cpp).items())
         if name.startswith("LLAMA_FTYPE_MOSTLY_")}


def importance(tensors: dict[str, Tensor]) -> Any:
    """As llama.cpp wants it for its smallest types: here every column matters as much as any other."""
    entries = []
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1:
            size = tensor.columns * (tensor.shape[0] if len(tensor.shape) > 2 else 1)
            data = (ctypes.c_float * size)(*[1.0] * size)
            entries.append(llama_cpp.llama_model_imatrix_data(name.encode(), data, size))
    return (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)


def quantize(source: Path, target: Path, kind: int, matrix: Any) -> bool:
    """False for a type that llama.cpp names but does not write."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = kind, 1
    if matrix is not None:
        settings.imatrix = matrix
    return not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))


def by_ggml(ggml: ctypes.CDLL, tensor: Tensor) -> NDArray[np.float32]:
    """The weights as ggml decodes them."""
    name = tensor.encoding.name
    data, found = np.ascontiguousarray(tensor.read(0, tensor.rows)), np.empty((tensor.rows, tensor.columns), np.float32)
    decode = getattr(ggml, f"dequantize_row_{name[:-2] + '_K' if name.endswith('_k') else name}")
    decode(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(found.ctypes.data), ctypes.c_int64(found.size))
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ggml = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*"))))
    host, failed = Host(HostSettings(names=())), []
    ids = np.random.default_rng(1).integers(0, BASE["vocab_size"], 40).tolist()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "f32.gguf", Path(folder) / "quantized.gguf"
        for family, config in MODELS.items():
            source.unlink(missing_ok=True)
            save_random(config, host, source)
            matrix = importance(dict(host.open(source).tensors))
            for kind, code in KINDS.items():
                if not quantize(source, target, code, matrix if kind.startswith(("IQ", "Q2_K")) else None):
                    print(f"{family:8} {kind:10} cannot be written by llama.cpp")
                    continue
                checkpoint = host.open(target)
                exact = all(np.array_equal(tensor.decode(), by_ggml(ggml, tensor))
                            for tensor in checkpoint.tensors.values() if tensor.encoding.quantized)
                theirs = logits_of(target, ids)
                differences = []
                for backend in ("numpy", "cpu"):
                    with bestiary.load(target, backend, context=CONTEXT, host=host) as model:
                        apart = np.abs(model.logits(ids) - theirs).max(axis=1)  # (tokens,)
                        differences.append(float(np.median(apart) / np.ptp(theirs)))
                held = ", ".join(f"{entry['tensors']} {name}" for name, entry in types(checkpoint).items())
                fine = exact and max(differences) < BOUND
                print(f"{family:8} {kind:10} {'same weights' if exact else 'OTHER WEIGHTS'}, logits: numpy "
                      f"{differences[0]:7.1e}, cpu {differences[1]:7.1e}{'' if fine else ' FAILS'}; {held}", flush=True)
                failed += [] if fine else [f"{family} {kind}"]
    if failed:
        sys.exit(f"other than in llama.cpp: {', '.join(failed)}")


if __name__ == "__main__":
    main()
