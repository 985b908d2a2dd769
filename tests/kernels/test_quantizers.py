"""The compiled quantizers, their numpy twins and the gguf package write the same bytes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.encodings import ENCODINGS

kernels = pytest.importorskip("bestiary_kernels")
gguf = pytest.importorskip("gguf")
QUANTIZED = {quantizer.name: quantizer for quantizer in bestiary_quantizers() if quantizer.encoding.quantized}
TWINS = {name: (import_module(type(quantizer).__module__).reference, getattr(kernels, f"quantize_{name}"))
         for name, quantizer in QUANTIZED.items()}
RANDOM = np.random.default_rng(0)
CASES: dict[str, NDArray[Any]] = {
    "random": RANDOM.standard_normal((300, 320)),
    "zero": np.zeros((4, 64)),
    "negative zero": -np.zeros((4, 64)),
    "denormal": RANDOM.standard_normal((50, 64)) * 1e-40,
    "every magnitude": RANDOM.standard_normal((300, 64)) * 10.0 ** RANDOM.integers(-44, 37, (300, 1)),
    "huge": RANDOM.standard_normal((50, 64)) * 3e37,
    "halves": RANDOM.integers(-254, 255, (100, 64)) / 2,
    "constant": np.repeat(RANDOM.standard_normal((100, 2)), 32, axis=1),
    "nearly constant": 1 + RANDOM.integers(0, 3, (100, 64)) * 2.0**-23,
    "negative": -RANDOM.uniform(1, 2, (100, 64)),
    "positive": RANDOM.uniform(0, 2, (100, 64)),
    "one weight a block": np.eye(32),
    "a range beyond the largest float": RANDOM.choice([-3e38, 3e38, 0], (50, 64)),
    "beyond f16": RANDOM.standard_normal((50, 64)) * 1e6,
    "ties of the largest": RANDOM.choice([-1.0, 1.0, 0.5], (100, 64)),
}


def theirs(name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        blocks = getattr(gguf.quants, name.upper()).quantize_blocks(rows.reshape(-1, 32))
    return np.asarray(blocks, np.uint8).reshape(len(rows), -1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", QUANTIZED)
def test_bytes_equal_those_of_the_gguf_package(name: str, case: NDArray[Any]) -> None:
    rows = case.astype(np.float32)
    expected = theirs(name, rows)
    np.testing.assert_array_equal(QUANTIZED[name].quantize(rows), expected)
    for twin in TWINS[name]:
        np.testing.assert_array_equal(twin(rows), expected)


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_twins_agree_on_any_floats(name: str, data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=3))
    rows = data.draw(arrays(np.float32, (shape[0], shape[1] * 32), elements=st.floats(width=32)))
    reference, compiled = TWINS[name]
    ours, twin = compiled(rows), reference(rows)
    size = ENCODINGS[name].block_bytes[0]
    layout = ENCODINGS[name].layout
    codes = 4 if layout and layout.minimum else 2  # they follow the scale, and the minimum
    ours, twin = ours.reshape(-1, size), twin.reshape(-1, size)
    np.testing.assert_array_equal(ours[:, codes:], twin[:, codes:])
    numbers = [blocks[:, :codes].copy().view(np.float16) for blocks in (ours, twin)]
    np.testing.assert_array_equal(*numbers)  # NaN too


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_decoded_is_within_a_step(name: str) -> None:
    rows = RANDOM.standard_normal((10, 96)).astype(np.float32)
    quantizer = QUANTIZED[name]
    back = quantizer.encoding.decode(quantizer.quantize(rows), 96)
    steps = {"q8_0": 1 / 127, "q5_1": 1 / 31, "q5_0": 1 / 16, "q4_1": 1 / 15, "q4_0": 1 / 8}
    largest = np.abs(rows.reshape(10, 3, 32)).max(axis=-1, keepdims=True)
    error = np.abs(back - rows).reshape(10, 3, 32)
    assert (error <= largest * steps.get(name, 0.5) * 1.03).all()


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    for _, compiled in TWINS.values():
        with pytest.raises(ValueError, match="rows of 33 weights"):
            compiled(np.zeros((2, 33), np.float32))
        assert compiled(np.zeros((0, 32), np.float32)).shape[0] == 0
