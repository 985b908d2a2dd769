"""What is said of a quantized folder: by what method, with how many bits, in which groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bestiary.cli.inspect import text
from bestiary.host import Host
from bestiary.inspection import inspect
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_awq as awq
from tests.loaders import test_quantized_bitsandbytes as bitsandbytes
from tests.loaders import test_quantized_bytes as bytes_
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders import test_quantized_packed as packed
from tests.loaders.quantized_folders import Pack

SAID: Mapping[str, tuple[Pack, Mapping[str, Any]]] = {
    "GPTQ, 4 bits, groups of 64, symmetric": (gptq.packer(4, 64), gptq.section(4, 64)),
    "GPTQ, 3 bits, one group a row, a zero a group": (gptq.packer(3, -1, False), gptq.section(3, -1, False)),
    "GPTQ, 4 bits, groups of 32, symmetric, act-order": (
        gptq.packer(4, 32, True, True, True), gptq.section(4, 32, True, True, True)),
    "GPTQ, 8 bits, groups of 64, symmetric or 4 bits, groups of 64, symmetric": (
        gptq.packer(8, 64), {**gptq.section(8, 64), "dynamic": {"+:.*mlp.*": {"bits": 4}, "-:lm_head": {}}}),
    "AutoRound packed as GPTQ, 4 bits, groups of 64, symmetric": (gptq.packer(4, 64), {
        "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 64,
        "sym": True}),
    "AWQ, 4 bits, groups of 64, a zero a group": (awq.packer(), awq.SECTION),
    "bitsandbytes, NF4, groups of 64": (bitsandbytes.packer(), bitsandbytes.FOUR),
    "bitsandbytes, int8, a scale a row": (bitsandbytes.bytes_and_scales, bitsandbytes.EIGHT),
    "FP8 (e4m3), blocks of 128 x 128": (bytes_.packer(), bytes_.FP8),
    "ModelOpt, FP8 (e4m3), a scale a weight or a row": (
        bytes_.packer("fp8", "column", "float32", ".weight_scale"), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "compressed-tensors, 4 bits, groups of 32, a zero a group, act-order": (
        packed.packer(4, 32, False, "bf16", True), packed.section(4, 32, False, actorder="group")),
    "compressed-tensors, 8 bits, a scale a weight or a row": (
        bytes_.packer("fp8", "column", "float32", ".weight_scale"),
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}})}


@pytest.mark.parametrize("words", SAID)
def test_inspect_says_how_a_folder_is_quantized(tmp_path: Path, host: Host, words: str) -> None:
    made = folders.write(tmp_path, *SAID[words])
    facts = inspect(made.quantized, host)
    assert facts["provenance"]["quantized"] == words
    (line,) = [line for line in text(facts, False).split("\n") if line.startswith("  quantized ")]
    assert line.split(maxsplit=1)[1] == words
    assert inspect(made.plain, host)["provenance"] is None
