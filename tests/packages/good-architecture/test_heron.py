"""Herons keep the contract of an architecture."""

from __future__ import annotations

import numpy as np
from heron import Heron
from heron.gate import gated

from bestiary.plugin import Architecture, Segment
from bestiary.testing import ArchitectureContract
from bestiary.testing.text import ByteTokenizer


class TestHeron(ArchitectureContract):
    architecture = Heron()
    configs = ({**Heron().example_config(), "gate_slope": 1.702, "num_key_value_heads": 4, "rope_theta": 500.0},)

    def test_what_is_around_its_tokenizer_keeps_the_text(self, architecture: Architecture) -> None:
        """All but the size of its letters."""
        tokenizer = architecture.wrap(ByteTokenizer(), architecture.example_config())
        assert tokenizer.decode(tokenizer.encode("Hello, HERON 12!")) == "hello, heron 12!"
        segments = [Segment("ASK", special=True), Segment("Who?", special=False)]
        assert tokenizer.decode(tokenizer.encode_segments(segments)) == "ASKwho?"


def test_a_slope_of_0_halves_the_gate() -> None:
    gate, up = np.array([[2.0, -3.0]], np.float32), np.array([[1.0, 4.0]], np.float32)
    assert gated(gate, up, slope=0.0).tolist() == [[1.0, -6.0]]
