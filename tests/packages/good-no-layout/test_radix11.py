"""radix11 keeps the contract of a quantizer; its numbers are what they are said to be."""

from __future__ import annotations

import numpy as np
from radix11 import BASE, Radix11, decode

from bestiary.testing import QuantizerContract


class TestRadix11(QuantizerContract):
    quantizer = Radix11()
    bound = 0.1015  # half of a fifth, and what f16 does to the scale


def test_a_block_is_a_scale_and_two_numbers_to_the_base_of_11() -> None:
    digits = [int(digit) for digit in np.random.default_rng(1).integers(0, BASE, 32)]
    numbers = [sum(digit * BASE ** i for i, digit in enumerate(half)) for half in (digits[:16], digits[16:])]
    data = np.float16(0.5).tobytes() + b"".join(number.to_bytes(7, "little") for number in numbers)
    assert (decode(np.frombuffer(data, np.uint8)[None], 32)[0] * 2 + 5).tolist() == digits
