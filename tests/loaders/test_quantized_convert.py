"""What becomes of quantized folders: converted without loss, run from the file as from the folder, cut and permuted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.convert import types
from bestiary.errors import BestiaryError
from bestiary.forecast import PIECE, forecast
from bestiary.host import Host
from bestiary.saving import save_as
from bestiary.testing.tiny import difference
from bestiary.transform import Permute, Split, Stack
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_awq as awq
from tests.loaders import test_quantized_bitsandbytes as bitsandbytes
from tests.loaders import test_quantized_bytes as floats
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders import test_quantized_packed as packed
from tests.loaders.quantized_folders import Folders, Pack, plain

Scheme = tuple[Pack, dict[str, Any], set[str]]
SCHEMES: dict[str, Scheme] = {
    "gptq in groups of 128": (gptq.packer(4, 128), gptq.section(4, 128), {"q4_0"}),
    "gptq of 8 bits": (gptq.packer(8, 128), gptq.section(8, 128), {"q8_0"}),
    "gptq with zeros": (gptq.packer(4, 128, False), gptq.section(4, 128, False), {"uint4_f16_128"}),
    "gptq of 3 bits": (gptq.packer(3, 64), gptq.section(3, 64), {"int3_f16_64"}),
    "gptq with act-order": (gptq.packer(4, 32, False, True, True), gptq.section(4, 32, False, True, True), {"f16"}),
    "awq": (awq.packer(64), awq.SECTION, {"uint4_f16_64"}),
    "fp8": (floats.packer(), floats.FP8, {"e4m3_f32_128"}),
    "compressed-tensors": (packed.packer(number="float16"), packed.section(), {"q4_0"}),
    "compressed-tensors with zeros": (packed.packer(4, 64, False), packed.section(4, 64, False), {"uint4_bf16_64"}),
    "compressed-tensors with wide scales": (packed.packer(number="float32"), packed.section(), {"int4_f32_32"}),
    "nf4": (bitsandbytes.packer("nf4", 64, True), bitsandbytes.FOUR, {"nf4_f32_64"}),
    "llm.int8": (bitsandbytes.bytes_and_scales, bitsandbytes.EIGHT, {"int8_f32_128", "int8_f32_256"}),
}


def canonical(host: Host, path: Path) -> Checkpoint:
    checkpoint = host.open(path)
    return to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))[0]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], tuple[Folders, set[str]]]:
    def make(name: str) -> tuple[Folders, set[str]]:
        pack, section, types = SCHEMES[name]
        return folders.write(tmp_path / "made", pack, section), types
    return make


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_ours_holds_a_quantized_folder_bit_for_bit(
        host: Host, tmp_path: Path, name: str, make: Callable[[str], tuple[Folders, set[str]]]) -> None:
    made, types = make(name)
    target = tmp_path / "m.gguf"
    save_as(made.quantized, target, None, host)
    before, after = canonical(host, made.quantized), canonical(host, target)
    assert before.tensors.keys() == after.tensors.keys()
    quantized = set()
    for weight, tensor in before.tensors.items():
        again = after.tensors[weight]
        if tensor.encoding.quantized:
            assert again.encoding == tensor.encoding, weight
            assert np.array_equal(again.read(0, again.rows), tensor.read(0, tensor.rows)), weight
        if weight.startswith("blk.") and len(tensor.shape) > 1:
            quantized.add(tensor.encoding.name)
    assert quantized == types
    for backend in ("numpy", "cpu"):
        found, wanted = folders.logits(target, host, backend), folders.logits(made.quantized, host, backend)
        if "act-order" in name:  # decoded: so that activations are not rounded, and the embedding becomes f16 as ever
            assert difference(found, wanted) < (1e-3 if backend == "numpy" else 0.02)
        else:
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_no_other_program_reads_is_called_so(
        host: Host, tmp_path: Path, name: str, make: Callable[[str], tuple[Folders, set[str]]],
        caplog: pytest.LogCaptureFixture) -> None:
    made, types = make(name)
    target, foreign = tmp_path / "m.gguf", types - {"q4_0", "q8_0", "f16"}
    save_as(made.quantized, target, None, host)
    lines = [record.message for record in caplog.records if "only Bestiary" in record.message]
    assert len(lines) == bool(foreign)
    for line in lines:
        assert line.startswith(f"only Bestiary reads {target}: GGUF has no type for ")
        assert set(line.split(" for ")[1].split(";")[0].split(", ")) == foreign
    caplog.clear()
    save_as(made.quantized, target, "f16", host, force=True)
    assert not any("only Bestiary" in record.message for record in caplog.records)


@pytest.mark.parametrize(("bits", "group", "type"), [(4, 32, "q4_0"), (4, 128, "q4_0"), (8, 64, "q8_0"),
                                                     (8, None, "q8_0")])
def test_integers_with_scales_of_bf16_become_what_others_read_and_lose_nothing(
        host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, group: int | None, type: str) -> None:
    made = folders.write(tmp_path / "made", packed.packer(bits, group), packed.section(bits, group))
    save_as(made.quantized, tmp_path / "m.gguf", None, host)
    before, after = canonical(host, made.quantized), canonical(host, tmp_path / "m.gguf")
    for weight, tensor in before.tensors.items():
        assert np.array_equal(after.tensors[weight].array(), tensor.array()), weight
    assert {after.tensors[f"blk.0.ffn_{part}.weight"].encoding.name for part in ("up", "down")} == {type}
    said = " ".join(record.message for record in caplog.records)
    assert f"become {type}, code by code" in said and "scales and minimums are what they were" in said
    assert "only Bestiary" not in said


@pytest.mark.parametrize("name", ["gptq in groups of 128", "gptq of 8 bits", "compressed-tensors", "awq"])
@pytest.mark.parametrize("stored", [folders.bf16, lambda values: plain(values.astype(np.float16))])
def test_norms_are_f32_whatever_they_were_since_llama_cpp_runs_no_others(
        host: Host, tmp_path: Path, name: str, stored: Callable[[folders.Floats], folders.Stored]) -> None:
    pack, section, types = SCHEMES[name]
    values = np.linspace(0.5, 2, folders.WIDTH, dtype=np.float32)
    norms = ("model.norm.weight", f"{folders.LAYER}input_layernorm.weight")
    made = folders.write(tmp_path / "made", pack, section, more={norm: stored(values) for norm in norms})
    save_as(made.quantized, tmp_path / "m.gguf", None, host)
    before, after = host.open(made.quantized).tensors, host.open(tmp_path / "m.gguf").tensors
    for norm, canonical_name in zip(norms, ("output_norm.weight", "blk.0.attn_norm.weight"), strict=True):
        assert before[norm].encoding.name != "f32" and after[canonical_name].encoding.name == "f32"
        assert np.array_equal(after[canonical_name].array(), before[norm].array())
    assert after["blk.0.ffn_up.weight"].encoding.name in types


@pytest.mark.parametrize("name", [*SCHEMES, "with scales of bf16"])
@pytest.mark.filterwarnings("ignore")
def test_the_plan_for_what_it_is_says_what_a_conversion_without_a_type_makes(
        host: Host, tmp_path: Path, name: str) -> None:
    pack, section, _ = {**SCHEMES, "with scales of bf16": (packed.packer(), packed.section(), set[str]())}[name]
    norm = folders.bf16(np.ones(folders.WIDTH, np.float32))
    made = folders.write(tmp_path / "made", pack, section, more={"model.norm.weight": norm})
    row = next(row for row in forecast(made.quantized, host)["types"] if row["type"] == "as it is")
    saved = save_as(made.quantized, tmp_path / "m.gguf", None, host)
    assert row["types"] == saved.types
    assert abs(row["bytes"] - PIECE * folders.VOCABULARY - saved.bytes) <= 32  # of a tokenizer that there is none of
    assert (row["runs_as"] is not None) == (name in ("gptq with act-order", "with scales of bf16"))
    for kind in (row["runs_as"] or row["types"]).keys() - {"f32"}:  # of which there is the norm too
        assert kind in types(host.open(made.quantized)) or "act-order" in name


@pytest.mark.parametrize("name", ["gptq with zeros", "fp8", "nf4"])
def test_a_quantized_folder_becomes_a_plain_one_or_needs_leave(
        host: Host, tmp_path: Path, name: str, make: Callable[[str], tuple[Folders, set[str]]]) -> None:
    made, _ = make(name)
    with pytest.raises(BestiaryError, match="quantized already: .*say --allow-requantize"):
        save_as(made.quantized, tmp_path / "m.gguf", "q5_0", host)
    save_as(made.quantized, tmp_path / "m.gguf", "q5_0", host, requantize=True)
    save_as(made.quantized, tmp_path / "folder", "f32", host, format="huggingface")
    again = host.open(tmp_path / "folder")
    assert "quantization_config" not in again.config
    folders.check_values(again, made.values)


@pytest.mark.parametrize("name", ["gptq with zeros", "gptq in groups of 128", "awq", "fp8", "nf4",
                                  "compressed-tensors"])
def test_rows_can_be_permuted_split_and_stacked(host: Host, name: str,
                                                make: Callable[[str], tuple[Folders, set[str]]]) -> None:
    made, _ = make(name)
    weight = f"{folders.LAYER}mlp.gate_proj.weight"
    tensor, values = host.open(made.quantized).tensors[weight], made.values[weight]
    order = tuple(np.random.default_rng(0).permutation(len(values)).tolist())
    (permuted,) = Permute(order).apply([tensor])
    assert np.array_equal(permuted.array(), values[list(order)])
    for part, wanted in zip(Split((100, 156)).apply([tensor]), np.split(values, [100]), strict=True):
        assert np.array_equal(part.array(), wanted)
    (stack,) = Stack(2).apply([tensor, permuted])
    assert np.array_equal(stack.array(), np.stack((values, values[list(order)])))
