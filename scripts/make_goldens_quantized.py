"""What the programs that write quantized folders make of small random weights: the parts as they store them, and what
these decode to there, kept in tests/goldens/quantized.json.

Run by hand, with torch, transformers, bitsandbytes and compressed-tensors installed beside Bestiary, and with the
unpacked sources of auto-gptq 0.7 and autoawq 0.2, whose two modules are loaded without the rest of them:

    python scripts/make_goldens_quantized.py FOLDER_OF_AUTO_GPTQ FOLDER_OF_AUTOAWQ
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import importlib.util
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import bitsandbytes
import numpy as np
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

GOLDENS = Path(__file__).parents[1] / "tests/goldens/quantized.json"
OUTPUTS, INPUTS = 32, 64
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int32: "I32", torch.int64: "I64",
          torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3"}
Parts = dict[str, torch.Tensor]
Case = tuple[str, dict[str, Any], Parts, torch.Tensor]


def packed(tensor: torch.Tensor) -> list[Any]:
    """Type, shape, and bytes in letters."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    return [DTYPES[tensor.dtype], list(tensor.shape),
            base64.b64encode(zlib.compress(raw.numpy().tobytes(), 9)).decode()]


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gptq(linear: ModuleType, random: torch.Generator) -> Iterator[Case]:
    for bits, group, symmetric, order in ((4, 32, True, False), (4, 32, False, False), (4, -1, False, False),
                                          (4, 32, False, True), (2, 32, False, False), (3, 32, False, False),
                                          (3, 64, True, False), (8, 32, False, False), (8, 32, True, True)):
        size = INPUTS if group < 0 else group
        groups, top = INPUTS // size, 2 ** bits - 1
        index = torch.arange(INPUTS, dtype=torch.int32) // size
        if order:
            index = index[torch.randperm(INPUTS, generator=random)]
        scales = (torch.rand(OUTPUTS, groups, generator=random) * 0.1 + 0.01).half()
        zeros = torch.full((OUTPUTS, groups), (top + 1) // 2).half() if symmetric else \
            torch.randint(1, top + 1, (OUTPUTS, groups), generator=random).half()
        codes = torch.randint(0, top + 1, (OUTPUTS, INPUTS), generator=random)
        weight = scales.float()[:, index.long()] * (codes - zeros.float()[:, index.long()])
        layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).half()
        layer.weight.data = weight.half()
        made = linear.QuantLinear(bits, size, INPUTS, OUTPUTS, False)
        made.pack(layer, scales, zeros, index)
        with torch.no_grad():
            decoded = made(torch.eye(INPUTS).half()).T
        section = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": order}
        yield (f"gptq {bits} bits, groups of {group}, {'the middle' if symmetric else 'zeros'}"
               f"{', act-order' if order else ''}", section,
               {f".{key}": value for key, value in made.state_dict().items()}, decoded)


def awq(packing: ModuleType, random: torch.Generator) -> Iterator[Case]:
    groups, top = INPUTS // 32, 2 ** 31
    parts = {".qweight": torch.randint(-top, top, (INPUTS, OUTPUTS // 8), generator=random).int(),
             ".qzeros": torch.randint(-top, top, (groups, OUTPUTS // 8), generator=random).int(),
             ".scales": (torch.rand(groups, OUTPUTS, generator=random) * 0.1).half()}
    yield ("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, parts,
           packing.dequantize_gemm(parts[".qweight"], parts[".qzeros"], parts[".scales"], 4, 32).T)


def bits_and_bytes(random: torch.Generator) -> Iterator[Case]:
    weight = torch.randn(OUTPUTS, INPUTS, generator=random)
    functional = bitsandbytes.functional
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
            parts = {".weight": codes,
                     **{f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
            yield (f"bitsandbytes {kind}{' nested' if nested else ''}",
                   {"quant_method": "bitsandbytes", "load_in_4bit": True}, parts,
                   functional.dequantize_4bit(codes, state))
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    yield ("bitsandbytes int8", {"quant_method": "bitsandbytes", "load_in_8bit": True},
           {".weight": codes, ".SCB": scales, ".weight_format": torch.tensor(0, dtype=torch.uint8)},
           functional.int8_vectorwise_dequant(codes, scales))


def compressed(random: torch.Generator) -> Iterator[Case]:
    weight = torch.randn(OUTPUTS, INPUTS, generator=random).bfloat16()
    for bits, kind, strategy, symmetric, packs in (
            (4, "int", "group", True, True), (4, "int", "group", False, True), (8, "int", "channel", True, True),
            (8, "int", "channel", True, False), (8, "float", "channel", True, False)):
        size = 32 if strategy == "group" else INPUTS
        weights = QuantizationArgs(num_bits=bits, type=kind, strategy=strategy, symmetric=symmetric,
                                   group_size=32 if strategy == "group" else None)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        low, high = weight.float().reshape(OUTPUTS, -1, size).aminmax(dim=-1)
        top = 448.0 if kind == "float" else 2 ** (bits - 1) - 1
        scale = (torch.maximum(-low, high) / top if symmetric else (high - low) / (2 ** bits - 1)).bfloat16()
        state = {"weight": weight, "weight_scale": scale}
        if not symmetric:
            half = 2 ** (bits - 1)
            state["weight_zero_point"] = (-low / scale.float()).round().sub(half).clamp(-half, half - 1).to(torch.int8)
        compressor = PackedQuantizationCompressor if packs else NaiveQuantizationCompressor
        parts = compressor.compress(state, scheme)
        decoded = compressor.decompress(parts, scheme)["weight"]
        format = "pack-quantized" if packs else f"{kind}-quantized"
        yield (f"compressed-tensors {format}, {bits} bits, {strategy}{'' if symmetric else ', zeros'}",
               {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {
                   "targets": ["Linear"], "weights": weights.model_dump(mode="json")}}},
               {f".{key}": value for key, value in parts.items()}, decoded)


def fp8(random: torch.Generator) -> Iterator[Case]:
    codes = torch.randn(OUTPUTS, INPUTS, generator=random).mul(100).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 4, generator=random) * 0.01
    yield ("fp8", {"quant_method": "fp8", "weight_block_size": [16, 16]},
           {".weight": codes, ".weight_scale_inv": scales},
           _dequantize_fp8_weight(codes, scales, [16, 16], torch.float32))


def mxfp4(random: torch.Generator) -> Iterator[Case]:
    blocks = torch.randint(0, 256, (1, OUTPUTS, INPUTS // 32, 16), generator=random, dtype=torch.uint8)
    scales = torch.randint(117, 130, (1, OUTPUTS, INPUTS // 32), generator=random, dtype=torch.uint8)
    decoded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    yield "mxfp4", {"quant_method": "mxfp4"}, {"_blocks": blocks, "_scales": scales}, decoded.transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("auto_gptq", type=Path)
    parser.add_argument("autoawq", type=Path)
    given = parser.parse_args()
    random = torch.Generator().manual_seed(9)
    linear = module_of(given.auto_gptq / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    packing = module_of(given.autoawq / "awq/utils/packing_utils.py")
    cases = [*gptq(linear, random), *awq(packing, random), *bits_and_bytes(random), *compressed(random), *fp8(random),
             *mxfp4(random)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "bitsandbytes",
                                                                    "compressed-tensors")}
    GOLDENS.write_text(json.dumps({
        "made_by": {**versions, "auto-gptq": "0.7.1", "autoawq": "0.2.9", "numpy": np.__version__},
        "cases": {name: {"quantization_config": section,
                         "parts": {end: packed(part) for end, part in parts.items() if part.numel()},
                         "decoded": packed(decoded)} for name, section, parts, decoded in cases}}, indent=1) + "\n")
    print(f"{GOLDENS}: {len(cases)} cases, {GOLDENS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
