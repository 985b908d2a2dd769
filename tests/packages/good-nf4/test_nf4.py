"""nf4 keeps the contract of a quantizer; its codebook is that of the paper."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from nf4 import CODEBOOK, NF4

from bestiary.testing import QuantizerContract


class TestNF4(QuantizerContract):
    quantizer = NF4()
    bound = 0.1520  # half of the widest gap, between -1 and -0.6962


def test_the_codebook_holds_the_quantiles_of_a_normal_distribution() -> None:
    """QLoRA, appendix E: of 8 and 9 probabilities evenly spaced from 0.9677083 to a half, 0 once."""
    end, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    values = sorted([*above, 0.0, *below])
    assert np.abs(np.array(CODEBOOK) - np.array(values) / max(values)).max() < 2e-7


def test_the_codes_stand_before_the_scales_and_the_first_of_two_is_the_high_nibble() -> None:
    rows = np.zeros((1, 128), np.float32)
    rows[0, :2], rows[0, 64:67] = (2.0, -2.0), (-0.5, 0.0, 0.5)
    packed = NF4().quantize(rows)[0]
    assert packed[0] == 0xF0 and packed[32] == 0x07 and packed[33] == 0xF7 and (packed[1:32] == 0x77).all()
    assert packed[64:].view("<f4").tolist() == [2.0, 0.5]
