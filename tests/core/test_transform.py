"""Transforms: lazy by row ranges, and each followed by its inverse is the identity."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.decoding import to_bf16
from bestiary.encoding import BF16, F16, F32, Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor, encode_plain
from bestiary.transform import (
    Add,
    Join,
    JoinColumns,
    Permute,
    Regroup,
    Split,
    SplitColumns,
    Stack,
    Transform,
    Transpose,
    Unstack,
)

FOURS = Encoding("fours", 4, (4,), Layout((Bits(8, (0,), 8),), 4, Factor("e8m0", Bits(8, (0,), 32))))
"""Blocks of four weights, so that rows of bytes cannot be taken apart."""
ENCODINGS = (F32, F16, BF16, FOURS)


class Watched(Tensor):
    """A tensor that remembers what was read of it."""

    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        assert 0 <= start <= stop <= self.rows
        self.reads.append((start, stop))
        return self._base.read(start, stop)


def made(shape: tuple[int, ...], encoding: Encoding, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    if encoding.quantized:
        data = random.integers(0, 256, (rows, encoding.row_bytes(columns)), dtype=np.uint8)
    else:
        data = encode_plain(random.standard_normal((rows, columns)).astype(np.float32), encoding)
    return BlockTensor(data, shape, encoding)


def whole(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.read(0, tensor.rows)


@dataclass(frozen=True)
class Case:
    transform: Transform
    shapes: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    encodings: tuple[Encoding, ...] = ENCODINGS


PLAIN_ONLY = (F32, F16, BF16)
CASES = {
    "permute": Case(Permute((2, 0, 3, 1, 5, 4)), ((6, 8),), ((6, 8),)),
    "permute several": Case(Permute((2, 0, 1)), ((3, 4), (3, 8)), ((3, 4), (3, 8))),
    "permute a vector": Case(Permute((2, 0, 3, 1)), ((4,),), ((4,),), PLAIN_ONLY),
    "permute in a stack's rows": Case(Permute((5, 4, 3, 2, 1, 0)), ((2, 3, 4),), ((2, 3, 4),)),
    "regroup": Case(Regroup((2, 3, 2), (0, 2, 1)), ((12, 8), (12, 4)), ((12, 8), (12, 4))),
    "regroup all axes": Case(Regroup((2, 3, 4), (1, 2, 0)), ((24, 8),), ((24, 8),)),
    "regroup a vector": Case(Regroup((2, 3), (1, 0)), ((6,),), ((6,),), PLAIN_ONLY),
    "split": Case(Split((3, 1, 2)), ((6, 8),), ((3, 8), (1, 8), (2, 8))),
    "split a vector": Case(Split((4, 8)), ((12,),), ((4,), (8,))),
    "join": Case(Join((3, 1, 2)), ((3, 8), (1, 8), (2, 8)), ((6, 8),)),
    "join vectors": Case(Join((4, 8)), ((4,), (8,)), ((12,),)),
    "join columns": Case(JoinColumns((32, 64)), ((3, 32), (3, 64)), ((3, 96),)),
    "split columns": Case(SplitColumns((64, 32)), ((3, 96),), ((3, 64), (3, 32))),
    "stack": Case(Stack(3), ((2, 4),) * 3, ((3, 2, 4),)),
    "unstack": Case(Unstack(3), ((3, 2, 4),), ((2, 4),) * 3),
    "transpose": Case(Transpose(), ((5, 3),), ((3, 5),), PLAIN_ONLY),
    "add": Case(Add(1.0), ((5, 3),), ((5, 3),), (F32,)),
}
EACH = [pytest.param(case, encoding, id=f"{name} {encoding.name}") for name, case in CASES.items()
        for encoding in case.encodings]


@pytest.mark.parametrize(("case", "encoding"), EACH)
def test_a_transform_and_its_inverse_are_the_identity(case: Case, encoding: Encoding) -> None:
    sources = [made(shape, encoding, i) for i, shape in enumerate(case.shapes)]
    there = case.transform.apply(sources)
    back = case.transform.inverse.apply(there)
    assert tuple(tensor.shape for tensor in there) == case.results
    assert tuple(tensor.shape for tensor in back) == case.shapes
    for source, again in zip(sources, back, strict=True):
        assert again.encoding == source.encoding
        if isinstance(case.transform, Add):  # rounds once in each direction
            np.testing.assert_allclose(again.array(), source.array(), atol=2**-22)
        else:
            np.testing.assert_array_equal(whole(again), whole(source))


@pytest.mark.parametrize(("case", "encoding"), EACH)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_row_range_is_that_part_of_the_whole(case: Case, encoding: Encoding, data: st.DataObject) -> None:
    sources = [made(shape, encoding, i) for i, shape in enumerate(case.shapes)]
    for result in (*case.transform.apply(sources), *case.transform.inverse.apply(case.transform.apply(sources))):
        start = data.draw(st.integers(0, result.rows))
        stop = data.draw(st.integers(start, result.rows))
        part = result.read(start, stop)
        assert part.dtype == np.uint8
        assert part.shape == (stop - start, result.row_bytes)
        np.testing.assert_array_equal(part, whole(result)[start:stop])


def lists_of_rows(transform: Transform, arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What each transform means, said with numpy."""
    match transform:
        case Permute(order):
            return [array.reshape(-1, array.shape[-1])[list(order)].reshape(array.shape) if array.ndim > 1
                    else array[list(order)] for array in arrays]
        case Regroup(shape, axes):
            return [array.reshape(*shape, -1).transpose(*axes, len(axes)).reshape(array.shape) for array in arrays]
        case Split(rows):
            return np.split(arrays[0], np.cumsum(rows)[:-1])
        case Join():
            return [np.concatenate(arrays)]
        case SplitColumns(columns):
            return np.split(arrays[0], np.cumsum(columns)[:-1], axis=1)
        case JoinColumns():
            return [np.concatenate(arrays, axis=1)]
        case Stack():
            return [np.stack(arrays)]
        case Unstack():
            return list(arrays[0])
        case Transpose():
            return [array.T for array in arrays]
        case Add(amount):
            return [array + np.float32(amount) for array in arrays]
    raise AssertionError(transform)


@pytest.mark.parametrize(("case", "encoding"), EACH)
def test_a_transform_means_what_numpy_says(case: Case, encoding: Encoding) -> None:
    sources = [made(shape, encoding, i) for i, shape in enumerate(case.shapes)]
    wanted = lists_of_rows(case.transform, [source.array() for source in sources])
    for result, array in zip(case.transform.apply(sources), wanted, strict=True):
        np.testing.assert_array_equal(result.array(), array)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(12)), columns=st.integers(1, 5), kind=st.sampled_from(PLAIN_ONLY))
def test_any_permutation_is_undone_by_its_inverse(order: list[int], columns: int, kind: Encoding) -> None:
    transform = Permute(tuple(order))
    for shape in ((12, columns), (12,)):
        source = made(shape, kind, columns)
        (there,) = transform.apply([source])
        (back,) = transform.inverse.apply([there])
        np.testing.assert_array_equal(whole(back), whole(source))
    assert transform.inverse.inverse == transform


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=5), columns=st.integers(1, 3))
def test_any_split_is_undone_by_joining(rows: list[int], columns: int) -> None:
    transform = Split(tuple(rows))
    for shape in ((sum(rows), columns), (sum(rows),)):
        source = made(shape, F32, columns)
        (back,) = transform.inverse.apply(transform.apply([source]))
        np.testing.assert_array_equal(whole(back), whole(source))


@pytest.mark.parametrize("name", ["permute", "split", "join", "split columns", "stack", "unstack", "add"])
def test_nothing_is_read_before_it_is_asked_for_and_then_little(name: str) -> None:
    case = CASES[name]
    sources = [Watched(made(shape, F32, i)) for i, shape in enumerate(case.shapes)]
    results = case.transform.apply(sources)
    assert not any(source.reads for source in sources)
    results[0].read(0, 1)
    span = max(case.transform.order) + 1 if isinstance(case.transform, Permute) else 1  # rows stay within a head
    assert sum(stop - start for source in sources for start, stop in source.reads) <= span


def test_a_permutation_reads_no_further_than_its_own_head() -> None:
    heads = Permute(tuple(8 * head + i for head in range(4) for i in (1, 3, 5, 7, 0, 2, 4, 6)))
    source = Watched(made((32, 4), F32, 0))
    (result,) = heads.apply([source])
    result.read(9, 12)
    assert all(8 <= start <= stop <= 16 for start, stop in source.reads)


def wrong(transform: Transform, *shapes: tuple[int, ...], encodings: tuple[Encoding, ...] = (F32,)) -> str:
    """The error, of making the result or of reading it."""
    sources = [made(shape, encodings[i % len(encodings)], i) for i, shape in enumerate(shapes)]
    with pytest.raises(BestiaryError) as caught:
        for result in transform.apply(sources):
            whole(result)
    return str(caught.value)


def test_groups_that_no_memory_could_hold_are_refused_before_they_are_made() -> None:
    assert f"{1 << 62} rows cannot be permuted" in wrong(Regroup((1 << 31, 2, 1 << 30), (0, 2, 1)), (4, 2))


def test_what_does_not_fit_is_refused_in_words() -> None:
    assert "axes (0, 0) of an array of 2" in wrong(Regroup((2, 2), (0, 0)), (4, 2))
    assert "3 rows cannot be permuted in a tensor of shape (4, 2)" in wrong(Permute((2, 0, 1)), (4, 2))
    assert "3 rows cannot be permuted in a tensor of shape (4,)" in wrong(Permute((2, 0, 1)), (4,))
    assert "cannot be split into rows (2, 3)" in wrong(Split((2, 3)), (6, 4))
    assert "cannot be joined" in wrong(Join((2, 2)), (2, 4), (2, 8))
    assert "cannot be joined" in wrong(Join((2, 2)), (2, 4), (2, 4), encodings=(F32, FOURS))
    assert "cannot be joined" in wrong(Join((4, 4)), (4,), (4,), encodings=(F32, FOURS))
    assert "cannot be joined" in wrong(Stack(2), (2, 4), (2, 4), encodings=(F32, FOURS))
    assert "is no stack of 4" in wrong(Unstack(4), (3, 2, 4))
    assert "cannot be transposed" in wrong(Transpose(), (2, 3, 4))
    assert "cannot be transposed" in wrong(Transpose(), (4, 4), encodings=(FOURS,))
    assert "cannot be added to a fours tensor" in wrong(Add(1.0), (4, 4), encodings=(FOURS,))
    assert "fours vector cannot be permuted" in wrong(Permute((1, 0, 3, 2)), (4,), encodings=(FOURS,))


@pytest.mark.parametrize(("transform", "shape"), [(Join((3, 3)), (3, 4)), (Join((4, 4)), (4,)), (Stack(2), (3, 4)),
                                                  (JoinColumns((4, 4)), (3, 4))])
def test_plain_tensors_of_two_types_are_joined_in_a_type_that_holds_both(transform: Transform,
                                                                         shape: tuple[int, ...]) -> None:
    for first, second in ((F16, BF16), (BF16, F32), (F16, F16)):
        sources = [made(shape, encoding, seed) for seed, encoding in enumerate((first, second))]
        (found,) = transform.apply(sources)
        assert found.encoding == (F16 if second == F16 else F32)
        for part, source in zip(transform.inverse.apply([found]), sources, strict=True):
            assert np.array_equal(part.array(), source.array())


def test_columns_that_do_not_fit_are_refused_in_words() -> None:
    assert "cannot be split into columns (2, 3)" in wrong(SplitColumns((2, 3)), (6, 4))
    assert "a row of 2 is no whole number" in wrong(SplitColumns((2, 2)), (6, 4), encodings=(FOURS,))
    assert "cannot be joined as columns (4, 4)" in wrong(JoinColumns((4, 4)), (2, 4), (2, 8))
    assert "cannot be joined as columns (4, 4)" in wrong(JoinColumns((4, 4)), (4,), (4,))
    assert "cannot stand side by side" in wrong(JoinColumns((4, 4)), (2, 4), (3, 4))
    assert "cannot stand side by side" in wrong(JoinColumns((4, 4)), (2, 4), (2, 4), encodings=(F32, FOURS))
    planes = Encoding("planes", 4, (4, 1), decoder=lambda rows, columns: np.zeros((len(rows), columns), np.float32))
    with pytest.raises(BestiaryError, match="planes tensor keeps its planes apart"):
        JoinColumns((4, 4)).apply([BlockTensor(np.zeros((2, 5), np.uint8), (2, 4), planes)] * 2)


def test_a_quantized_vector_is_split_at_its_blocks_only() -> None:
    assert "fours holds blocks of 4 weights; a row of 2" in wrong(Split((2, 10)), (12,), encodings=(FOURS,))


def test_a_join_of_other_counts_than_it_says_is_refused() -> None:
    """Its inverse would not give back what was joined."""
    assert "cannot be joined" in wrong(Join((2, 4)), (3, 4), (3, 4))
    assert "cannot be joined" in wrong(Join((4, 4)), (4,), (8,))
    assert "cannot be joined" in wrong(Join((2, 2, 2)), (2, 4), (2, 4))


def test_a_stack_of_another_count_or_of_unlike_shapes_is_refused() -> None:
    assert "3 tensors" in wrong(Stack(4), (2, 4), (2, 4), (2, 4))
    assert "cannot be stacked" in wrong(Stack(2), (2, 4), (3, 4))


def test_an_order_that_is_no_permutation_is_refused() -> None:
    for order in ((0, 0, 1), (0, 1, 3), (-1, 0, 1)):
        with pytest.raises(BestiaryError, match="no permutation"):
            Permute(order).inverse.apply(Permute(order).apply([made((3, 2), F32, 0)]))


def test_transforms_pickle() -> None:
    for case in CASES.values():
        assert pickle.loads(pickle.dumps(case.transform)) == case.transform


def test_add_is_float32_arithmetic_whatever_the_stored_type() -> None:
    values = np.array([[1.0, 2.5, -3.25]], np.float32)
    for tensor in (ArrayTensor(values), ArrayTensor(values.astype(np.float16)),
                   BlockTensor(to_bf16(values).view(np.uint8), (1, 3), BF16)):
        (result,) = Add(1 / 3).apply([tensor])
        assert result.encoding == F32
        np.testing.assert_array_equal(result.array(), values + np.float32(1 / 3))
