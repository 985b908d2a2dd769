"""The block formats of ggml as data: every loader, writer and quantizer takes them from here."""

from __future__ import annotations

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

ENCODINGS = {encoding.name: encoding for encoding in (F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0)}
"""Every encoding that the built-in plugins know, by name."""
