"""The blocks of ggml's old files and k-quants: weights to the bit as a slow reading of one block after the other gives
them, by numpy and by the kernels, however the weights are asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.encoding import Encoding
from bestiary.graph import Trace
from bestiary.tensor import BlockTensor
from bestiary_plugins.backends.cpu import CpuBackend
from bestiary_plugins.backends.cpu_pack import kernel_layout, why_not
from bestiary_plugins.encodings import ENCODINGS, K_QUANTS, OF_SPRING_2023

kernels = pytest.importorskip("bestiary_kernels")
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

F = np.float32
Weights = Iterator[np.float32]


def numbers(block: bytes, form: str) -> tuple[Any, ...]:
    """The numbers that a block begins with as float32, and the bytes behind them."""
    size = struct.calcsize("<" + form)
    return (*(F(value) for value in struct.unpack("<" + form, block[:size])), block[size:])


def in_order(packed: bytes) -> Iterator[int]:
    """Until 12 May 2023: byte j has weight 2j in its low nibble and weight 2j + 1 in its high one."""
    for byte in packed:
        yield byte % 16
        yield byte // 16


def in_halves(packed: bytes) -> Iterator[int]:
    """Since then: byte j has weight j, and of the other half of the block weight j."""
    yield from (byte % 16 for byte in packed)
    yield from (byte // 16 for byte in packed)


def q4_0_v1(block: bytes) -> Weights:
    d, codes = numbers(block, "f")
    return (F(code - 8) * d for code in in_order(codes))


def q4_0_v2(block: bytes) -> Weights:
    d, codes = numbers(block, "f")
    return (F(code - 8) * d for code in in_halves(codes))


def q4_1_v1(block: bytes) -> Weights:
    d, m, codes = numbers(block, "ff")
    return (F(code) * d + m for code in in_order(codes))


def q4_1_v2(block: bytes) -> Weights:
    d, m, codes = numbers(block, "ff")
    return (F(code) * d + m for code in in_halves(codes))


def q4_2(block: bytes) -> Weights:
    d, codes = numbers(block, "e")
    return (F(code - 8) * d for code in in_order(codes))


def q4_3(block: bytes) -> Weights:
    d, m, codes = numbers(block, "ee")
    return (F(code) * d + m for code in in_order(codes))


def q5_0_v1(block: bytes) -> Weights:
    d, rest = numbers(block, "e")
    fifth = int.from_bytes(rest[:4], "little")
    return (F(code + 16 * (fifth >> i & 1) - 16) * d for i, code in enumerate(in_order(rest[4:])))


def q5_1_v1(block: bytes) -> Weights:
    d, m, rest = numbers(block, "ee")
    fifth = int.from_bytes(rest[:4], "little")
    return (F(code + 16 * (fifth >> i & 1)) * d + m for i, code in enumerate(in_order(rest[4:])))


def q8_0_v1(block: bytes) -> Weights:
    d, codes = numbers(block, "f")
    return (F(code) * d for code in struct.unpack("32b", codes))


def half(block: bytes, at: int) -> np.float32:
    return F(struct.unpack_from("<e", block, at)[0])


def q2_k(block: bytes) -> Weights:
    scales, codes, d, low = block[:16], block[16:80], half(block, 80), half(block, 82)
    for w in range(256):
        code = codes[32 * (w // 128) + w % 32] >> 2 * (w % 128 // 32) & 3
        yield d * F(scales[w // 16] & 15) * F(code) - low * F(scales[w // 16] >> 4)


def q3_k(block: bytes) -> Weights:
    high, codes, packed, d = block[:32], block[32:96], block[96:108], half(block, 108)
    scales = [packed[s] & 15 if s < 8 else packed[s - 8] >> 4 for s in range(16)]
    scales = [scale | (packed[8 + s % 4] >> 2 * (s // 4) & 3) << 4 for s, scale in enumerate(scales)]
    for w in range(256):
        h, g, place = w // 128, w % 128 // 32, w % 32
        code = (codes[32 * h + place] >> 2 * g & 3) - (0 if high[place] >> 4 * h + g & 1 else 4)
        yield d * F(scales[w // 16] - 32) * F(code)


def six_bits(k: bytes) -> list[tuple[int, int]]:
    """The scales and minimums of q4_k and q5_k."""
    return [(k[s] & 63, k[s + 4] & 63) if s < 4 else
            (k[s + 4] & 15 | k[s - 4] >> 6 << 4, k[s + 4] >> 4 | k[s] >> 6 << 4) for s in range(8)]


def q4_k(block: bytes) -> Weights:
    d, low, scales, codes = half(block, 0), half(block, 2), six_bits(block[4:16]), block[16:]
    for w in range(256):
        byte = codes[32 * (w // 64) + w % 32]
        scale, minimum = scales[w // 32]
        yield d * F(scale) * F(byte >> 4 if w % 64 >= 32 else byte & 15) - low * F(minimum)


def q5_k(block: bytes) -> Weights:
    d, low, scales, high, codes = half(block, 0), half(block, 2), six_bits(block[4:16]), block[16:48], block[48:]
    for w in range(256):
        byte = codes[32 * (w // 64) + w % 32]
        code = (byte >> 4 if w % 64 >= 32 else byte & 15) + 16 * (high[w % 32] >> w // 32 & 1)
        scale, minimum = scales[w // 32]
        yield d * F(scale) * F(code) - low * F(minimum)


def q6_k(block: bytes) -> Weights:
    low, high, scales, d = block[:128], block[128:192], struct.unpack("16b", block[192:208]), half(block, 208)
    for w in range(256):
        h, g, place = w // 128, w % 128 // 32, w % 32
        byte = low[64 * h + place + 32 * (g & 1)]
        code = (byte & 15 if g < 2 else byte >> 4) | (high[32 * h + place] >> 2 * g & 3) << 4
        yield d * F(scales[w // 16]) * F(code - 32)


# Encoding -> its arithmetic, bytes of a block, and where its numbers stand: ("f" or "e", byte).
REFERENCE: dict[str, tuple[Callable[[bytes], Weights], int, tuple[tuple[str, int], ...]]] = {
    "q4_0_v1": (q4_0_v1, 20, (("f", 0),)), "q4_0_v2": (q4_0_v2, 20, (("f", 0),)),
    "q4_1_v1": (q4_1_v1, 24, (("f", 0), ("f", 4))), "q4_1_v2": (q4_1_v2, 24, (("f", 0), ("f", 4))),
    "q4_2": (q4_2, 10, (("e", 0),)), "q4_3": (q4_3, 12, (("e", 0), ("e", 2))),
    "q5_0_v1": (q5_0_v1, 22, (("e", 0),)), "q5_1_v1": (q5_1_v1, 24, (("e", 0), ("e", 2))),
    "q8_0_v1": (q8_0_v1, 36, (("f", 0),)),
    "q2_k": (q2_k, 84, (("e", 80), ("e", 82))), "q3_k": (q3_k, 110, (("e", 108),)),
    "q4_k": (q4_k, 144, (("e", 0), ("e", 2))), "q5_k": (q5_k, 176, (("e", 0), ("e", 2))),
    "q6_k": (q6_k, 210, (("e", 208),)),
}
EDGES = {"f": (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 2.0 ** -126, -0.007, 0.1, 1e36, -1e36),
         "e": (0.0, -0.0, 1.0, -1.0, 2.0 ** -24, -2.0 ** -20, 2.0 ** -14, -0.007, 0.1, 65504.0, -65504.0)}

OLD = {encoding.name: encoding for encoding in (*OF_SPRING_2023, *K_QUANTS)}
HELD = {name: encoding for name, encoding in OLD.items() if why_not(encoding) is None}
each = pytest.mark.parametrize("encoding", OLD.values(), ids=OLD)
each_held = pytest.mark.parametrize("encoding", HELD.values(), ids=HELD)
rows_of_blocks = given(rows=st.integers(1, 20), count=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))


def random_rows(encoding: Encoding, rows: int, count: int, seed: int) -> Bytes:
    """Any bytes, any finite numbers: negative, subnormal, of either zero, and ordinary ones."""
    random = np.random.default_rng(seed)
    _, size, places = REFERENCE[encoding.name]
    data = random.integers(0, 256, (rows * count, size), dtype=np.uint8)
    for form, at in places:
        values = np.where(random.random(len(data)) < 0.5, random.choice(EDGES[form], len(data)),
                          random.standard_normal(len(data)) * 10.0 ** random.integers(-6, 3))
        data[:, at:at + struct.calcsize(form)] = values.astype("<f2" if form == "e" else "<f4").view(
            np.uint8).reshape(len(data), -1)
    return data.reshape(rows, -1)


def slowly(encoding: Encoding, data: Bytes) -> Floats:
    weights, size, _ = REFERENCE[encoding.name]
    return np.array([[weight for at in range(0, len(row), size) for weight in weights(row[at:at + size])]
                     for row in map(bytes, data)], np.float32)


def same_bits(got: Floats, wanted: Floats) -> None:
    """Also of the sign of a zero."""
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))


def test_every_encoding_has_its_arithmetic() -> None:
    assert set(OLD) == set(REFERENCE) < set(ENCODINGS)


@each
@settings(max_examples=15, deadline=None)
@rows_of_blocks
def test_numpy_decodes_any_blocks_as_their_arithmetic_says(encoding: Encoding, rows: int, count: int,
                                                           seed: int) -> None:
    data = random_rows(encoding, min(rows, 3), min(count, 2), seed)
    same_bits(encoding.decode(data, min(count, 2) * encoding.block_size), slowly(encoding, data))


@pytest.mark.parametrize("encoding", K_QUANTS, ids=lambda encoding: str(encoding.name))
@settings(max_examples=25, deadline=None)
@rows_of_blocks
def test_k_quants_are_what_ggmls_own_package_makes_of_them(encoding: Encoding, rows: int, count: int,
                                                           seed: int) -> None:
    data = random_rows(encoding, rows, count, seed)
    wanted = dequantize(data, gguf.GGMLQuantizationType[encoding.name.upper()])
    np.testing.assert_array_equal(encoding.decode(data, 256 * count), wanted)


@each
@pytest.mark.parametrize("code", range(16))
def test_every_code_stands_for_its_number_at_every_place(encoding: Encoding, code: int) -> None:
    """One byte of a block is another than the rest."""
    _, size, places = REFERENCE[encoding.name]
    data = random_rows(encoding, size, 1, 3)
    used = {at + i for form, at in places for i in range(struct.calcsize(form))}
    for i in set(range(size)) - used:
        data[:, i] = 0x33
        data[i, i] = 16 * code + 15 - code
    same_bits(encoding.decode(data, encoding.block_size), slowly(encoding, data))


def looked_up(tensor: BlockTensor, isa: str, tied: bool) -> Floats:
    """All rows of an embedding; with `tied` it is the output matrix too, so that the kernels hold it packed."""
    g = Trace()
    x = g.embed("table", tensor.rows, tensor.columns)
    graph = g.finish(g.linear(x, "table", tensor.rows) if tied else x, x)
    plan = CpuBackend(isa).compile(graph, {"table": tensor}, Limits(64, threads=1))
    n = np.arange(tensor.rows, dtype=np.int32)
    return plan.forward(Batch(n, n[None], n * 0, n), plan.new_cache(), "hidden")


@each_held
@settings(max_examples=10, deadline=None)
@rows_of_blocks
def test_the_kernels_decode_and_pack_any_rows_to_the_bits_of_numpy(encoding: Encoding, rows: int, count: int,
                                                                   seed: int) -> None:
    columns = count * encoding.block_size
    data = random_rows(encoding, rows, count, seed)
    wanted = encoding.decode(data, columns)
    layout = kernel_layout(encoding, columns)
    decoded, unpacked = np.empty_like(wanted), np.empty_like(wanted)
    layout.decode(data, decoded)
    same_bits(decoded, wanted)
    matrix = kernels.Matrix(layout, rows)
    matrix.pack(data, 0)
    for row in range(rows):
        matrix.unpack(row, unpacked[row])
    same_bits(unpacked, wanted)


@each_held
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("isa", kernels.isas())
def test_an_embedding_gives_the_bits_of_numpy_on_every_isa(encoding: Encoding, isa: str, tied: bool) -> None:
    data = random_rows(encoding, 37, 3, 7)
    tensor = BlockTensor(data, (37, 3 * encoding.block_size), encoding)
    same_bits(looked_up(tensor, isa, tied), tensor.decode())
