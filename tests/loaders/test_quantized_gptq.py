"""GPTQ folders, packed here as the format is described."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bestiary.canonical import to_canonical
from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders import quantized_folders as folders
from tests.loaders.quantized_folders import Pack, Packed, plain, stream

Section = dict[str, Any]


def packer(bits: int = 4, group: int = 32, symmetric: bool = True, one_less: bool = True, order: bool = False,
           alike: bool = False) -> Pack:
    """Words of 32 bits: of the codes along the input, of the zeros along the output. order: act-order; alike: weights
    of as many inputs have the same."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        size = inputs if group == -1 else group
        groups = inputs // size
        codes = rng.integers(0, 1 << bits, (inputs, outputs))
        scales = (rng.uniform(0.02, 0.06, (groups, outputs)) * 4 / 2 ** bits).astype(np.float16)
        zeros: NDArray[Any] = np.full((groups, outputs), 1 << (bits - 1))
        if not symmetric:
            zeros = rng.integers(one_less, 1 << bits, (groups, outputs))
        drawn = np.random.default_rng(inputs) if alike else rng
        index = drawn.permutation(inputs) // size if order else np.arange(inputs) // size
        exact = scales[index].astype(np.float32) * (codes - zeros[index]).astype(np.float32)
        values = exact.astype(np.float16).astype(np.float32) if order and groups > 1 else exact
        return Packed({".qweight": plain(stream(codes, bits).view(np.int32)),
                       ".qzeros": plain(np.ascontiguousarray(stream((zeros - one_less).T, bits).T).view(np.int32)),
                       ".scales": plain(scales), ".g_idx": plain(index.astype(np.int32))},
                      np.ascontiguousarray(values.T), np.ascontiguousarray(exact.T))
    return pack


def section(bits: int = 4, group: int = 32, symmetric: bool = True, one_less: bool = True, order: bool = False,
            ) -> Section:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": order,
            "checkpoint_format": "gptq" if one_less else "gptq_v2"}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("one_less", [True, False])
def test_weights_are_what_the_format_says(tmp_path: Path, host: Host, bits: int, group: int, symmetric: bool,
                                          one_less: bool) -> None:
    options = bits, group, symmetric, one_less
    made = folders.write(tmp_path, packer(*options), section(*options))
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    assert "quantization_config" not in checkpoint.config
    found = {tensor.encoding.name for name, tensor in checkpoint.tensors.items() if name in made.values}
    if symmetric and bits in (4, 8):
        assert found == {"q4_0" if bits == 4 else "q8_0"}
    else:
        assert all(name.startswith(f"{'int' if symmetric else 'uint'}{bits}_f16_") for name in found)


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 32, True), (4, 128, False), (4, 64, False), (4, -1, True),
                                                          (2, 32, False), (3, 64, True), (3, 128, False),
                                                          (8, 128, True), (8, 32, False)])
def test_logits_are_those_of_the_plain_weights(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture,
                                               bits: int, group: int, symmetric: bool) -> None:
    made = folders.write(tmp_path, packer(bits, group, symmetric), section(bits, group, symmetric))
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


def test_groups_of_other_sizes_are_decoded_by_their_layout(tmp_path: Path, host: Host) -> None:
    for i, (group, symmetric) in enumerate(((16, True), (16, False), (8, False), (40, True))):
        made = folders.write(tmp_path / str(i), packer(4, group, symmetric) if group != 40 else odd_groups(),
                             section(4, group, symmetric))
        folders.check_values(host.open(made.quantized), made.values)


def odd_groups() -> Pack:
    """Groups of 40 of 128 or 256 inputs: the last one is shorter."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        index = np.arange(inputs) // 40
        codes = rng.integers(0, 16, (inputs, outputs))
        scales = rng.uniform(0.02, 0.06, (int(index[-1]) + 1, outputs)).astype(np.float16)
        values = scales[index].astype(np.float32) * (codes - 8).astype(np.float32)
        zeros = np.full((outputs, len(scales)), 7)
        return Packed({".qweight": plain(stream(codes, 4).view(np.int32)), ".scales": plain(scales),
                       ".qzeros": plain(np.ascontiguousarray(stream(zeros, 4).T).view(np.int32))},
                      np.ascontiguousarray(values.T))
    return pack


def test_a_zero_of_zero_survives_where_it_was_taken_from_the_whole_word(tmp_path: Path, host: Host,
                                                                        caplog: pytest.LogCaptureFixture) -> None:
    pack = packer(4, 64, False)

    def wrapped(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = pack(rng, outputs, inputs)
        zeros = rng.integers(0, 16, (inputs // 64, outputs))
        words = np.ascontiguousarray(stream(zeros.T, 4).T) - np.uint32(0x11111111)
        codes = np.stack([made.parts[".qweight"][1].view(np.uint32) >> 4 * i & 15 for i in range(8)], 1)
        scales = made.parts[".scales"][1].repeat(64, 0).astype(np.float32)
        values = scales * (codes.reshape(inputs, outputs).astype(np.float32) - zeros.repeat(64, 0).astype(np.float32))
        return Packed({**made.parts, ".qzeros": plain(words.view(np.int32))}, np.ascontiguousarray(values.T))

    made = folders.write(tmp_path, wrapped, section(4, 64, False))
    with caplog.at_level(logging.WARNING):
        checkpoint = host.open(made.quantized)
        assert not caplog.records  # zeros are not read before somebody wants them
        folders.check_values(checkpoint, made.values)
    (said,) = [record.message for record in caplog.records]  # other programs would read another neighbour
    assert said.startswith(f"{made.quantized}: some zeros are stored as all ones. Taken for what GPTQModel writes")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plain_zeros = folders.write(tmp_path / "1", packer(4, 64, False), section(4, 64, False))  # of 1 and more
        folders.check_values(host.open(plain_zeros.quantized), plain_zeros.values)
    assert not caplog.records


@pytest.mark.parametrize("symmetric", [True, False])
def test_modules_may_have_settings_of_their_own(tmp_path: Path, host: Host, symmetric: bool) -> None:
    """GPTQModel's dynamic: the shapes say whose they are."""
    def mixed(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        if inputs == folders.FORWARD:
            return packer(8, 64)(rng, outputs, inputs)
        return packer(2 if outputs == folders.FORWARD else 4, 32, symmetric)(rng, outputs, inputs)

    modules = {"+:.*down_proj": {"bits": 8, "group_size": 64}, r".*\.(gate|up)_proj": {"bits": 2, "sym": symmetric},
               "-:lm_head": {}, "+:.*q_proj": {"sym": symmetric}}
    made = folders.write(tmp_path, mixed, {**section(), "dynamic": modules})
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    names = {checkpoint.tensors[name].encoding.name for name in made.values}
    assert names == ({"q4_0", "q8_0", "int2_f16_32"} if symmetric else {"uint4_f16_32", "q8_0", "uint2_f16_32"})


def test_groups_that_the_shapes_do_not_tell_apart_are_refused(tmp_path: Path, host: Host) -> None:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        return packer(4, inputs // 2)(rng, outputs, inputs)

    said = {**section(4, 64), "dynamic": {"mlp": {"group_size": 96}, "down": {"group_size": 128}}}
    made = folders.write(tmp_path, pack, said)
    with pytest.raises(BestiaryError, match="q_proj.qweight fits groups of 64 and of 96"):
        host.open(made.quantized)


def test_settings_may_stand_in_a_file_of_their_own(tmp_path: Path, host: Host) -> None:
    made = folders.write(tmp_path, packer(4, 32, False), None)
    with pytest.raises(BestiaryError, match="qweight is part of a quantized weight, and neither config.json"):
        host.open(made.quantized)
    (made.quantized / "quantize_config.json").write_text(
        json.dumps({"bits": 4, "group_size": 32, "sym": False, "desc_act": False, "model_name_or_path": None}))
    folders.check_values(host.open(made.quantized), made.values)


def test_files_of_torch_and_files_of_other_names_are_read_too(tmp_path: Path, host: Host, torch_files: Any) -> None:
    made = folders.write(tmp_path, packer(4, 32, False), section(4, 32, False))
    whole = made.quantized / "model.safetensors"
    arrays = {name: np.asarray(tensor.array(), np.float32) for name, tensor in host.open(made.plain).tensors.items()
              if name not in made.values}
    parts: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    folders.others(rng)
    for name, shape in folders.LINEARS.items():
        parts |= {f"{folders.LAYER}{name}{end}": stored[1]
                  for end, stored in packer(4, 32, False)(rng, *shape).parts.items()}
    named = whole.rename(made.quantized / "gptq_model-4bit-32g.safetensors")
    with pytest.raises(BestiaryError, match="to read 'gptq_model-4bit-32g.safetensors' name that file"):
        host.open(made.quantized)
    folders.check_values(host.open(named), made.values)
    (made.quantized / "pytorch_model.bin").write_bytes(torch_files.zip({**arrays, **parts}))
    folders.check_values(host.open(made.quantized), made.values)


def test_biases_of_zeros_that_old_programs_wrote_are_left_out(tmp_path: Path, host: Host) -> None:
    bias = f"{folders.LAYER}mlp.up_proj.bias"
    made = folders.write(tmp_path, packer(), section(), more={bias: plain(np.zeros(folders.FORWARD, np.float16))})
    folders.check_logits(made, host)
    checkpoint = host.open(made.quantized)
    canonical, _ = to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))
    assert bias in checkpoint.tensors and not any(name.endswith("bias") for name in canonical.tensors)
    other = folders.write(tmp_path / "other", packer(), section(),
                          more={bias: plain(np.ones(folders.FORWARD, np.float16))})
    with pytest.raises(BestiaryError, match="tensor.* missing"):
        folders.plan_of(other.quantized, host, "numpy")


@pytest.mark.parametrize("zeros", ["q", "qkv", "qkvo"])
def test_biases_of_zeros_stay_where_the_model_has_them(tmp_path: Path, host: Host, zeros: str) -> None:
    rng = np.random.default_rng(4)
    sizes = {"q": folders.WIDTH, "k": folders.WIDTH // 2, "v": folders.WIDTH // 2, "o": folders.WIDTH}
    more = {f"{folders.LAYER}self_attn.{part}_proj.bias": (rng.standard_normal(size) * (part not in zeros)).astype("f4")
            for part, size in sizes.items() if part in zeros + "qkv"}
    made = folders.write(tmp_path, packer(), section(), more={name: plain(bias) for name, bias in more.items()})
    for folder in (made.quantized, made.plain):
        config = {**json.loads((folder / "config.json").read_text()), "model_type": "qwen2", "architectures": []}
        (folder / "config.json").write_text(json.dumps(config))
    known = {name: bias for name, bias in more.items() if "o_proj" not in name}  # for which the family has a place
    save_file({**load_file(made.plain / "model.safetensors"), **known}, made.plain / "model.safetensors")
    folders.check_logits(made, host)


@pytest.mark.parametrize(("changed", "said"), [
    ({"quant_method": "squeeze"}, "quant_method = 'squeeze' is not read; known: gptq"),
    ({"quant_method": None}, "quant_method = None is not read"),
    ({"bits": 5}, "bits = 5 is not read; known: 2, 3, 4, 8"),
    ({"bits": True}, "bits = True is not read"),
    ({"bits": "4"}, "bits = '4' is not read"),
    ({"group_size": 0}, "group_size = 0; it must be -1 or a multiple of 8"),
    ({"group_size": 36}, "group_size = 36; it must be -1 or a multiple of 8"),
    ({"group_size": 1 << 40}, "group_size = 1099511627776; it must be an integer"),
    ({"group_size": None}, "group_size = None; it must be an integer"),
    ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin' is not read; known: gptq, gptq_v2"),
    ({"is_marlin_format": True}, "is_marlin_format = True"),
    ({"sym": "yes"}, "sym = 'yes' is not read; known: True, False"),
    ({"dynamic": {"+:.*mlp.*": {"bits": 5}}}, r"dynamic: '\+:\.\*mlp\.\*': bits = 5 is not read"),
    ({"dynamic": {"+:.*mlp.*": 8}}, "dynamic = .*it must be an object of objects"),
    ({"dynamic": [8]}, r"dynamic = \[8\]; it must be an object of objects"),
    ({"dynamic": {str(i): {"group_size": 8 * i} for i in range(1, 101)}}, "has 100 different settings .*; 64 are the"),
    ({"group_size": 24, "dynamic": {"mlp": {"group_size": 64}, "q": {"bits": 8}}},  # none of them
     r"group_size = 24 asks for \[6, 128\]"),
    ({"bits": 8}, r"scales has the shape \[4, 128\]; .*with bits = 8, group_size = 32 asks for \[2, 128\]"),
    ({"group_size": 64}, r"scales has the shape \[4, 128\]; .*group_size = 64 asks for \[2, 128\]"),
    ({"bits": 3}, "that is no weight of 3 bits packed into whole words"),
])
def test_settings_that_are_not_read_or_do_not_fit_are_refused(tmp_path: Path, host: Host, changed: Section, said: str,
                                                              ) -> None:
    made = folders.write(tmp_path, packer(), {**section(), **changed})
    with pytest.raises(BestiaryError, match=said) as caught:
        host.open(made.quantized)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "changed", "said"), [
    (".qzeros", None, "qzeros is missing"),
    (".scales", None, "scales is missing"),
    (".qzeros", np.zeros((3, 16), np.int32), "qzeros has the shape"),
    (".qzeros", np.zeros((4, 16), np.float16), "qzeros is f16; it must be I32"),
    (".scales", np.zeros((4, 128), np.int32), "scales is I32; it must be f16 or bf16 or f32"),
    (".qweight", np.zeros((16, 2, 64), np.int32), "must have 2 dimensions"),
    (".qweight", np.zeros((0, 128), np.int32), "none of them 0"),
    (".g_idx", np.full(128, 4, np.int32), "g_idx holds 4 to 4; groups are counted from 0 to 3"),
    (".g_idx", np.full(128, -1, np.int32), "g_idx holds -1 to -1"),
    (".g_idx", np.zeros(64, np.int32), r"g_idx has the shape \[64\]; the weight asks for \[128\]"),
    (".weight", np.zeros((128, 128), np.float16), "stands there as itself and as"),
])
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, host: Host, part: str, changed: NDArray[Any] | None,
                                           said: str) -> None:
    made = folders.write(tmp_path, folders.with_part(packer(), part, changed), section())
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)


def test_act_order_without_its_list_is_refused_where_there_are_several_groups(tmp_path: Path, host: Host) -> None:
    def without(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = packer(4, group)(rng, outputs, inputs)
        return Packed({name: stored for name, stored in made.parts.items() if name != ".g_idx"}, made.values)

    group = -1
    made = folders.write(tmp_path / "one", without, section(4, group, order=True))
    folders.check_values(host.open(made.quantized), made.values)
    group = 64
    made = folders.write(tmp_path / "none", without, section(4, group))
    folders.check_values(host.open(made.quantized), made.values)
    made = folders.write(tmp_path / "several", without, section(4, group, order=True))
    with pytest.raises(BestiaryError, match=r"q_proj.g_idx is missing: desc_act = true .* of the 2 groups"):
        host.open(made.quantized)


def test_zeros_that_are_not_the_middle_are_refused_where_the_config_says_they_are(tmp_path: Path, host: Host) -> None:
    made = folders.write(tmp_path, packer(4, 32, False), section())
    tensor = host.open(made.quantized).tensors[f"{folders.LAYER}mlp.up_proj.weight"]
    with pytest.raises(BestiaryError, match=re.escape("sym = true asks for zeros of 8, and qzeros holds")):
        tensor.array()
