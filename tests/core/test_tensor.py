"""Tensors: shapes, rows and bytes of a weight, whatever holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor, chunks

HALVES = Encoding("halves", 4, (2,), decoder=lambda rows, columns: np.repeat(rows.astype(np.float32), 2, axis=1))


@pytest.mark.parametrize(("shape", "rows", "columns"), [((5,), 1, 5), ((2, 5), 2, 5), ((3, 2, 5), 6, 5)])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_an_array_is_a_tensor_of_rows(shape: tuple[int, ...], rows: int, columns: int,
                                      kind: type[np.float32] | type[np.float16]) -> None:
    values: Any = np.arange(rows * columns).reshape(shape).astype(kind)
    tensor = ArrayTensor(values)
    assert (tensor.rows, tensor.columns, tensor.nbytes) == (rows, columns, values.nbytes)
    assert tensor.encoding == (F16 if kind is np.float16 else F32)
    np.testing.assert_array_equal(tensor.array(), values.astype(np.float32))
    np.testing.assert_array_equal(tensor.decode(rows - 1), values.reshape(rows, columns)[-1:].astype(np.float32))


def test_an_array_that_is_not_contiguous_is_kept_in_its_own_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(ArrayTensor(values).array(), values)


def test_a_number_alone_is_one_row_of_one_column() -> None:
    tensor = ArrayTensor(np.array(2.5, np.float32))
    assert (tensor.rows, tensor.columns) == (1, 1)
    assert tensor.array() == np.float32(2.5)


def test_rows_of_blocks_decode_in_the_tensors_shape() -> None:
    blocks = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tensor = BlockTensor(blocks, (3, 8), HALVES)
    assert (tensor.row_bytes, tensor.nbytes) == (4, 12)
    np.testing.assert_array_equal(tensor.decode(1, 2), [[4, 4, 5, 5, 6, 6, 7, 7]])
    assert BlockTensor(blocks, (1, 3, 8), HALVES).array().shape == (1, 3, 8)
    with pytest.raises(BestiaryError, match="halves holds blocks of 4 weights; a row of 6"):
        BlockTensor(blocks, (4, 6), HALVES)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 200), size=st.integers(1, 5000))
def test_chunks_cover_every_row_once_and_hold_about_what_they_may(rows: int, columns: int, size: int) -> None:
    tensor: Tensor = BlockTensor(np.zeros((rows, 2 * columns), np.uint8), (rows, columns), BF16)
    ranges = chunks(tensor, size)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    assert all(stop - start == 1 or 4 * columns * (stop - start) <= size for start, stop in ranges)


def test_a_quantized_weight_is_decoded_a_part_at_a_time() -> None:
    """What a decoder takes on the way is not multiplied by the weight's size."""
    asked: list[int] = []

    def decoder(rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        asked.append(len(rows))
        return rows.astype(np.float32)

    rows = np.random.default_rng(0).integers(0, 256, (3000, 1024), dtype=np.uint8)
    tensor = BlockTensor(rows, (3, 1000, 1024), Encoding("bytes", 1, (1,), decoder=decoder))
    np.testing.assert_array_equal(tensor.array(), rows.reshape(3, 1000, 1024))
    assert sum(asked) == 3000
    assert max(asked) <= 1024
