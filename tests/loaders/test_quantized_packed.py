"""compressed-tensors folders of packed integers, packed here as the format is described."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders import quantized_folders as folders
from tests.loaders.quantized_folders import Pack, Packed, bf16, from_bf16, plain, stream

Section = dict[str, Any]


def packer(bits: int = 4, group: int | None = 32, symmetric: bool = True, number: str = "bf16", order: bool = False,
           ) -> Pack:
    """Signed integers, half their range added; codes along the input, zeros along the output."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        size, middle = group or inputs, 1 << (bits - 1)
        groups = inputs // size
        codes = rng.integers(-middle, middle, (outputs, inputs))
        given = (rng.uniform(0.02, 0.06, (outputs, groups)) * 4 / 2 ** bits).astype(np.float32)
        scales = bf16(given) if number == "bf16" else plain(given.astype(number))
        numbers = from_bf16(scales) if number == "bf16" else scales[1].astype(np.float32)
        zeros = np.zeros((outputs, groups), np.int64) if symmetric else rng.integers(-middle, middle, (outputs, groups))
        index = rng.permutation(inputs) // size if order else np.arange(inputs) // size
        exact = values = numbers[:, index] * (codes - zeros[:, index]).astype(np.float32)
        if order:
            values = from_bf16(rounded(values)) if number == "bf16" else values.astype(number).astype(np.float32)
        parts = {".weight_packed": plain(np.ascontiguousarray(stream((codes + middle).T, bits).T).view(np.int32)),
                 ".weight_scale": scales, ".weight_shape": plain(np.array([outputs, inputs]))}
        if not symmetric:
            parts[".weight_zero_point"] = plain(stream(zeros + middle, bits).view(np.int32))
        if order:
            parts[".weight_g_idx"] = plain(index.astype(np.int32))
        return Packed(parts, np.ascontiguousarray(values), np.ascontiguousarray(exact))
    return pack


def rounded(values: NDArray[np.float32]) -> tuple[str, NDArray[Any]]:
    """To the nearest bf16, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return "BF16", ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def section(bits: int = 4, group: int | None = 32, symmetric: bool = True, **more: Any) -> Section:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group,
               "strategy": "group" if group else "channel", **more}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("number", ["bf16", "float16"])
def test_weights_are_what_the_format_says(tmp_path: Path, host: Host, bits: int, group: int | None, symmetric: bool,
                                          number: str) -> None:
    made = folders.write(tmp_path, packer(bits, group, symmetric, number), section(bits, group, symmetric))
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    if symmetric and number == "float16" and bits > 2:
        assert {checkpoint.tensors[name].encoding.name for name in made.values} == {"q4_0" if bits == 4 else "q8_0"}


@pytest.mark.parametrize(("bits", "group", "symmetric", "number"), [
    (4, 128, True, "bf16"), (4, 128, False, "bf16"), (4, 64, False, "float16"), (8, None, True, "bf16")])
def test_logits_are_those_of_the_plain_weights(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture, bits: int,
                                               group: int | None, symmetric: bool, number: str) -> None:
    made = folders.write(tmp_path, packer(bits, group, symmetric, number), section(bits, group, symmetric))
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


@pytest.mark.parametrize(("said_by", "said"), [
    (section(3), "num_bits = 3 is not read; known: 2, 4, 8"),
    (section(8), r"weight_shape holds \[128, 128\]; 8 bits in .* are \[128, 64\]"),
    (section(4, 64), r"weight_scale has the shape \[128, 4\]; .*group_size = 64 asks for \[128, 2\]"),
    (section(4, 32, False), "weight_zero_point is missing"),
    (section(type="float"), "type = 'float' is not read; known: int"),
    (section(4, 12), "group_size = 12; it must be a multiple of 8"),
    ({**section(), "config_groups": {"g": {"weights": None}}}, "'g' says nothing of weights"),
    ({**section(), "config_groups": [1]}, "config_groups = .*it must be an object"),
    ({**section(), "format": "nvfp4-pack-quantized"}, "format = 'nvfp4-pack-quantized' is not read")])
def test_settings_that_are_not_read_or_do_not_fit_are_refused(tmp_path: Path, host: Host, said_by: Section, said: str,
                                                              ) -> None:
    made = folders.write(tmp_path, packer(), said_by)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)
