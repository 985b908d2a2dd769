"""AWQ folders, packed here as the format is described."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders import quantized_folders as folders
from tests.loaders.quantized_folders import Pack, Packed, plain

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each nibble is, from the lowest."""
SECTION: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm",
                           "modules_to_not_convert": None}


def words(codes: NDArray[Any]) -> NDArray[np.int32]:
    """(rows, outputs) -> (rows, outputs / 8)."""
    grouped = codes.astype(np.uint32).reshape(len(codes), -1, 8)
    packed = np.zeros(grouped.shape[:2], np.uint32)
    for nibble, output in enumerate(PLACES):
        packed |= grouped[:, :, output] << np.uint32(4 * nibble)
    return packed.view(np.int32)


def packer(group: int = 64, number: Any = np.float16, zero: bool = True) -> Pack:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        size = inputs if group == -1 else group
        codes = rng.integers(0, 16, (inputs, outputs))
        zeros = rng.integers(0, 16, (inputs // size, outputs)) if zero else np.full((inputs // size, outputs), 8)
        scales = rng.uniform(0.005, 0.015, zeros.shape).astype(number)
        values = scales.repeat(size, 0).astype(np.float32) * (codes - zeros.repeat(size, 0)).astype(np.float32)
        return Packed({".qweight": plain(words(codes)), ".qzeros": plain(words(zeros)), ".scales": plain(scales)},
                      np.ascontiguousarray(values.T))
    return pack


@pytest.mark.parametrize("group", [16, 32, 64, 128, -1])
def test_weights_are_what_the_format_says(tmp_path: Path, host: Host, group: int) -> None:
    made = folders.write(tmp_path, packer(group), {**SECTION, "group_size": group})
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_logits_are_those_of_the_plain_weights(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture,
                                               group: int) -> None:
    made = folders.write(tmp_path, packer(group), {**SECTION, "group_size": group, "version": "GEMM"})
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


def test_the_settings_of_its_authors_own_program_are_read(tmp_path: Path, host: Host) -> None:
    made = folders.write(tmp_path, packer(128), None)
    (made.quantized / "quant_config.json").write_text(
        json.dumps({"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}))
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("group", [32, 128])
def test_groups_without_zeros_are_ours(tmp_path: Path, host: Host, group: int) -> None:
    said = {**SECTION, "group_size": group, "zero_point": False}
    made = folders.write(tmp_path, packer(group, zero=False), said)
    checkpoint = host.open(made.quantized)
    folders.check_values(checkpoint, made.values)
    assert {checkpoint.tensors[name].encoding.name for name in made.values} == {"q4_0"}
    other = folders.write(tmp_path / "other", packer(group), said)
    with pytest.raises(BestiaryError, match="zero_point = false asks for zeros of 8, and qzeros holds"):
        host.open(other.quantized).tensors[f"{folders.LAYER}mlp.up_proj.weight"].array()


@pytest.mark.parametrize(("changed", "said"), [
    ({"bits": 3}, "bits = 3 is not read; known: 4"),
    ({"version": "gemv"}, "version = 'gemv' is not read; known: gemm"),
    ({"version": 1}, "version = 1 is not read"),
    ({"zero_point": 0}, "zero_point = 0 is not read; known: True, False"),
    ({"checkpoint_format": "gemv_fast"}, "checkpoint_format = 'gemv_fast' is not read; known: gemm"),
    ({"group_size": 20}, "group_size = 20; it must be -1 or a multiple of 8"),
    ({"group_size": 32}, r"scales has the shape \[2, 128\]; .*group_size = 32 asks for \[4, 128\]"),
])
def test_settings_that_are_not_read_or_do_not_fit_are_refused(tmp_path: Path, host: Host, changed: dict[str, Any],
                                                              said: str) -> None:
    made = folders.write(tmp_path, packer(), {**SECTION, **changed})
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)


@pytest.mark.parametrize(("part", "changed", "said"), [
    (".qzeros", None, "qzeros is missing"),
    (".qzeros", np.zeros((2, 15), np.int32), "qzeros has the shape"),
    (".scales", np.zeros((2, 15), np.float16), "scales has the shape"),
    (".qweight", np.zeros((126, 16), np.int32), "a multiple of 8 inputs is read"),
])
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, host: Host, part: str, changed: NDArray[Any] | None,
                                           said: str) -> None:
    made = folders.write(tmp_path, folders.with_part(packer(), part, changed), SECTION)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)
