"""Folders whose weights are a byte each: floats of 8 bits, and signed integers, with scales of many shapes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders import quantized_folders as folders
from tests.loaders.quantized_folders import Pack, Packed, Stored, bf16, from_bf16, plain

Floats = NDArray[np.float32]
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                       "modules_to_not_convert": ["lm_head"]}


def value_of(code: int) -> float:
    """A float of 8 bits by its definition: sign, four bits of exponent, three of fraction."""
    sign, exponent, fraction = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    return sign * (fraction / 8 * 2.0 ** -6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([value_of(code) for code in range(256)], np.float32)
CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)


def scales_of(rng: np.random.Generator, shape: Sequence[int], number: str, size: float) -> tuple[Stored, Floats]:
    """As stored, and as numbers."""
    values = rng.uniform(size / 2, size, shape).astype(np.float32)
    if number == "e8m0":
        exponents = rng.integers(117, 121, shape).astype(np.uint8)
        return ("F8_E8M0", exponents), np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)
    stored = bf16(values) if number == "bf16" else plain(values.astype(number))
    return stored, from_bf16(stored) if number == "bf16" else stored[1].astype(np.float32)


def packer(kind: str = "fp8", shape: str = "block", number: str = "float32", end: str = ".weight_scale_inv",
           block: tuple[int, int] = (128, 128), zeros: bool = False) -> Pack:
    """shape: of the scales."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        rows, columns = block
        stored_as = {"tensor": (), "one": (1,), "rows": (outputs,), "column": (outputs, 1), "one by one": (1, 1),
                     "block": (-(-outputs // rows), -(-inputs // columns))}[shape]
        codes: NDArray[Any] = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8) if kind == "int8" \
            else rng.choice(CODES, (outputs, inputs))
        numbers = codes.astype(np.float32) if kind == "int8" else E4M3[codes]
        stored, scales = scales_of(rng, stored_as, number, 1e-3)
        grid = scales.reshape(-1, 1) if shape != "block" else scales
        wide = np.broadcast_to(grid.repeat(-(-outputs // len(grid)) if shape != "block" else rows, 0)[:outputs]
                               .repeat(columns if shape == "block" else 1, 1)[:, :inputs], codes.shape)
        parts = {".weight": ("F8_E4M3", codes) if kind == "fp8" else plain(codes), end: stored,
                 ".input_scale": plain(np.ones((), np.float32))}
        if zeros:
            zero = rng.integers(-128, 128, stored_as).astype(np.int8)
            parts[".weight_zero_point"] = plain(zero)
            numbers = numbers - zero.astype(np.float32).reshape(grid.shape)
        return Packed(parts, np.ascontiguousarray(numbers * wide))
    return pack


@pytest.mark.parametrize("number", ["float32", "float16", "bf16", "e8m0"])
@pytest.mark.parametrize("shape", ["block", "tensor", "one", "rows", "column", "one by one"])
@pytest.mark.parametrize("end", [".weight_scale_inv", ".weight_scale"])
def test_floats_are_what_the_format_says(tmp_path: Path, host: Host, number: str, shape: str, end: str) -> None:
    made = folders.write(tmp_path, packer("fp8", shape, number, end), FP8)
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("block", [(128, 128), (64, 128), (128, 64), (32, 48), (96, 96)])
def test_blocks_may_cross_the_edge(tmp_path: Path, host: Host, block: tuple[int, int]) -> None:
    made = folders.write(tmp_path, packer(block=block), {**FP8, "weight_block_size": list(block)})
    folders.check_values(host.open(made.quantized), made.values)


def test_logits_of_floats_are_those_of_the_plain_weights_and_the_cpu_says_what_it_keeps(
        tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    made = folders.write(tmp_path, packer(), FP8)
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert [record.message for record in caplog.records] == [
        "the cpu backend's kernels do not hold e4m3_f32_128 (most of its small values would be lost in the 8 bits that "
        "products take): such weights are decoded and kept as q8_0"]


@pytest.mark.parametrize("section", [
    {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": None},
    {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}])
def test_other_methods_have_the_same_floats(tmp_path: Path, host: Host, section: dict[str, Any]) -> None:
    made = folders.write(tmp_path, packer("fp8", "column", "float32", ".weight_scale"), section)
    folders.check_values(host.open(made.quantized), made.values)


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path: Path, host: Host) -> None:
    made = folders.write(tmp_path, packer("fp8", "tensor", "float32", ".weight_scale"), None)
    said: dict[str, Any] = {"producer": {"name": "modelopt"},
                            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    (made.quantized / "hf_quant_config.json").write_text(json.dumps(said))
    folders.check_values(host.open(made.quantized), made.values)
    said["quantization"]["quant_algo"] = "NVFP4"
    (made.quantized / "hf_quant_config.json").write_text(json.dumps(said))
    with pytest.raises(BestiaryError, match="quant_algo = 'NVFP4' is not read; known: fp8"):
        host.open(made.quantized)


def integers(strategy: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": {"num_bits": 8, "dynamic": True},
                                          "weights": {"num_bits": 8, "type": "int", "strategy": strategy, **more}}}}


def groups(*sections: dict[str, Any], **more: Any) -> dict[str, Any]:
    """All that the sections say of groups of modules, each with its format, in one."""
    return {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
        f"group_{i}": {**group, "format": section["format"]}
        for i, section in enumerate(sections) for group in section["config_groups"].values()}, **more}


@pytest.mark.parametrize("number", ["float32", "float16", "bf16"])
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_are_what_the_format_says(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture, number: str,
                                           zeros: bool) -> None:
    made = folders.write(tmp_path, packer("int8", "column", number, ".weight_scale", zeros=zeros), integers("channel"))
    checkpoint = host.open(made.quantized)
    rounded = number == "float32" and zeros  # scale * code and scale * zero, each once
    folders.check_values(checkpoint, made.values, 2.0 ** -23 if rounded else 0)
    if number == "float16" and not zeros:
        assert {checkpoint.tensors[name].encoding.name for name in made.values} == {"q8_0"}
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


def test_integers_in_groups_are_what_the_format_says(tmp_path: Path, host: Host) -> None:
    made = folders.write(tmp_path, packer("int8", "block", "bf16", ".weight_scale", (1, 64)),
                         integers("group", group_size=64))
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize(("section", "made_by", "said"), [
    ({**FP8, "weight_block_size": None}, packer(), r"scale_inv has the shape \[\d, \d\]; .* asks for one scale"),
    ({**FP8, "weight_block_size": [64, 64]}, packer(), "in blocks of .64, 64. asks for"),
    ({**FP8, "weight_block_size": [128]}, packer(), "weight_block_size = .128.; it must be two multiples of 8"),
    ({**FP8, "weight_block_size": [7, 8]}, packer(), "it must be two multiples of 8"),
    ({**FP8, "fmt": "e5m2"}, packer(), "fmt = 'e5m2' is not read; known: e4m3"),
    (FP8, packer(end=".scale"), "weight is F8_E4M3; .*weight_scale is missing"),
    (integers("token"), packer("int8", "column"), "strategy = 'token' is not read"),
    (integers("channel") | {"format": "marlin-24"}, packer("int8", "column"), "format = 'marlin-24' is not read"),
    (integers("channel") | {"config_groups": {}}, packer("int8", "column"), "config_groups = .*not empty"),
    (integers("channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, packer("int8", "column"),
     "sparsity_config = .*sparse weights are not read"),
    (integers("group", group_size=64), packer("int8", "block", "bf16", ".weight_scale", (1, 32)),
     r"weight_scale has the shape \[128, 4\]; .* in blocks of \[1, 64\] asks for \[128, 2\]"),
    (groups(integers("group", group_size=72), integers("group", group_size=64)),
     packer("int8", "block", "bf16", ".weight_scale", (1, 64)), r"fits blocks of \[1, 72\] and of \[1, 64\]")])
def test_what_is_not_read_or_does_not_fit_is_refused(tmp_path: Path, host: Host, section: dict[str, Any],
                                                     made_by: Pack, said: str) -> None:
    made = folders.write(tmp_path, made_by, section)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)


def test_a_code_that_is_no_number_is_refused(tmp_path: Path, host: Host) -> None:
    def damaged(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = packer()(rng, outputs, inputs)
        made.parts[".weight"][1][outputs // 2, 3] = 255
        return made

    made = folders.write(tmp_path, damaged, FP8)
    tensor = host.open(made.quantized).tensors[f"{folders.LAYER}mlp.up_proj.weight"]
    assert tensor.decode(0, 5).shape == (5, folders.WIDTH)
    with pytest.raises(BestiaryError, match="up_proj.weight holds a code that is no number"):
        tensor.array()
