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

ENCODINGS = {encoding.name: encoding for encoding in (F32, F16, BF16, Q8_0, Q4_0)}
"""Every encoding that the built-in plugins know, by name."""
