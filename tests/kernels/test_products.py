"""Any block format that is data is packed without loss and multiplied by one exact formula, on every isa."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.encoding import BF16, F16, F32, Bits, Encoding, Factor, Layout
from bestiary.graph import Trace
from bestiary.tensor import ArrayTensor, BlockTensor
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.cpu_pack import why_not
from bestiary_plugins.encodings import ENCODINGS, IQ4_XS, K_QUANTS, MXFP4, OF_TWO_BITS, Q1_0
from tests.blocks import blocks

kernels = pytest.importorskip("bestiary_kernels")
ISAS = kernels.isas()
Floats = NDArray[np.float32]


def _run(first: int, width: int, count: int) -> tuple[int, ...]:
    return tuple(first + width * i for i in range(count))


def _normal(count: int) -> tuple[float, ...]:
    """Numbers from -1 to 1, closer together about 0."""
    return tuple(float(x) for x in np.cbrt(np.linspace(-0.99, 1, count)) ** 5)


def _toys() -> Iterator[Encoding]:
    """Formats that nobody ships, and shapes of those that somebody does."""
    def f16(bit: int, block: int) -> Factor:
        return Factor("f16", Bits(16, (bit,), 8 * block))

    def encoding(name: str, size: int, block: int, layout: Layout) -> Encoding:
        return Encoding("toy " + name, size, (block,), layout)

    yield encoding("4 bits in order, f32", 32, 20, Layout(
        (Bits(4, _run(32, 4, 32), 160),), 32, Factor("f32", Bits(32, (0,), 160)), offset=8))
    yield encoding("groups of 16", 16, 10, Layout((Bits(4, _run(16, 4, 16), 80),), 16, f16(0, 10), offset=8))
    yield encoding("bytes in groups of 16", 16, 18, Layout(
        (Bits(8, _run(16, 8, 16), 144),), 16, f16(0, 18), signed=True))
    yield encoding("4 bits and a minimum", 32, 20, Layout(
        (Bits(4, _run(32, 4, 32), 160),), 32, f16(0, 20), minimum=f16(16, 20), minimum_sign=-1))
    yield encoding("groups of 16 with a minimum", 32, 24, Layout(
        (Bits(4, _run(64, 4, 32), 192),), 16, Factor("f16", Bits(16, (0, 16), 192)),
        minimum=Factor("f16", Bits(16, (32, 48), 192))))
    yield encoding("4 + 1 bits", 32, 22, Layout(
        (Bits(4, tuple(48 + 8 * (i % 16) + 4 * (i // 16) for i in range(32)), 176), Bits(1, _run(16, 1, 32), 176)), 32,
        f16(0, 22), offset=16))
    yield encoding("5 bits in order, groups of 16 with a minimum", 16, 14, Layout(
        (Bits(5, _run(32, 5, 16), 112),), 16, f16(0, 14), minimum=f16(16, 14), minimum_sign=-1))
    yield encoding("signed 5 bits, groups of 64", 64, 42, Layout(
        (Bits(5, _run(16, 5, 64), 336),), 64, f16(0, 42), signed=True))
    yield encoding("3 bits across bytes", 32, 14, Layout((Bits(3, _run(16, 3, 32), 112),), 32, f16(0, 14), offset=3))
    yield encoding("signed 4 bits", 32, 18, Layout((Bits(4, _run(16, 4, 32), 144),), 32, f16(0, 18), signed=True))
    yield encoding("2 bits, groups of 64", 64, 18, Layout((Bits(2, _run(16, 2, 64), 144),), 64, f16(0, 18), offset=1))
    yield encoding("bytes, groups of 96, e8m0", 96, 97, Layout(
        (Bits(8, _run(8, 8, 96), 776),), 96, Factor("e8m0", Bits(8, (0,), 776)), offset=100))
    yield encoding("integer scales of a super-block", 64, 40, Layout(
        (Bits(4, _run(64, 4, 64), 320),), 16,
        Factor("f16", Bits(16, (0,) * 4, 320), (Bits(4, _run(16, 4, 4), 320), Bits(2, _run(32, 2, 4), 320)), -32),
        offset=8))
    yield Encoding("toy two planes, bf16", 32, (16, 2), Layout(
        (Bits(4, _run(0, 4, 32), 128, 0),), 32, Factor("bf16", Bits(16, (0,), 16, 1)), offset=7))
    halves = tuple(8 * (i % 16) + 4 * (i // 16) for i in range(32))
    yield Encoding("toy NF4", 64, (32, 4), Layout(
        (Bits(4, (4, 0), 8),), 64, Factor("f32", Bits(32, (0,), 32, 1)), codebook=_normal(16)))
    yield encoding("signed halves, a minimum taken away", 32, 20, Layout(
        (Bits(4, tuple(32 + bit for bit in halves), 160),), 32, f16(0, 20), signed=True, minimum=f16(16, 20),
        minimum_sign=-1))
    yield encoding("halves, groups of 64", 64, 34, Layout(
        (Bits(4, tuple(16 + bit + 128 * i for i in range(2) for bit in halves), 272),), 64, f16(0, 34), offset=8))
    yield encoding("halves, f32", 32, 20, Layout(
        (Bits(4, tuple(32 + bit for bit in halves), 160),), 32, Factor("f32", Bits(32, (0,), 160)), offset=8))
    yield encoding("signed bytes, bf16", 32, 34, Layout(
        (Bits(8, _run(16, 8, 32), 272),), 32, Factor("bf16", Bits(16, (0,), 272)), signed=True))
    yield encoding("codebook of integers", 32, 18, Layout(
        (Bits(4, tuple(16 + bit for bit in halves), 144),), 32, f16(0, 18),
        codebook=(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)))
    yield encoding("codebook of small floats, e8m0", 32, 17, Layout(
        (Bits(4, tuple(8 + bit for bit in halves), 136),), 32, Factor("e8m0", Bits(8, (0,), 136)),
        codebook=(0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)))
    yield encoding("codebook of 2 bits, groups of 16 with a minimum", 16, 8, Layout(
        (Bits(2, _run(32, 2, 16), 64),), 16, f16(0, 8), codebook=(-0.9, 0.1, 0.25, 1.3), minimum=f16(16, 8)))
    yield encoding("codebook of 6 bits, f16", 32, 26, Layout(
        (Bits(6, _run(16, 6, 32), 208),), 32, f16(0, 26), codebook=_normal(64)))
    yield encoding("codebook of 8 bits, one number a row", 32, 34, Layout(
        (Bits(8, _run(0, 8, 32), 272),), 0, Factor("f16", Bits(16, (256,), 0)), codebook=_normal(256)))


OURS = {name: encoding for name, encoding in ENCODINGS.items() if why_not(encoding) is None}
ADDRESSED = (*K_QUANTS, *OF_TWO_BITS, IQ4_XS, MXFP4, Q1_0)
"""Whose codes or scales packing reads by bit address."""
ALL = {encoding.name: encoding for encoding in (*OURS.values(), *_toys())}
QUANTIZED = {name: encoding for name, encoding in ALL.items() if encoding.quantized}


def columns_of(encoding: Encoding) -> int:
    """A row that no slab or panel divides."""
    if encoding.block_size == 256:
        return 1024  # the last of several panels of super-blocks is a part of one
    return encoding.block_size * max(1, 288 // encoding.block_size) if encoding.block_size > 1 else 271


@pytest.mark.parametrize("encoding", ALL.values(), ids=ALL)
def test_packed_rows_are_the_rows(encoding: Encoding) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    rows, columns = 37, columns_of(encoding)
    tensor = blocks(encoding, rows, columns)
    layout = kernel_layout(encoding, columns)
    matrix = kernels.Matrix(layout, rows)
    matrix.pack(tensor.read(16, rows), 16)
    matrix.pack(tensor.read(0, 16), 0)
    expected = tensor.decode()
    # The numbers of a codebook are rounded to 8 bits. Not farther off than this, times the largest scale.
    bound = max(map(abs, encoding.layout.codebook), default=0) / 250 * 0.11 if encoding.layout else 0
    for row, got in enumerate(_unpacked(matrix)):
        if bound:
            np.testing.assert_allclose(got, expected[row], rtol=0, atol=bound)
        else:
            np.testing.assert_array_equal(got, expected[row])
    decoded = np.empty((rows, columns), np.float32)
    layout.decode(tensor.read(0, rows), decoded)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("encoding", ALL.values(), ids=ALL)
def test_rows_packed_in_groups_of_sixteen_are_those_packed_one_by_one(encoding: Encoding) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    rows, columns = 48, columns_of(encoding)
    data = blocks(encoding, rows, columns, seed=4).read(0, rows)
    layout = kernel_layout(encoding, columns)
    together, alone = kernels.Matrix(layout, rows), kernels.Matrix(layout, rows)
    together.pack(data, 0)
    for row in range(rows):
        alone.pack(data[row:row + 1], row)
    np.testing.assert_array_equal(_unpacked(together), _unpacked(alone))


@pytest.mark.parametrize("encoding", OURS.values(), ids=OURS)
def test_packing_only_moves_the_bytes_of_our_encodings(encoding: Encoding) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    assert kernel_layout(encoding, 256).straight == (encoding not in ADDRESSED)
    assert not kernel_layout(ALL["toy 3 bits across bytes"], 64).straight


@pytest.mark.parametrize("codebook", [(-1.0, 0.0, 0.5, 3.0), (-127.0, 1.0, 2.0, 126.0), (0.0,) * 4, (1e-40,) * 4,
                                      tuple(float(x) for x in range(-15, 1, 4)), (-3e38, 1.0, -0.0, 2e38)])
def test_a_codebook_that_integers_can_hold_is_held_exactly_and_others_within_a_bound(codebook: Sequence[float]) -> None:
    from bestiary_plugins.backends.cpu_pack import rounded

    levels, factor = rounded(tuple(codebook))
    numbers = np.asarray(codebook, np.float32)
    got = np.asarray(levels, np.float32) * np.float32(factor)
    assert max(map(abs, levels)) <= 127
    if max(codebook) < 1e38:
        np.testing.assert_allclose(got, numbers, rtol=0, atol=1e-38)
    assert np.abs(got / 2 - numbers / 2).max() <= 0.004 * np.abs(numbers / 2).max() + 1e-38


@pytest.mark.parametrize("name", ["toy NF4", "toy codebook of integers"])
def test_a_codebook_of_4_bits_takes_its_own_size_in_memory(name: str) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    matrix = kernels.Matrix(kernel_layout(ALL[name], 4096), 64)
    assert matrix.nbytes == 64 * ALL[name].row_bytes(4096)


@pytest.mark.parametrize("encoding", OURS.values(), ids=OURS)
def test_in_memory_our_encodings_take_their_own_size(encoding: Encoding) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    columns = 32 * encoding.block_size
    matrix = kernels.Matrix(kernel_layout(encoding, columns), 64)
    spare = 3 * 64 * columns // 8 if encoding is Q1_0 else 0  # codes of a codebook take four bits
    assert matrix.nbytes <= 1.03 * 64 * encoding.row_bytes(columns) + spare


def _unpacked(matrix: Any) -> Floats:
    out = np.empty((matrix.rows, matrix.columns), np.float32)
    for row in range(matrix.rows):
        matrix.unpack(row, out[row])
    return out


def held(tensor: BlockTensor) -> NDArray[np.float64]:
    """The weights as the kernels hold them: a codebook's numbers are rounded."""
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    matrix = kernels.Matrix(kernel_layout(tensor.encoding, tensor.columns), tensor.rows)
    matrix.pack(tensor.read(0, tensor.rows), 0)
    return _unpacked(matrix).astype(np.float64)


def product(tensor: BlockTensor, x: Floats, isa: str, threads: int = 1) -> Floats:
    """x @ tensor.T by the backend: all rows of x in one forward."""
    g = Trace()
    y = g.linear(g.embed("x", *x.shape), "w", tensor.shape[0])
    plan = CpuBackend(isa).compile(g.finish(y, y), {"x": ArrayTensor(x), "w": tensor}, Limits(64, threads=threads))
    n = np.arange(len(x), dtype=np.int32)
    return plan.forward(Batch(n, n[None], n * 0, n), plan.new_cache())


def rounded(x: Floats) -> Floats:
    """Activations as the kernels see them: 8 bits in blocks of 32, scale amax / 127."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    amax = np.abs(padded).max(axis=-1, keepdims=True)
    codes = np.rint(padded * (np.float32(127) / np.maximum(amax, np.float32(1e-36))))
    return (codes * (amax / np.float32(127))).reshape(len(x), -1)[:, :x.shape[1]].astype(np.float64)  # type: ignore


@pytest.mark.parametrize("encoding", ALL.values(), ids=ALL)
def test_products_follow_the_formula_and_every_isa_gives_the_same_bits(encoding: Encoding) -> None:
    """With activations of 8 bits nothing is rounded but the float sums of the groups."""
    tensor = blocks(encoding, 83, columns_of(encoding))
    x = np.random.default_rng(1).standard_normal((53, tensor.columns)).astype(np.float32)
    x[5] = 0
    seen = rounded(x) if encoding.quantized else x.astype(np.float64)
    weights = held(tensor)
    expected, size = seen @ weights.T, np.abs(seen) @ np.abs(weights.T)
    results = [product(tensor, x, isa) for isa in ISAS]
    # The kernels apply a scale to an offset code and a minimum apart: what is small may be a difference of the two.
    assert (np.abs(results[0] - expected) <= 3e-5 * size + 1e-6).all()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    for isa in ISAS:  # one token, tiles of every size, and with and without weights converted beforehand
        for count in (1, 2, 3, 4, 5, 7, 23):
            np.testing.assert_array_equal(product(tensor, x[:count], isa), results[0][:count])


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x0F, 0xF0, 0x80, 0x7F, 0x88])
@pytest.mark.parametrize("encoding", QUANTIZED.values(), ids=QUANTIZED)
def test_extreme_blocks_do_not_saturate(encoding: Encoding, fill: int) -> None:
    tensor = blocks(encoding, 20, columns_of(encoding))
    data = tensor.read(0, 20).copy()
    layout = encoding.layout
    assert layout is not None
    starts = np.cumsum([0, *encoding.plane_bytes(tensor.columns)])
    for piece in layout.codes:  # all code bits, nothing else
        for i in range(tensor.columns):
            bit = 8 * int(starts[piece.plane]) + piece.offsets[i % len(piece.offsets)] \
                + i // len(piece.offsets) * piece.stride
            for b in range(bit, bit + piece.width):
                one = fill >> (b % 8) & 1
                data[:, b // 8] = data[:, b // 8] & ~np.uint8(1 << (b % 8)) | np.uint8(one << (b % 8))
    extreme = BlockTensor(data, tensor.shape, encoding)
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (6, tensor.columns))
    x = np.concatenate([np.ones((1, tensor.columns)), -np.ones((1, tensor.columns)), signs]).astype(np.float32) * 12.7
    weights = held(extreme)
    for isa in ISAS:
        got = product(extreme, x, isa)
        size = (np.abs(x) @ np.abs(weights.T)).max()
        assert np.abs(got - x.astype(np.float64) @ weights.T).max() <= 3e-5 * size + 1e-3


@pytest.mark.parametrize("encoding", [F32, F16, BF16, *QUANTIZED.values()], ids=lambda encoding: str(encoding.name))
@pytest.mark.parametrize("isa", ISAS)
def test_activations_that_are_no_numbers_stay_in_their_token(encoding: Encoding, isa: str) -> None:
    tensor = blocks(encoding, 19, columns_of(encoding))
    x = np.random.default_rng(3).standard_normal((9, tensor.columns)).astype(np.float32)
    clean = product(tensor, x, isa)
    x[2, 7], x[4, 1], x[6] = np.nan, np.inf, 1e-42
    got = product(tensor, x, isa)
    assert np.isnan(got[2]).all() and not np.isfinite(got[4]).any()
    np.testing.assert_array_equal(got[[0, 1, 3, 5, 7, 8]], clean[[0, 1, 3, 5, 7, 8]])
