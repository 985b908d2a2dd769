"""The block formats of ggml as data: every loader, writer and quantizer takes them from here."""

from __future__ import annotations

from collections.abc import Callable

from bestiary.plugin import BF16, F16, F32, Bits, Encoding, Factor, Layout


def _in_order(first_bit: int, width: int, count: int, block_bytes: int) -> Bits:
    """`count` fields beside one another in every block."""
    return Bits(width, tuple(first_bit + width * i for i in range(count)), 8 * block_bytes)


def _nibble_halves(first_bit: int, block_bytes: int) -> Bits:
    """32 codes of 4 bits: 0-15 are the low nibbles of 16 bytes, 16-31 the high ones."""
    return Bits(4, tuple(first_bit + 8 * (i % 16) + 4 * (i // 16) for i in range(32)), 8 * block_bytes)


Q8_0 = Encoding("q8_0", 32, (34,), Layout(
    codes=(_in_order(16, 8, 32, 34),), group=32, scale=Factor("f16", Bits(16, (0,), 8 * 34)), signed=True))
"""f16 scale, 32 signed bytes."""

Q4_0 = Encoding("q4_0", 32, (18,), Layout(
    codes=(_nibble_halves(16, 18),), group=32, scale=Factor("f16", Bits(16, (0,), 8 * 18)), offset=8))
"""f16 scale, 32 codes of 4 bits less 8."""

Q4_1 = Encoding("q4_1", 32, (20,), Layout(
    codes=(_nibble_halves(32, 20),), group=32, scale=Factor("f16", Bits(16, (0,), 8 * 20)),
    minimum=Factor("f16", Bits(16, (16,), 8 * 20))))
"""f16 scale, f16 minimum, 32 codes of 4 bits."""

Q5_0 = Encoding("q5_0", 32, (22,), Layout(
    codes=(_nibble_halves(48, 22), _in_order(16, 1, 32, 22)), group=32, scale=Factor("f16", Bits(16, (0,), 8 * 22)),
    offset=16))
"""f16 scale, the fifth bits of 32 codes, their lower 4 bits; less 16."""

Q5_1 = Encoding("q5_1", 32, (24,), Layout(
    codes=(_nibble_halves(64, 24), _in_order(32, 1, 32, 24)), group=32, scale=Factor("f16", Bits(16, (0,), 8 * 24)),
    minimum=Factor("f16", Bits(16, (16,), 8 * 24))))
"""f16 scale, f16 minimum, the fifth bits of 32 codes, their lower 4 bits."""

def _beside(number: str, first_bit: int, block_bytes: int, integer: tuple[Bits, ...] = (), bias: int = 0,
            signed: bool = False) -> Factor:
    """A number a block; or one that all groups of a super-block share, each with an integer of its own."""
    groups = len(integer[0].offsets) if integer else 1
    width = 32 if number == "f32" else 16
    return Factor(number, Bits(width, (first_bit,) * groups, 8 * block_bytes), integer, bias, signed)


# What ggml's files of spring 2023 hold. Until 12 May codes of 4 bits stood in order, then in halves; f32 scales became
# f16 on 19 May. The number at the end is that of ggml's count of such changes.

Q4_0_V1 = Encoding("q4_0_v1", 32, (20,), Layout(
    codes=(_in_order(32, 4, 32, 20),), group=32, scale=_beside("f32", 0, 20), offset=8))
Q4_0_V2 = Encoding("q4_0_v2", 32, (20,), Layout(
    codes=(_nibble_halves(32, 20),), group=32, scale=_beside("f32", 0, 20), offset=8))
Q4_1_V1 = Encoding("q4_1_v1", 32, (24,), Layout(
    codes=(_in_order(64, 4, 32, 24),), group=32, scale=_beside("f32", 0, 24), minimum=_beside("f32", 32, 24)))
Q4_1_V2 = Encoding("q4_1_v2", 32, (24,), Layout(
    codes=(_nibble_halves(64, 24),), group=32, scale=_beside("f32", 0, 24), minimum=_beside("f32", 32, 24)))
Q4_2 = Encoding("q4_2", 16, (10,), Layout(
    codes=(_in_order(16, 4, 16, 10),), group=16, scale=_beside("f16", 0, 10), offset=8))
Q4_3 = Encoding("q4_3", 16, (12,), Layout(
    codes=(_in_order(32, 4, 16, 12),), group=16, scale=_beside("f16", 0, 12), minimum=_beside("f16", 16, 12)))
Q5_0_V1 = Encoding("q5_0_v1", 32, (22,), Layout(
    codes=(_in_order(48, 4, 32, 22), _in_order(16, 1, 32, 22)), group=32, scale=_beside("f16", 0, 22), offset=16))
Q5_1_V1 = Encoding("q5_1_v1", 32, (24,), Layout(
    codes=(_in_order(64, 4, 32, 24), _in_order(32, 1, 32, 24)), group=32, scale=_beside("f16", 0, 24),
    minimum=_beside("f16", 16, 24)))
Q8_0_V1 = Encoding("q8_0_v1", 32, (36,), Layout(
    codes=(_in_order(32, 8, 32, 36),), group=32, scale=_beside("f32", 0, 36), signed=True))

OF_SPRING_2023 = (Q4_0_V1, Q4_0_V2, Q4_1_V1, Q4_1_V2, Q4_2, Q4_3, Q5_0_V1, Q5_1_V1, Q8_0_V1)

# K-quants: super-blocks of 256 weights. In a quarter, half or eighth of one, weights 32 apart share a byte.

_LINES = [(i // 128, i % 128 // 32, i % 32) for i in range(256)]  # half, line of 32 in it, place in the line


def _codes(width: int, place: Callable[[int, int, int], int], block_bytes: int) -> Bits:
    return Bits(width, tuple(place(half, line, i) for half, line, i in _LINES), 8 * block_bytes)


def _six_bits(first_byte: int, block_bytes: int, minimum: bool) -> tuple[Bits, ...]:
    """The scales or minimums of Q4_K and Q5_K: 8 pairs of 6 bits in 12 bytes."""
    low = tuple(8 * (first_byte + s + 4 * (minimum or s > 3)) + 4 * (minimum and s > 3) for s in range(8))
    high = tuple(8 * (first_byte + s + 4 * minimum) + 4 if s < 4 else 8 * (first_byte + s - 4 + 4 * minimum) + 6
                 for s in range(8))
    return Bits(4, low, 8 * block_bytes), Bits(2, high, 8 * block_bytes)


Q2_K = Encoding("q2_k", 256, (84,), Layout(
    codes=(_codes(2, lambda half, line, i: 8 * (16 + 32 * half + i) + 2 * line, 84),), group=16,
    scale=_beside("f16", 8 * 80, 84, (Bits(4, tuple(8 * s for s in range(16)), 8 * 84),)),
    minimum=_beside("f16", 8 * 82, 84, (Bits(4, tuple(8 * s + 4 for s in range(16)), 8 * 84),)), minimum_sign=-1))
Q3_K = Encoding("q3_k", 256, (110,), Layout(
    codes=(_codes(2, lambda half, line, i: 8 * (32 + 32 * half + i) + 2 * line, 110),
           _codes(1, lambda half, line, i: 8 * i + 4 * half + line, 110)), group=16, offset=4,
    scale=_beside("f16", 8 * 108, 110, (
        Bits(4, tuple(8 * (96 + s % 8) + 4 * (s // 8) for s in range(16)), 8 * 110),
        Bits(2, tuple(8 * (104 + s % 4) + 2 * (s // 4) for s in range(16)), 8 * 110)), bias=-32)))
Q4_K = Encoding("q4_k", 256, (144,), Layout(
    codes=(_codes(4, lambda half, line, i: 8 * (16 + 64 * half + 32 * (line // 2) + i) + 4 * (line % 2), 144),),
    group=32, scale=_beside("f16", 0, 144, _six_bits(4, 144, False)),
    minimum=_beside("f16", 16, 144, _six_bits(4, 144, True)), minimum_sign=-1))
Q5_K = Encoding("q5_k", 256, (176,), Layout(
    codes=(_codes(4, lambda half, line, i: 8 * (48 + 64 * half + 32 * (line // 2) + i) + 4 * (line % 2), 176),
           _codes(1, lambda half, line, i: 8 * (16 + i) + 4 * half + line, 176)),
    group=32, scale=_beside("f16", 0, 176, _six_bits(4, 176, False)),
    minimum=_beside("f16", 16, 176, _six_bits(4, 176, True)), minimum_sign=-1))
Q6_K = Encoding("q6_k", 256, (210,), Layout(
    codes=(_codes(4, lambda half, line, i: 8 * (64 * half + i + 32 * (line % 2)) + 4 * (line // 2), 210),
           _codes(2, lambda half, line, i: 8 * (128 + 32 * half + i) + 2 * line, 210)), group=16, offset=32,
    scale=_beside("f16", 8 * 208, 210, (Bits(8, tuple(8 * (192 + s) for s in range(16)), 8 * 210),), signed=True)))

K_QUANTS = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)

# Codes that are places in a list of numbers.

_IQ4 = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)

IQ4_NL = Encoding("iq4_nl", 32, (18,), Layout(
    codes=(_nibble_halves(16, 18),), group=32, scale=_beside("f16", 0, 18), codebook=_IQ4))

CODEBOOKS = (IQ4_NL,)

ENCODINGS = {encoding.name: encoding for encoding in (
    F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, *K_QUANTS, *CODEBOOKS, *OF_SPRING_2023)}
"""Every encoding that the built-in plugins know, by name."""
