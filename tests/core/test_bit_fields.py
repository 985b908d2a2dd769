"""Fields of bits, a column of blocks at a time: what `gather` gives entry by entry, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.bit_fields import apart, put, take
from bestiary.decoding import gather
from bestiary.encoding import Bits
from bestiary_plugins.encodings import ENCODINGS


@settings(max_examples=150, deadline=None)
@given(width=st.integers(1, 32), offsets=st.lists(st.integers(0, 90), min_size=1, max_size=7),
       stride=st.integers(0, 130), count=st.integers(1, 23), seed=st.integers(0, 2**32))
def test_any_field_is_taken_as_gather_takes_it(width: int, offsets: list[int], stride: int, count: int,
                                               seed: int) -> None:
    field = Bits(width, tuple(offsets), stride)
    plane = np.random.default_rng(seed).integers(0, 256, (3, (90 + 23 * 130 + 32) // 8 + 1), np.uint8)
    np.testing.assert_array_equal(take([plane], field, count), gather([plane], field, count))


@settings(max_examples=150, deadline=None)
@given(width=st.integers(1, 32), gaps=st.lists(st.integers(0, 9), min_size=1, max_size=7), after=st.integers(0, 40),
       count=st.integers(1, 23), seed=st.integers(0, 2**32))
def test_what_is_put_is_taken_again_and_nothing_else_changes(width: int, gaps: list[int], after: int, count: int,
                                                             seed: int) -> None:
    offsets = [sum(gaps[:i + 1]) + i * width for i in range(len(gaps))]
    field = Bits(width, tuple(offsets), offsets[-1] + width + after)
    assert apart([(field, count)])
    size = (offsets[-1] + width + 24 * field.stride) // 8 + 1
    values = np.random.default_rng(seed).integers(0, 1 << width, (3, count), np.uint64).astype(np.uint32)
    plane = np.zeros((3, size), np.uint8)
    put([plane], field, values)
    np.testing.assert_array_equal(gather([plane], field, count), values)
    assert sum(int(byte).bit_count() for byte in plane.ravel()) == sum(int(v).bit_count() for v in values.ravel())


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_of_every_encoding_are_their_fields_put_together(name: str) -> None:
    """No bit of a block is left out, and none is in two fields; where one number serves several groups, once is
    enough."""
    encoding = ENCODINGS[name]
    layout = encoding.layout
    if layout is None:
        return
    columns = 2 * encoding.block_size
    rows = np.random.default_rng(3).integers(0, 256, (5, encoding.row_bytes(columns)), np.uint8)
    again = np.zeros_like(rows)
    for factor in (layout.scale, layout.minimum):
        if factor is not None:
            at = Bits(factor.at.width, factor.at.offsets[:1], factor.at.stride) if factor.integer else factor.at
            for piece, count in ((at, columns // encoding.block_size if factor.integer else columns // layout.group),
                                 *((piece, columns // layout.group) for piece in factor.integer)):
                put([again], piece, take([rows], piece, count))
    for piece in layout.codes:
        put([again], piece, take([rows], piece, columns))
    np.testing.assert_array_equal(again, rows)


def test_fields_that_share_bits_are_not_apart() -> None:
    assert not apart([(Bits(4, (0, 3), 8), 2)])
    assert not apart([(Bits(4, (0,), 8), 2), (Bits(1, (9,), 8), 1)])
    assert not apart([(Bits(16, (0, 0), 32), 2)])
    assert apart([(Bits(16, (0, 16), 32), 2), (Bits(16, (0,), 32, plane=1), 2)])
