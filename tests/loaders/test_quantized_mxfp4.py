"""Blocks of floats of 4 bits with a power of two each, as gpt-oss holds its experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders.quantized_folders import CONFIG, Stored, plain, write_tensors

FLOATS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NAME = "model.layers.0.mlp.experts.gate_up_proj"


def folder(path: Path, tensors: dict[str, Stored]) -> Path:
    said = {**CONFIG, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (path / "config.json").write_text(json.dumps(said))
    write_tensors(path / "model.safetensors", tensors)
    return path


def test_stacks_are_what_the_format_says(tmp_path: Path, host: Host) -> None:
    rng = np.random.default_rng(0)
    codes, powers = rng.integers(0, 16, (3, 24, 4, 32)), rng.integers(100, 140, (3, 24, 4)).astype(np.uint8)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    wanted = np.ldexp(FLOATS[codes], powers[..., None].astype(np.int32) - 127).reshape(3, 24, 128)
    bias = rng.standard_normal((3, 24)).astype(np.float32)
    opened = host.open(folder(tmp_path, {f"{NAME}_blocks": plain(packed), f"{NAME}_scales": plain(powers),
                                         f"{NAME}_bias": plain(bias)}))
    tensor = opened.tensors[NAME]
    assert (tensor.shape, tensor.encoding.name) == ((3, 24, 128), "mxfp4")
    assert np.array_equal(tensor.array(), wanted)
    assert np.array_equal(tensor.decode(10, 50), wanted.reshape(72, 128)[10:50])
    assert np.array_equal(opened.tensors[f"{NAME}_bias"].array(), bias)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, host: Host) -> None:
    blocks = plain(np.zeros((2, 8, 4, 16), np.uint8))
    for parts, said in (
            ({f"{NAME}_blocks": blocks}, "_scales is missing"),
            ({f"{NAME}_blocks": blocks, f"{NAME}_scales": plain(np.zeros((2, 8, 3), np.uint8))},
             "_scales has the shape"),
            ({f"{NAME}_blocks": plain(np.zeros((2, 8, 4, 8), np.uint8))}, "a block of 32 weights asks for"),
            ({f"{NAME}_blocks": plain(np.zeros((2, 8, 4, 16), np.int8))}, "is I8; it must be U8")):
        with pytest.raises(BestiaryError, match=said):
            host.open(folder(tmp_path, parts))
