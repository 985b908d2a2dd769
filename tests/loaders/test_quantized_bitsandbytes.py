"""bitsandbytes folders, packed here as the format is described."""

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
from tests.loaders.quantized_folders import Pack, Packed, Stored, plain

FOUR: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                        "llm_int8_skip_modules": None}
EIGHT: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
MAPS = {
    "nf4": np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                     0.7229568362236023, 1.0], np.float32),
    # a sign, two bits of exponent, one of fraction, but for the smallest; over 12
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)}


def text(value: dict[str, Any]) -> Stored:
    return plain(np.frombuffer(json.dumps(value).encode(), np.uint8))


def packer(kind: str = "nf4", block: int = 64, nested: bool = False, **said: Any) -> Pack:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        count = outputs * inputs
        codes = rng.integers(0, 16, count).astype(np.uint8)
        blocks = -(-count // block)
        state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": [outputs, inputs]}
        parts = {".weight": plain((codes[0::2] << 4 | codes[1::2]).reshape(-1, 1)),
                 ".weight.quant_map": plain(MAPS[kind])}
        if nested:
            table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            small = rng.integers(0, 256, blocks).astype(np.uint8)
            scales = rng.uniform(0.05, 0.1, -(-blocks // 256)).astype(np.float32)
            absmax = table[small] * scales.repeat(256)[:blocks] + np.float32(0.15)
            parts |= {".weight.absmax": plain(small), ".weight.nested_absmax": plain(scales),
                      ".weight.nested_quant_map": plain(table)}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(np.float32(0.15))}
        else:
            absmax = rng.uniform(0.05, 0.25, blocks).astype(np.float32)
            parts[".weight.absmax"] = plain(absmax)
        parts[f".weight.quant_state.bitsandbytes__{kind}"] = text({**state, **said})
        return Packed(parts, (MAPS[kind][codes] * absmax.repeat(block)[:count]).reshape(outputs, inputs))
    return pack


def bytes_and_scales(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
    """One scale a row, 127 times what a code's 1 means."""
    codes = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scales = rng.uniform(0.1, 0.3, outputs).astype(np.float32)
    return Packed({".weight": plain(codes), ".SCB": plain(scales), ".weight_format": plain(np.zeros((), np.uint8))},
                  codes.astype(np.float32) * (scales * (np.float32(1) / np.float32(127)))[:, None])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [64, 128, 1024, 96])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_are_what_the_format_says(tmp_path: Path, host: Host, kind: str, block: int, nested: bool) -> None:
    made = folders.write(tmp_path, packer(kind, block, nested), FOUR)
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("storage", ["I8", "F16", "BF16", "F32"])
def test_codes_may_be_stored_as_numbers(tmp_path: Path, host: Host, storage: str) -> None:
    """bnb_4bit_quant_storage, so that other programs can cut the weights into pieces as all others."""
    def stored(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = packer("nf4", 64, True)(rng, outputs, inputs)
        size = {"I8": np.int8, "F32": np.int32}.get(storage, np.int16)
        return Packed({**made.parts, ".weight": (storage, made.parts[".weight"][1].reshape(-1).view(size)[:, None])},
                      made.values)

    made = folders.write(tmp_path, stored, {**FOUR, "bnb_4bit_quant_storage": storage})
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_logits_of_four_bits_are_those_of_the_plain_weights(tmp_path: Path, host: Host, kind: str,
                                                            caplog: pytest.LogCaptureFixture) -> None:
    made = folders.write(tmp_path, packer(kind, 64, True), FOUR)
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records  # in their own bits


def test_signed_bytes_are_what_the_format_says(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    made = folders.write(tmp_path, bytes_and_scales, EIGHT)
    folders.check_values(host.open(made.quantized), made.values)
    with caplog.at_level(logging.WARNING):
        folders.check_logits(made, host)
    assert not caplog.records


@pytest.mark.parametrize(("pack", "key"), [(bytes_and_scales, "load_in_8bit"), (packer(), "load_in_4bit")])
def test_programs_of_early_2023_did_not_name_the_method(tmp_path: Path, host: Host, pack: Pack, key: str) -> None:
    made = folders.write(tmp_path, pack, {"load_in_8bit": False, "load_in_4bit": False, "llm_int8_threshold": 6.0,
                                          key: True})
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize(("pack", "said"), [
    (packer(shape=[64, 64]), r"asks for 2048 bytes"),
    (packer(shape=[1 << 40, 64]), "shape = .*must be two sizes"),
    (packer(shape="x"), "shape = 'x'; it must be two sizes"),
    (packer(blocksize=0), "blocksize = 0; it must be an integer from 8"),
    (packer(blocksize=12), "in rows and blocks of multiples of 8"),
    (packer(blocksize=32), "absmax has the shape"),
    (packer(quant_type="fp4"), "quant_type = 'fp4' is not read; known: nf4"),
    (packer(nested=True, nested_offset="much"), "nested_offset = 'much'; it must be a number"),
    (packer(nested=True, nested_blocksize=16), "nested_absmax has the shape"),
])
def test_states_that_do_not_fit_are_refused(tmp_path: Path, host: Host, pack: Pack, said: str) -> None:
    made = folders.write(tmp_path, pack, FOUR)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)


@pytest.mark.parametrize(("part", "changed", "said"), [
    (".weight.quant_map", np.linspace(-1, 1, 16, dtype=np.float32), "holds another codebook than its type has"),
    (".weight", np.zeros((8192, 1), np.float16), r"has the shape \[8192, 1\], 16384 bytes; a weight .* asks for 8192"),
    (".weight", np.zeros((2048, 1), np.int32), "weight is I32; it must be U8 or I8 or f16 or bf16 or f32"),
    (".weight.quant_map", np.zeros(8, np.float32), "quant_map has the shape"),
    (".weight.absmax", np.zeros(256, np.uint8), "absmax is U8; it must be f32"),
    (".weight", np.zeros((100, 1), np.uint8), r"weight has the shape \[100, 1\], 100 bytes; a weight .* asks for 8192"),
    (".weight.quant_state.bitsandbytes__nf4", np.zeros(5000, np.uint8), "has 5000 bytes; 4096 are the most"),
    (".weight.quant_state.bitsandbytes__nf4", np.full(50, 91, np.uint8), "cannot be read as JSON|nests too deeply"),
])
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, host: Host, part: str, changed: NDArray[Any], said: str,
                                           ) -> None:
    made = folders.write(tmp_path, folders.with_part(packer(), part, changed), FOUR)
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)


def test_signed_bytes_in_the_order_of_one_processor_are_refused(tmp_path: Path, host: Host) -> None:
    def ordered(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        made = bytes_and_scales(rng, outputs, inputs)
        return Packed({**made.parts, ".weight_format": plain(np.array(2, np.uint8))}, made.values)

    made = folders.write(tmp_path, ordered, EIGHT)
    with pytest.raises(BestiaryError, match="weight_format is 2; only 0, whole rows, is read"):
        host.open(made.quantized)
