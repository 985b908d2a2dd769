"""Weights that the programs behind quantized folders packed: they decode to what these programs decode them to."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.decoding import from_bf16, to_bf16
from bestiary.host import Host
from tests.loaders.quantized_folders import write_tensors

CASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("quantized.json").read_text())["cases"]
KINDS = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "I8": np.int8,
         "U8": np.uint8, "F8_E4M3": np.uint8}
OFF = {"bitsandbytes int8": 2.0 ** -23}
"""Where they multiply in another order: shares of the largest."""


def array(stored: list[Any]) -> NDArray[Any]:
    dtype, shape, text = stored
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), KINDS[dtype]).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_what_other_programs_packed_decodes_to_what_they_decode_it_to(tmp_path: Path, host: Host, name: str) -> None:
    case = CASES[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama",
                                                      "quantization_config": case["quantization_config"]}))
    write_tensors(tmp_path / "model.safetensors",
                  {f"m{end}": (stored[0], array(stored)) for end, stored in case["parts"].items()})
    (tensor,) = host.open(tmp_path).tensors.values()
    found, wanted = tensor.array(), array(case["decoded"])
    if case["decoded"][0] == "F16":
        found, wanted = found.astype(np.float16).astype(np.float32), wanted.astype(np.float32)
    elif case["decoded"][0] == "BF16":
        found, wanted = from_bf16(to_bf16(found)), from_bf16(wanted)
    assert tensor.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, 0, OFF.get(name, 0) * np.abs(wanted).max())
