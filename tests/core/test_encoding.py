"""Encodings: any block format described as data decodes to what its own reference gives."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.decoding import from_bf16, to_bf16
from bestiary.encoding import BF16, F16, F32, PLAIN, Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.tensor import encode_plain

Bytes = NDArray[np.uint8]


def evenly(width: int, count: int, size: int, first: int = 0, step: int = 8) -> Bits:
    """`count` fields of a block of `size` bytes, `step` bits apart."""
    return Bits(width, tuple(first + step * i for i in range(count)), 8 * size)


def repeated(offset: int, width: int, groups: int, size: int) -> Bits:
    """One number that serves every group of a block."""
    return Bits(width, (offset,) * groups, 8 * size)


def halves(first: int, size: int, count: int = 32) -> Bits:
    """Nibbles: the low ones of all bytes, then the high ones."""
    return Bits(4, tuple(first + 8 * (i % (count // 2)) + 4 * (i // (count // 2)) for i in range(count)), 8 * size)


def nibbles_of_k(first: int, size: int) -> Bits:
    """256 nibbles in runs of 64: 32 low ones, then 32 high ones of the same bytes."""
    return Bits(4, tuple(first + 256 * (i // 64) + 8 * (i % 32) + 4 * (i % 64 // 32) for i in range(256)), 8 * size)


def pairs_of_k(first: int, size: int) -> Bits:
    """256 fields of two bits in runs of 128: bits 0-1 of 32 bytes, then bits 2-3, and so on."""
    return Bits(2, tuple(first + 256 * (i // 128) + 8 * (i % 32) + 2 * (i % 128 // 32) for i in range(256)), 8 * size)


def single_bits_of_k(first: int, size: int) -> Bits:
    """256 single bits: bit 0 of 32 bytes, then bit 1, and so on."""
    return Bits(1, tuple(first + 8 * (i % 32) + i // 32 for i in range(256)), 8 * size)


def scales_of_k(first: int, size: int) -> tuple[Bits, Bits]:
    """The eight 6-bit scales of q4_k and q5_k: four whole, four in two pieces."""
    low = tuple(first + 8 * i for i in range(4)) + tuple(first + 64 + 8 * i for i in range(4))
    high = tuple(first + 8 * i + 4 for i in range(4)) + tuple(first + 8 * i + 6 for i in range(4))
    return Bits(4, low, 8 * size), Bits(2, high, 8 * size)


def minimums_of_k(first: int, size: int) -> tuple[Bits, Bits]:
    low = tuple(first + 32 + 8 * i for i in range(4)) + tuple(first + 64 + 4 + 8 * i for i in range(4))
    high = tuple(first + 32 + 8 * i + 4 for i in range(4)) + tuple(first + 32 + 8 * i + 6 for i in range(4))
    return Bits(4, low, 8 * size), Bits(2, high, 8 * size)


def scales_of_q3(first: int, size: int) -> tuple[Bits, Bits]:
    low = tuple(first + 8 * (i % 8) + 4 * (i // 8) for i in range(16))
    high = tuple(first + 64 + 8 * (i % 4) + 2 * (i // 4) for i in range(16))
    return Bits(4, low, 8 * size), Bits(2, high, 8 * size)


NL = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

# Each: block size, block bytes, where its f16 numbers stand (so that tests can keep them finite), its layout.
BLOCKS: dict[str, tuple[int, int, tuple[int, ...], Layout]] = {
    "Q4_0": (32, 18, (0,), Layout((halves(16, 18),), 32, Factor("f16", evenly(16, 1, 18)), offset=8)),
    "Q4_1": (32, 20, (0, 2), Layout((halves(32, 20),), 32, Factor("f16", evenly(16, 1, 20)),
                                    minimum=Factor("f16", evenly(16, 1, 20, 16)))),
    "Q5_0": (32, 22, (0,), Layout((halves(48, 22), evenly(1, 32, 22, 16, 1)), 32, Factor("f16", evenly(16, 1, 22)),
                                  offset=16)),
    "Q5_1": (32, 24, (0, 2), Layout((halves(64, 24), evenly(1, 32, 24, 32, 1)), 32, Factor("f16", evenly(16, 1, 24)),
                                    minimum=Factor("f16", evenly(16, 1, 24, 16)))),
    "Q8_0": (32, 34, (0,), Layout((evenly(8, 32, 34, 16),), 32, Factor("f16", evenly(16, 1, 34)), signed=True)),
    "Q2_K": (256, 84, (80, 82), Layout(
        (pairs_of_k(128, 84),), 16, Factor("f16", repeated(640, 16, 16, 84), (evenly(4, 16, 84),)),
        minimum=Factor("f16", repeated(656, 16, 16, 84), (evenly(4, 16, 84, 4),)), minimum_sign=-1)),
    "Q3_K": (256, 110, (108,), Layout(
        (pairs_of_k(256, 110), single_bits_of_k(0, 110)), 16,
        Factor("f16", repeated(864, 16, 16, 110), scales_of_q3(768, 110), bias=-32), offset=4)),
    "Q4_K": (256, 144, (0, 2), Layout(
        (nibbles_of_k(128, 144),), 32, Factor("f16", repeated(0, 16, 8, 144), scales_of_k(32, 144)),
        minimum=Factor("f16", repeated(16, 16, 8, 144), minimums_of_k(32, 144)), minimum_sign=-1)),
    "Q5_K": (256, 176, (0, 2), Layout(
        (nibbles_of_k(384, 176), single_bits_of_k(128, 176)), 32,
        Factor("f16", repeated(0, 16, 8, 176), scales_of_k(32, 176)),
        minimum=Factor("f16", repeated(16, 16, 8, 176), minimums_of_k(32, 176)), minimum_sign=-1)),
    "Q6_K": (256, 210, (208,), Layout(
        (Bits(4, tuple(512 * (i // 128) + 8 * (i % 64) + 4 * (i % 128 // 64) for i in range(256)), 8 * 210),
         pairs_of_k(1024, 210)), 16,
        Factor("f16", repeated(1664, 16, 16, 210), (evenly(8, 16, 210, 1536),), signed=True), offset=32)),
    "IQ4_NL": (32, 18, (0,), Layout((halves(16, 18),), 32, Factor("f16", evenly(16, 1, 18)), codebook=NL)),
    "IQ4_XS": (256, 136, (0,), Layout(
        (Bits(4, tuple(64 + 128 * (i // 32) + 8 * (i % 16) + 4 * (i % 32 // 16) for i in range(256)), 8 * 136),), 32,
        Factor("f16", repeated(0, 16, 8, 136), (evenly(4, 8, 136, 32, 4), evenly(2, 8, 136, 16, 2)), bias=-32),
        codebook=NL)),
    "MXFP4": (32, 17, (), Layout((halves(8, 17),), 32, Factor("e8m0", evenly(8, 1, 17)),
                                 codebook=(*E2M1, *(0.0 - value for value in E2M1)))),
}


def described(name: str) -> Encoding:
    size, count, _, layout = BLOCKS[name]
    return Encoding(name.lower(), size, (count,), layout)


def random_rows(name: str, rows: int, blocks: int, seed: int) -> Bytes:
    """Random bytes whose f16 numbers are finite."""
    random = np.random.default_rng(seed)
    _, count, numbers, _ = BLOCKS[name]
    data = random.integers(0, 256, (rows, blocks, count), dtype=np.uint8)
    for place in numbers:
        values = (random.standard_normal((rows, blocks, 1)) * 10.0 ** random.integers(-6, 3)).astype(np.float16)
        data[:, :, place:place + 2] = values.view(np.uint8)
    if name == "MXFP4":
        data[:, :, 0] = np.minimum(data[:, :, 0], 250)  # beyond it the weights exceed f32
    return data.reshape(rows, blocks * count)


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_a_layout_decodes_to_the_bits_of_the_reference(name: str, rows: int, blocks: int, seed: int) -> None:
    data = random_rows(name, rows, blocks, seed)
    encoding = described(name)
    ours = encoding.decode(data, blocks * encoding.block_size)
    theirs = dequantize(data, gguf.GGMLQuantizationType[name])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_layout_reads_every_bit_of_its_block(name: str) -> None:
    """Else two blocks that differ would be taken for the same."""
    size, count, _, layout = BLOCKS[name]
    factors = [layout.scale, *([layout.minimum] if layout.minimum else [])]
    per_group = [field for factor in factors for field in (factor.at, *factor.integer)]
    read = {offset + bit for field in (*layout.codes, *layout.zero, *per_group)
            for offset in field.offsets for bit in range(field.width)}
    assert read == set(range(8 * count))
    assert all(len(field.offsets) in (1, size // layout.group) for field in per_group)


def test_two_planes_decode_like_the_plain_formula() -> None:
    """NF4: the high nibble first, a codebook, and the largest magnitudes of groups of 64 in a plane of their own."""
    random = np.random.default_rng(1)
    book = np.sort(random.uniform(-1, 1, 16)).astype(np.float32)
    encoding = Encoding("nf4", 64, (32, 4), Layout(
        (Bits(4, (4, 0), 8),), 64, Factor("f32", Bits(32, (0,), 32, plane=1)), codebook=tuple(map(float, book))))
    codes = random.integers(0, 16, (3, 192), dtype=np.uint8)
    scales = random.uniform(0.1, 3, (3, 3)).astype(np.float32)
    rows = np.concatenate([codes[:, ::2] << 4 | codes[:, 1::2], scales.view(np.uint8)], axis=1)
    assert encoding.plane_bytes(192) == (96, 12)
    np.testing.assert_array_equal(encoding.decode(rows, 192), book[codes] * np.repeat(scales, 64, axis=1))


def test_integer_zeros_and_whole_row_scales_decode_like_the_plain_formula() -> None:
    random = np.random.default_rng(2)
    columns, rows = 64, 3
    codes = random.integers(0, 16, (rows, columns), dtype=np.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << 4

    zeros = random.integers(0, 16, (rows, columns // 16), dtype=np.uint8)
    scales = random.uniform(0.1, 3, (rows, columns // 16)).astype(np.float16)
    grouped = Encoding("zeros", 32, (16, 1, 4), Layout(
        (Bits(4, (0,), 4),), 16, Factor("f16", Bits(16, (0,), 16, plane=2)), zero=(Bits(4, (0,), 4, plane=1),),
        zero_bias=1))
    data = np.concatenate([packed, zeros[:, ::2] | zeros[:, 1::2] << 4, scales.view(np.uint8)], axis=1)
    wanted = (codes.astype(np.float32) - (np.repeat(zeros, 16, axis=1).astype(np.float32) + 1)
              ) * np.repeat(scales, 16, axis=1).astype(np.float32)
    np.testing.assert_array_equal(grouped.decode(data, columns), wanted)

    whole = Encoding("row", columns, (columns // 2, 2), Layout(
        (Bits(4, (0,), 4),), 0, Factor("bf16", Bits(16, (0,), 16, plane=1)), signed=True))
    row_scales = to_bf16(random.uniform(0.1, 3, (rows, 1)).astype(np.float32))
    signed = np.where(codes > 7, codes.astype(np.int32) - 16, codes).astype(np.float32)
    data = np.concatenate([packed, row_scales.view(np.uint8)], axis=1)
    np.testing.assert_array_equal(whole.decode(data, columns), signed * from_bf16(row_scales))


def test_infinite_scales_decode_without_a_warning() -> None:
    data = random_rows("Q4_0", 1, 1, 0)
    data[0, :2] = np.array([np.inf], np.float16).view(np.uint8)
    assert not np.isfinite(described("Q4_0").decode(data, 32)).all()


def test_fields_outside_of_the_row_are_an_error() -> None:
    encoding = Encoding("wild", 32, (18,), Layout((evenly(4, 32, 18, 16, 5),), 32, Factor("f16", evenly(16, 1, 18))))
    with pytest.raises(BestiaryError, match="outside of a row of 18 bytes"):
        encoding.decode(np.zeros((1, 18), np.uint8), 32)


def test_rows_that_blocks_do_not_divide_and_bytes_that_are_no_whole_rows_are_errors() -> None:
    encoding = described("Q4_K")
    assert not encoding.fits(300)
    with pytest.raises(BestiaryError, match="q4_k holds blocks of 256 weights; a row of 300"):
        encoding.row_bytes(300)
    for data in (np.zeros((1, 143), np.uint8), np.zeros(144, np.uint8)):
        with pytest.raises(BestiaryError, match="a row of 256 weights is 144 bytes"):
            encoding.decode(data, 256)


def test_an_encoding_with_neither_layout_nor_decoder_says_so_and_a_decoder_is_used_as_given() -> None:
    with pytest.raises(BestiaryError, match="neither a layout nor a decoder"):
        Encoding("mute", 1, (1,)).decode(np.zeros((1, 4), np.uint8), 4)
    own = Encoding("bytes", 1, (1,), decoder=lambda rows, columns: rows.astype(np.float32) * np.float32(0.5))
    np.testing.assert_array_equal(own.decode(np.array([[1, 2, 3]], np.uint8), 3), [[0.5, 1, 1.5]])


def test_bits_per_weight_counts_every_plane() -> None:
    assert described("Q4_0").bits_per_weight == 4.5
    assert described("Q6_K").bits_per_weight == 6.5625
    assert Encoding("two", 64, (32, 4)).bits_per_weight == 4.5
    assert [encoding.bits_per_weight for encoding in (F32, F16, BF16)] == [32, 16, 16]


@pytest.mark.parametrize("encoding", [*PLAIN.values(), *(described(name) for name in BLOCKS)], ids=lambda e: e.name)
def test_encodings_pickle_and_compare_by_value(encoding: Encoding) -> None:
    assert pickle.loads(pickle.dumps(encoding)) == encoding
    assert hash(pickle.loads(pickle.dumps(encoding))) == hash(encoding)
    assert encoding.quantized == (encoding.name not in PLAIN)


def bf16_by_candidates(value: np.float32) -> int:
    """The nearer of the two bfloat16 numbers around a finite value; the even one where both are as near."""
    low = int(np.array(value).view(np.uint32)) >> 16
    numbers = [float(from_bf16(np.array([code], np.uint16))[0]) for code in (low, low + 1)]
    # Beyond the largest number stands 2 ** 128 for rounding, as IEEE 754 says.
    numbers = [math.copysign(2.0 ** 128, value) if np.isinf(number) else number for number in numbers]
    errors = [abs(float(value) - number) for number in numbers]
    if errors[0] == errors[1]:
        return low + low % 2
    return low + int(errors[1] < errors[0])


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 1.00390625, 1.01171875, 3.4e38, -3.4e38, 3.3961776e38, 1e-40, -1e-45, 65504.0,
                    6.1e-5, 1.17549435e-38], np.float32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_bf16_rounds_to_the_nearest_and_ties_to_even(numbers: list[float]) -> None:
    values = np.concatenate([np.array(numbers, np.float32), SPECIAL])
    assert to_bf16(values).tolist() == [bf16_by_candidates(value) for value in values]


def test_every_bf16_number_survives_the_way_through_f32() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    back = to_bf16(from_bf16(codes))
    nan = np.isnan(from_bf16(codes))
    np.testing.assert_array_equal(back[~nan], codes[~nan])
    np.testing.assert_array_equal(back[nan], codes[nan] | 64)  # made quiet, the sign kept
    assert np.isinf(from_bf16(to_bf16(np.array([np.inf, -np.inf], np.float32)))).all()


def one_number(number: str) -> Encoding:
    """Blocks of one weight, which is its scale."""
    width = {"f32": 32, "f16": 16, "bf16": 16, "e8m0": 8}[number]
    size = width // 8
    return Encoding(f"scale-{number}", 1, (size,), Layout(
        (Bits(1, (0,), 8 * size),), 1, Factor(number, Bits(width, (0,), 8 * size)), codebook=(1.0, 1.0)))


NUMBERS: dict[str, Callable[[], tuple[Bytes, NDArray[np.float32]]]] = {
    "f32": lambda: (SPECIAL.view(np.uint8)[None], SPECIAL),
    "f16": lambda: (np.arange(31744, dtype=np.uint16).view(np.uint8)[None],
                    np.arange(31744, dtype=np.uint16).view(np.float16).astype(np.float32)),
    "bf16": lambda: (np.arange(32640, dtype=np.uint16).view(np.uint8)[None],
                     (np.arange(32640, dtype=np.uint32) << 16).view(np.float32)),
    "e8m0": lambda: (np.arange(255, dtype=np.uint8)[None],
                     np.array([2.0 ** (code - 127) for code in range(255)], np.float32)),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_each_number_type_of_a_scale_has_its_values(number: str) -> None:
    data, wanted = NUMBERS[number]()
    np.testing.assert_array_equal(one_number(number).decode(data, len(wanted))[0], wanted)


def test_an_unknown_number_type_is_refused_by_name() -> None:
    layout = Layout((Bits(1, (0,), 8),), 1, Factor("f8", Bits(8, (0,), 8)))
    with pytest.raises(BestiaryError, match="unknown number type 'f8'; known: f32, f16, bf16, e8m0"):
        Encoding("odd", 1, (1,), layout).decode(np.zeros((1, 1), np.uint8), 1)


@pytest.mark.parametrize("encoding", PLAIN.values(), ids=lambda e: e.name)
def test_plain_encodings_keep_what_they_can_hold(encoding: Encoding) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((5, 7)).astype(np.float32)
    once = encoding.decode(encode_plain(values, encoding), 7)
    np.testing.assert_array_equal(encoding.decode(encode_plain(once, encoding), 7), once)
    np.testing.assert_allclose(once, values, rtol={"f32": 0, "f16": 2**-11, "bf16": 2**-8}[encoding.name])
    if encoding is F16:
        np.testing.assert_array_equal(once, values.astype(np.float16).astype(np.float32))
        assert np.isinf(encoding.decode(encode_plain(np.array([[1e6]], np.float32), encoding), 1)).all()


def test_only_plain_encodings_are_encoded_plainly() -> None:
    with pytest.raises(ValueError, match="q4_0 is not a plain encoding"):
        encode_plain(np.zeros((1, 32), np.float32), described("Q4_0"))
