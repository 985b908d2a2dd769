"""Codes of the block formats of spring 2023 in today's: one by one the same, their scales rounded to f16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.decoding import gather, gather_joined, number_from_bits
from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.recode import Recoded, Rounding, recode, recoding
from bestiary.tensor import BlockTensor
from bestiary_plugins.encodings import (
    ENCODINGS,
    K_QUANTS,
    OF_SPRING_2023,
    Q4_0,
    Q4_1,
    Q4_2,
    Q4_3,
    Q5_0,
    Q5_1,
    Q8_0,
)

TODAY = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
HELD_BY = {"q4_0_v1": (Q4_0, Q5_0, Q8_0), "q4_0_v2": (Q4_0, Q5_0, Q8_0), "q4_1_v1": (Q4_1, Q5_1),
           "q4_1_v2": (Q4_1, Q5_1), "q4_2": (), "q4_3": (), "q5_0_v1": (Q5_0, Q8_0), "q5_1_v1": (Q5_1,),
           "q8_0_v1": (Q8_0,), "q4_0": (Q4_0, Q5_0, Q8_0), "q4_1": (Q4_1, Q5_1), "q5_0": (Q5_0, Q8_0),
           "q5_1": (Q5_1,), "q8_0": (Q8_0,)}
PAIRS = [(ENCODINGS[name], target) for name, targets in HELD_BY.items() for target in targets]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 1e-8, 6.1e-5, 3e-5, 65504.0, -65504.0, 65519.0, 2.0 ** -24, 2.0 ** -25,
           1e-40, 0.1, -0.3, 1 / 3, float("inf"), float("-inf"), float("nan")]
columns, count = 64, 3


def layout_of(encoding: Encoding) -> Layout:
    assert encoding.layout is not None
    return encoding.layout


def factors(encoding: Encoding) -> list[Factor]:
    layout = layout_of(encoding)
    return [factor for factor in (layout.scale, layout.minimum) if factor is not None]


def codes(encoding: Encoding, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The integers that the codes mean, by the slow twin."""
    layout = layout_of(encoding)
    return gather_joined([rows], layout.codes, columns, layout.signed).astype(np.int64) - layout.offset


def numbers(encoding: Encoding, rows: NDArray[np.uint8], factor: Factor) -> NDArray[np.float32]:
    return number_from_bits(gather([rows], factor.at, columns // layout_of(encoding).group), factor.number)


def with_numbers(encoding: Encoding, rows: NDArray[np.uint8], values: list[float]) -> NDArray[np.uint8]:
    """The rows with these scales and minimums, in turn: all of ours stand at the beginning of their blocks."""
    kinds = [np.dtype(np.float32 if factor.number == "f32" else np.float16) for factor in factors(encoding)]
    blocks = rows.copy().reshape(-1, encoding.block_bytes[0])
    turn = iter(values * (2 * len(blocks)))
    for block in blocks:
        at = 0
        for kind in kinds:
            with np.errstate(over="ignore"):
                block[at:at + kind.itemsize] = np.array([next(turn)]).astype(kind).view(np.uint8)
            at += kind.itemsize
    return blocks.reshape(rows.shape)


def some_rows(encoding: Encoding, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, encoding.row_bytes(columns)), np.uint8)


def same(one: NDArray[np.float32], two: NDArray[np.float32]) -> None:
    """To the bit, but for what a NaN holds."""
    np.testing.assert_array_equal(one, two)
    real = ~np.isnan(one)
    np.testing.assert_array_equal(np.signbit(one)[real], np.signbit(two)[real])


@pytest.mark.parametrize("name", HELD_BY)
def test_a_format_is_held_by_those_that_have_room_for_its_codes_and_groups(name: str) -> None:
    found = tuple(target for target in TODAY if recoding(ENCODINGS[name], target, columns))
    assert found == HELD_BY[name]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), scales=st.lists(st.one_of(
    st.sampled_from(SPECIAL), st.floats(-65504, 65504, width=32, allow_subnormal=True)), min_size=1, max_size=12))
@pytest.mark.parametrize("source, target", PAIRS, ids=lambda encoding: encoding.name)
def test_codes_are_the_same_and_scales_are_rounded_to_nearest(source: Encoding, target: Encoding, seed: int,
                                                              scales: list[float]) -> None:
    rows = with_numbers(source, some_rows(source, seed), scales)
    how = recoding(source, target, columns)
    assert how is not None
    made, rounded = recode(how, rows)
    assert made.shape == (count, target.row_bytes(columns)) and made.dtype == np.uint8
    np.testing.assert_array_equal(codes(target, made), codes(source, rows))
    exact = True
    for here, there in zip(factors(source), factors(target), strict=True):
        given = numbers(source, rows, here)
        wanted = given.astype(np.float16).astype(np.float32)
        same(numbers(target, made, there), wanted)
        exact &= np.array_equal(given, wanted, equal_nan=True)
    assert len(rounded) == sum(here.number == "f32" for here in factors(source))
    with np.errstate(invalid="ignore", over="ignore"):
        if exact:
            same(target.decode(made, columns), source.decode(rows, columns))


@pytest.mark.parametrize("source, target", PAIRS, ids=lambda encoding: encoding.name)
def test_every_byte_of_codes_is_carried_over(source: Encoding, target: Encoding) -> None:
    """All 256 of them, at every place of a block."""
    size = source.block_bytes[0]
    rows = np.repeat(np.arange(256, dtype=np.uint8), 2 * size).reshape(256, 2 * size)
    rows = with_numbers(source, rows, [0.5, -0.25])
    how = recoding(source, target, columns)
    assert how is not None
    np.testing.assert_array_equal(codes(target, recode(how, rows)[0]), codes(source, rows))
    same(target.decode(recode(how, rows)[0], columns), source.decode(rows, columns))


def tensor(source: Encoding, target: Encoding, scales: list[float], rounding: Rounding | None = None) -> Recoded:
    base = BlockTensor(with_numbers(source, some_rows(source, 5), scales), (count, columns), source)
    how = recoding(source, target, columns)
    assert how is not None
    return Recoded(base, how, "blk.0.x.weight", rounding or Rounding())


def test_rows_may_be_read_in_any_order_and_are_counted_once() -> None:
    rounding = Rounding()
    made = tensor(ENCODINGS["q4_1_v1"], Q4_1, [0.1, 0.5, 1 / 3], rounding)
    with ThreadPoolExecutor(3) as pool:
        rows = list(pool.map(lambda i: made.read(i, i + 1), [2, 0, 1, 2, 0]))
    np.testing.assert_array_equal(np.concatenate([rows[1], rows[2], rows[0]]), made.read(0, count))
    assert (rounding.numbers, rounding.changed, rounding.vanished) == (12, 8, 0)
    shares = [abs(float(np.float16(np.float32(x))) / float(np.float32(x)) - 1) for x in (0.1, 1 / 3)]
    assert rounding.largest == pytest.approx(max(shares), rel=1e-9)
    assert str(rounding) == "8 of 12 scales and minimums were rounded, by at most 0.024 %"


def test_scales_that_f16_holds_are_said_to_be_what_they_were() -> None:
    rounding = Rounding()
    tensor(ENCODINGS["q4_0_v2"], Q4_0, [0.5, -0.0], rounding).read(0, count)
    assert str(rounding) == "all 6 scales and minimums are what they were"


def test_a_scale_beyond_f16_is_refused_by_the_tensor_and_its_value() -> None:
    with pytest.raises(BestiaryError, match="tensor blk.0.x.weight: .* of 70000 is beyond .* 65504; --outtype f32"):
        tensor(ENCODINGS["q8_0_v1"], Q8_0, [1.0, 70000.0]).read(0, count)


def test_a_scale_that_becomes_zero_is_counted_where_its_weights_are_nothing_beside_others() -> None:
    rounding = Rounding()
    tensor(ENCODINGS["q4_0_v1"], Q4_0, [1e-9, 0.5], rounding).read(0, count)
    assert (rounding.changed, rounding.vanished, rounding.largest) == (3, 3, 0)
    assert str(rounding).endswith("; 3 others were too small and are 0 now")


def test_a_tensor_whose_scales_are_all_too_small_is_refused_with_its_last_rows() -> None:
    made = tensor(ENCODINGS["q4_0_v1"], Q4_0, [1e-9, -3e-9])
    made.read(0, 1)
    made.read(2, 3)
    with pytest.raises(BestiaryError, match=r"blk.0.x.weight: .*at most 3e-09, are too small .*q4_0.*--outtype f32"):
        made.read(1, 2)


def scaled(group: int, number: str = "f16", **others: object) -> Encoding:
    """16 codes of 4 bits in a block, in as many groups as it takes."""
    size, each = (2, 16) if number != "f32" else (4, 32)
    scales = tuple(each * i for i in range(16 // group))
    bytes_ = size * (16 // group) + 8
    layout = Layout((Bits(4, tuple(8 * (bytes_ - 8) + 4 * i for i in range(16)), 8 * bytes_),), group,
                    Factor(number, Bits(each, scales, 8 * bytes_)), **others)  # type: ignore[arg-type]
    return Encoding(f"of{group}{number}", 16, (bytes_,), layout)


def test_a_scale_is_repeated_where_its_group_becomes_several() -> None:
    how = recoding(scaled(8), scaled(4), 32)
    assert how is not None
    rows = np.random.default_rng(2).integers(0, 128, (4, scaled(8).row_bytes(32)), np.uint8)
    rows[:, 1::12] &= 0x3F  # neither infinite nor no number
    rows[:, 3::12] &= 0x3F
    same(scaled(4).decode(recode(how, rows)[0], 32), scaled(8).decode(rows, 32))
    assert recoding(scaled(4), scaled(8), 32) is None


def test_a_minimum_that_is_added_becomes_one_that_is_taken_away() -> None:
    def with_minimum(sign: int) -> Encoding:
        layout = Layout((Bits(4, (32, 36), 40),), 2, Factor("f16", Bits(16, (0,), 40)),
                        minimum=Factor("f16", Bits(16, (16,), 40)), minimum_sign=sign)
        return Encoding(f"sign{sign}", 2, (5,), layout)

    how = recoding(with_minimum(1), with_minimum(-1), 4)
    assert how is not None
    rows = np.array([[0, 60, 0, 192, 33, 0, 56, 0, 66, 255]], np.uint8)
    made = recode(how, rows)[0]
    assert not np.array_equal(made, rows)
    same(with_minimum(-1).decode(made, 4), with_minimum(1).decode(rows, 4))


@pytest.mark.parametrize("target", [
    scaled(16, offset=8), scaled(16, signed=True), scaled(16, codebook=tuple(range(16))), scaled(16, "bf16"),
    scaled(16, zero=(Bits(4, (0,), 80),)), scaled(16, minimum=Factor("f16", Bits(16, (0,), 80))), ENCODINGS["f16"],
    Encoding("own", 16, (10,), scaled(16).layout, decoder=lambda rows, columns: np.zeros((1, 1), np.float32))])
def test_what_computes_a_weight_in_another_way_holds_no_codes(target: Encoding) -> None:
    assert recoding(scaled(16), scaled(16, "f32"), 32) is not None
    assert recoding(scaled(16), target, 32) is None


@pytest.mark.parametrize("source", K_QUANTS, ids=lambda encoding: encoding.name)
def test_scales_that_are_products_are_left_to_who_knows_them(source: Encoding) -> None:
    assert not any(recoding(source, target, 256) or recoding(target, source, 256) for target in TODAY)


def test_rows_that_the_blocks_do_not_divide_are_not_recoded() -> None:
    assert recoding(ENCODINGS["q4_0_v1"], Q4_0, 48) is None
    assert all(recoding(source, source, 64) for source in OF_SPRING_2023)
    assert not any(recoding(source, target, 64) for source in (Q4_2, Q4_3) for target in TODAY)
