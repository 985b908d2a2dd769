"""Scales of f32 that are f16 numbers are held as those: fewer bytes a token, and the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bestiary.encoding import Encoding
from bestiary.tensor import BlockTensor, Tensor
from bestiary_plugins.backends import cpu_pack
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.cpu_halves import Wider, halved, to_halves
from bestiary_plugins.encodings import (
    ENCODINGS,
    Q4_0,
    Q4_0_V1,
    Q4_0_V2,
    Q4_1,
    Q4_1_V1,
    Q4_1_V2,
    Q8_0,
    Q8_0_V1,
)
from bestiary_plugins.loaders.quantized.rows import IntegerRows
from tests.blocks import blocks

if TYPE_CHECKING:
    from tests.backends.conftest import Floats, Lab

WIDE = {Q4_0_V1: Q4_0, Q4_0_V2: Q4_0, Q4_1_V1: Q4_1, Q4_1_V2: Q4_1, Q8_0_V1: Q8_0}
"""Each with what it would be with f16."""
each = pytest.mark.parametrize(("encoding", "half"), WIDE.items(), ids=lambda encoding: str(encoding.name))


def tensor_of(encoding: Encoding, rows: int = 70, columns: int = 160) -> tuple[BlockTensor, Any]:
    """Every scale and minimum an f16 number, edges among them; and the numbers, (rows * blocks, 1 or 2), to change."""
    data = np.array(blocks(encoding, rows, columns).read(0, rows))
    layout = encoding.layout
    assert layout is not None
    numbers = data.reshape(-1, encoding.block_bytes[0])[:, :8 if layout.minimum else 4].view("<f4")
    numbers[...] = numbers.astype(np.float16)
    numbers[:4, 0] = [-0.0, 2.0 ** -24, -65504, 0]
    return BlockTensor(data, (rows, columns), encoding), numbers


def results(lab: Lab, weight: Tensor, wide: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Floats]:
    """Bytes that the matrix takes, and products with it: of one token, a few, and many."""
    with monkeypatch.context() as patch:
        if wide:
            patch.setattr(cpu_pack, "fewest", lambda tensor: tensor.encoding)
        rows = np.random.default_rng(1).standard_normal((40, weight.columns)).astype(np.float32)
        plan = CpuBackend().compile(*lab.single(weight, rows), lab.limits())
        products = [plan.forward(lab.batch(range(count)), plan.new_cache()) for count in (1, 5, 40)]
    return plan.weights.matrices["weight"].nbytes, np.concatenate(products)


@each
def test_where_every_number_is_one_of_f16_a_matrix_takes_the_bytes_of_f16_and_gives_the_same_bits(
        lab: Lab, monkeypatch: pytest.MonkeyPatch, encoding: Encoding, half: Encoding) -> None:
    tensor, numbers = tensor_of(encoding)
    before = numbers.copy()
    (small, got), (large, expected) = (results(lab, tensor, wide, monkeypatch) for wide in (False, True))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert (small, large) == (80 * half.row_bytes(160), 80 * encoding.row_bytes(160))
    np.testing.assert_array_equal(numbers, before)  # what was read is another's


@each
@pytest.mark.parametrize("value", [1 + 2.0 ** -11, 1e5, 2.0 ** -25, 1e-30, np.nan])
@pytest.mark.parametrize("row", [0, 15, 16, 69])
def test_one_number_that_is_none_keeps_the_matrix_in_f32(lab: Lab, monkeypatch: pytest.MonkeyPatch, encoding: Encoding,
                                                         half: Encoding, value: float, row: int) -> None:
    tensor, numbers = tensor_of(encoding)
    numbers.reshape(70, 5, -1)[row, 3, -1] = value
    (size, got), (large, expected) = (results(lab, tensor, wide, monkeypatch) for wide in (False, True))
    np.testing.assert_array_equal(got, expected)
    assert size == large == 80 * encoding.row_bytes(160)


def planar(bits: int, span: int, zero: bool, odd: float | None = None) -> BlockTensor:
    """70 rows of 512 integers with bf16 scales, as quantized folders have them; odd: one of the scales."""
    rng, groups = np.random.default_rng(bits), 512 // span
    layout = IntegerRows(bits, 512, span, "bf16", zero)
    values = rng.uniform(0.01, 0.02, (70, groups)).astype(np.float32) * rng.choice([1, -1, 2.0 ** -8], (70, groups))
    values[:2, 0] = 0, 2.0 ** -17
    if odd is not None:
        values[40, -1] = odd
    scales = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)[:, :, None].view(np.uint8)
    zeros = rng.integers(0, 1 << bits, (70, groups)).astype(np.uint8) if zero else None
    stream = rng.integers(0, 256, (70, 512 * bits // 8)).astype(np.uint8)
    return BlockTensor(layout.fill(stream, scales, zeros), (70, 512), layout.encoding)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("bits", "span", "held", "held_with_zeros"), [
    (4, 32, 4.5, 5.25), (4, 64, 4.25, 4.75), (4, 128, 4.125, 4.5), (8, 128, 8.125, 8.75), (3, 64, 3.25, 3.75)])
def test_scales_of_bf16_are_held_as_f16_where_they_are_such_numbers(
        lab: Lab, monkeypatch: pytest.MonkeyPatch, bits: int, span: int, held: float, held_with_zeros: float,
        zero: bool) -> None:
    tensor = planar(bits, span, zero)
    (small, got), (large, expected) = (results(lab, tensor, wide, monkeypatch) for wide in (False, True))
    if zero:  # pairs of integers are multiplied in another order
        np.testing.assert_allclose(got, expected, 0, 1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert (8 * small / 80 / 512, small < large) == (held_with_zeros if zero else held, True)
    one = planar(bits, span, zero, 2.0 ** -30)
    (size, got), (large, expected) = (results(lab, one, wide, monkeypatch) for wide in (False, True))
    np.testing.assert_array_equal(got, expected)
    assert size == large


def test_a_piece_that_does_not_fit_has_its_whole_matrix_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the same model stay small."""
    monkeypatch.setattr(cpu_pack, "CHUNK_BYTES", 1)  # sixteen rows at a time
    tensor, numbers = tensor_of(Q4_0_V1)
    _, expected = results(lab, BlockTensor(np.array(tensor.read(0, 70)), (70, 160), Q4_0_V1), True, monkeypatch)
    numbers.reshape(70, 5)[40, 1] *= np.float32(1 + 1e-6)
    rows = np.random.default_rng(1).standard_normal((9, 160)).astype(np.float32)
    graph, tensors = lab.single(tensor, rows)
    seen: list[tuple[int, int, str]] = []
    plan = CpuBackend().compile(graph, tensors, lab.limits(threads=3), progress=lambda *given: seen.append(given))
    assert plan.weights.matrices["weight"].nbytes == 80 * 100
    got = plan.forward(lab.batch(range(9)), plan.new_cache())
    np.testing.assert_array_equal(got[:1, :40], expected[:1, :40])
    np.testing.assert_allclose(got[:, 40], rows @ tensor.array()[40], rtol=0.05, atol=0.05 * np.abs(got[:, 40]).max())
    assert seen[-1][0] == seen[-1][1] and [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_only_whole_f32_numbers_are_halved() -> None:
    assert {encoding.name for encoding in ENCODINGS.values() if halved(encoding)} == {one.name for one in WIDE}


def test_plain_numbers_are_not_halved() -> None:
    with pytest.raises(Wider):
        to_halves(np.zeros((1, 4), np.uint8), ENCODINGS["f32"], 1)
