"""Quantized folders as transformers runs them on a CPU: FP8 by itself, others where the packages that it asks for are
installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bestiary.testing.tiny import difference, random_ids
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_bitsandbytes as bitsandbytes
from tests.loaders import test_quantized_bytes as floats
from tests.loaders import test_quantized_packed as packed
from tests.loaders.quantized_folders import Pack

if TYPE_CHECKING:
    from tests.parity.conftest import Parity

CASES: dict[str, tuple[str, Pack, dict[str, Any], float]] = {
    "fp8": ("transformers", floats.packer(), floats.FP8, 1e-5),
    "nf4": ("bitsandbytes", bitsandbytes.packer("nf4", 64, True),
            {**bitsandbytes.FOUR, "bnb_4bit_compute_dtype": "float32", "bnb_4bit_use_double_quant": True}, 1e-5),
    # it rounds activations to 8 bits
    "llm.int8": ("bitsandbytes", bitsandbytes.bytes_and_scales, bitsandbytes.EIGHT, 0.03),
    "compressed-tensors": ("compressed_tensors", packed.packer(4, 32), packed.section(4, 32), 1e-5)}
"""The package, the weights, what the config says, and how far the logits may be off."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if importlib.util.find_spec(case[0])])
def test_logits_of_a_quantized_folder_are_those_of_transformers(parity: Parity, name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    _, pack, section, bound = CASES[name]
    made = folders.write(tmp_path, pack, section)
    given: dict[str, Any] = {}
    if name == "fp8":  # its own kernels want a GPU
        given["quantization_config"] = transformers.FineGrainedFP8Config(weight_block_size=(128, 128), dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(made.quantized, dtype=torch.float32, device_map="cpu",
                                                              **given).eval()
    ids = torch.tensor(random_ids(folders.VOCABULARY, 20).astype(np.int64))[None]
    with torch.no_grad():
        wanted = model(ids).logits[0].float().numpy()
    assert difference(folders.logits(made.quantized, parity.host, "numpy"), wanted) < bound
    assert difference(folders.logits(made.quantized, parity.host, "cpu"), wanted) < bound + 0.02
