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
from tests.loaders import test_quantized_bytes as eight
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


def both(*sections: Section) -> Section:
    return {**sections[0], "config_groups": {
        f"group_{i}": one["config_groups"]["group_0"] for i, one in enumerate(sections)}}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("number", ["bf16", "float16"])
def test_weights_are_what_the_format_says(tmp_path: Path, host: Host, bits: int, group: int | None, symmetric: bool,
                                          number: str) -> None:
    made = folders.write(tmp_path, packer(bits, group, symmetric, number), section(bits, group, symmetric))
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    if symmetric and number == "float16" and bits in (4, 8):
        assert {checkpoint.tensors[name].encoding.name for name in made.values} == {"q4_0" if bits == 4 else "q8_0"}


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_need_not_fill_their_last_word(tmp_path: Path, host: Host, bits: int, symmetric: bool) -> None:
    """Nor zeros, along the output."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = packer(bits, 8, symmetric)(rng, outputs, inputs + 32)
        codes = made.parts[".weight_packed"][1]
        parts = {**made.parts, ".weight_packed": plain(codes[:, :-(-(inputs + 8) * bits // 32)]),
                 ".weight_scale": ("BF16", made.parts[".weight_scale"][1][:, :-3]),
                 ".weight_shape": plain(np.array([outputs, inputs + 8]))}
        if not symmetric:
            parts[".weight_zero_point"] = plain(made.parts[".weight_zero_point"][1][:, :-3])
        return Packed(parts, made.values[:, :inputs + 8])

    made = folders.write(tmp_path, pack, section(bits, 8, symmetric))
    folders.check_values(host.open(made.quantized), made.values)


def test_groups_of_modules_may_have_schemes_of_their_own(tmp_path: Path, host: Host) -> None:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        if inputs == folders.FORWARD:
            return eight.packer("fp8", "column", "bf16", ".weight_scale")(rng, outputs, inputs)
        if outputs == folders.FORWARD:
            return eight.packer("int8", "block", "bf16", ".weight_scale", (1, 64))(rng, outputs, inputs)
        return (packer(8, None) if outputs == inputs else packer(4, 32, False))(rng, outputs, inputs)

    floats = {"format": "float-quantized", "config_groups": {"a": {"weights": {"num_bits": 8, "strategy": "channel"}}}}
    cache = {"format": None, "config_groups": {"a": {"targets": ["LlamaAttention"], "weights": None}}}
    said = eight.groups(section(8, None), section(4, 32, False), floats, eight.integers("group", group_size=64), cache)
    made = folders.write(tmp_path, pack, said)
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    assert {checkpoint.tensors[name].encoding.name for name in made.values} == {
        "e4m3_bf16_256", "int8_bf16_64", "int8_bf16_128", "uint4_bf16_32"}


def test_rotations_that_lie_in_the_weights_are_done(tmp_path: Path, host: Host) -> None:
    said = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["x"], "location": "weight_output"}]}}}
    made = folders.write(tmp_path, packer(), {**section(), "transform_config": said})
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_what_is_said_of_activations_and_the_cache_is_left_out(tmp_path: Path, host: Host, kind: str) -> None:
    names = [f"{folders.LAYER}self_attn.{what}" for what in ("q_proj.input_scale", "q_proj.input_zero_point", "k_scale",
             "v_scale", "k_zero_point", "v_zero_point", "o_proj.output_scale", "o_proj.output_zero_point")]
    made = folders.write(tmp_path, packer(), section(), more={name: plain(np.ones(1, kind)) for name in names})
    assert not set(names) & set(host.open(made.quantized).tensors)
    folders.check_logits(made, host)


@pytest.mark.parametrize(("bits", "group", "symmetric", "number"), [
    (4, 128, True, "bf16"), (4, 128, False, "bf16"), (4, 64, False, "float16"), (8, None, True, "bf16")])
def test_logits_are_those_of_the_plain_weights(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture, bits: int,
                                               group: int | None, symmetric: bool, number: str) -> None:
    made = folders.write(tmp_path, packer(bits, group, symmetric, number), section(bits, group, symmetric))
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


@pytest.mark.parametrize(("said_by", "said"), [
    (section(5), "num_bits = 5 is not read; known: 2, 3, 4, 8"),
    (section(8), r"weight_packed has the shape \[128, 16\]; a row of 128 with num_bits = 8, .* asks for \[128, 32\]"),
    (section(4, 64), r"weight_scale has the shape \[128, 4\]; .*group_size = 64 asks for \[128, 2\]"),
    (section(4, 32, False), "weight_zero_point is missing"),
    (section(type="float"), "type = 'float' is not read; known: int"),
    (section(4, 12), "group_size = 12; it must be a multiple of 8"),
    ({**section(), "config_groups": {"g": {"weights": None}}}, r"config_groups: \['g'\] say nothing of weights"),
    ({**section(), "config_groups": {"g": {"weights": 4}}}, "'g': weights = 4; it must be an object"),
    ({**section(), "config_groups": {"g": 4}}, "'g': weights = 4; it must be an object"),
    (both(*(section(4, 8 * i) for i in range(1, 101))), "has 100 different settings of weights; 64 are the most"),
    ({**section(), "transform_config": {"config_groups": {"R4": {"type": "hadamard", "apply": [
        {"targets": ["re:.*down_proj$"], "location": "input"}, {"targets": ["x"], "location": "weight_input"}]}}}},
     "transform_config = .*activations are rotated while the model runs"),
    ({**section(), "transform_config": [1]}, "transform_config = .*activations are rotated"),
    ({**section(), "transform_config": {"config_groups": {"R": {}}}}, "transform_config = .*are rotated"),
    (both(section(4, 40), section(4, 48)), "asks for"),
    (both(section(4, 40), section(4, 32)), "weight_packed fits several of the config_groups"),

    ({**section(), "config_groups": [1]}, "config_groups = .*it must be an object"),
    ({**section(), "format": "nvfp4-pack-quantized"}, "format = 'nvfp4-pack-quantized' is not read")])
def test_settings_that_are_not_read_or_do_not_fit_are_refused(tmp_path: Path, host: Host, said_by: Section, said: str,
                                                              ) -> None:
    made = folders.write(tmp_path, packer(), said_by)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)
