"""ggml's types: every one of today decodes to what its own reference gives, and no bytes do any harm."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary_plugins import grids
from bestiary_plugins.encodings import ENCODINGS
from bestiary_plugins.loaders.gguf import Gguf
from bestiary_plugins.loaders.gguf_types import FILE_TYPES, TENSOR_TYPES

Bytes = NDArray[np.uint8]


def decodable() -> list[str]:
    """The types that the package turns into numbers."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        try:
            quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name.lower())
    return found


def random_rows(encoding: Encoding, rows: int = 8, weights: int = 1 << 13, seed: int = 0) -> Bytes:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (rows, encoding.row_bytes(weights)), dtype=np.uint8)


@pytest.mark.parametrize("name", decodable())
def test_random_blocks_of_each_type_that_the_gguf_package_decodes_give_the_same_numbers(name: str) -> None:
    assert name in ENCODINGS, f"the gguf package has learnt {name}; it is to be read here too"
    encoding = ENCODINGS[name]
    data = random_rows(encoding)
    if name == "mxfp4":  # 255 is no number by the OCP's specification; the package takes it for 2 ** 128
        data[:, ::17] = np.minimum(data[:, ::17], 254)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(data, gguf.GGMLQuantizationType[name.upper()]).astype(np.float32)
    ours = encoding.decode(data, 1 << 13)
    assert np.isfinite(theirs).mean() > 0.9
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("grid", "theirs"), [
    (grids.IQ1, "IQ1_S"), (grids.IQ2_XXS, "IQ2_XXS"), (grids.IQ2_XS, "IQ2_XS"), (grids.IQ2_S, "IQ2_S"),
    (grids.IQ3_XXS, "IQ3_XXS"), (grids.IQ3_S, "IQ3_S")], ids=lambda value: value if isinstance(value, str) else "")
def test_each_grid_has_the_points_of_the_gguf_package_in_its_order(grid: grids.Grid, theirs: str) -> None:
    quantized = getattr(quants, theirs)
    quantized.init_grid()
    np.testing.assert_array_equal(grids.points(grid), quantized.grid.reshape(quantized.grid_shape))


@pytest.mark.parametrize(("name", "bits", "numbers"), [("q1_0", 1, (-1, 1)), ("q2_0", 2, (-1, 0, 1, 2))])
def test_the_types_that_the_package_cannot_decode_follow_their_plain_formula(
        name: str, bits: int, numbers: tuple[int, ...]) -> None:
    """An f16 scale, then codes side by side, the first in the lowest bits."""
    encoding = ENCODINGS[name]
    data = random_rows(encoding).reshape(-1, 18)
    scale = np.random.default_rng(1).standard_normal((len(data), 1)).astype("<f2")
    data[:, :2] = scale.view(np.uint8)
    places = np.unpackbits(data[:, 2:], axis=1, bitorder="little").reshape(len(data), -1, bits) @ (1 << np.arange(bits))
    wanted = np.array(numbers, np.float32)[places] * scale.astype(np.float32)
    np.testing.assert_array_equal(encoding.decode(data, encoding.block_size), wanted)


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_may_be_decoded_a_few_at_a_time_and_where_they_stand(name: str) -> None:
    encoding = ENCODINGS[name]
    data = random_rows(encoding, 5, 512)
    whole = encoding.decode(data, 512)
    wider = np.zeros((10, data.shape[1] + 3), np.uint8)
    wider[::2, 1:-2] = data
    wider.setflags(write=False)
    np.testing.assert_array_equal(encoding.decode(wider[::2, 1:-2], 512), whole)
    parts = [encoding.decode(data[:2], 512), encoding.decode(data[2:], 512)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert encoding.decode(data[:0], 512).shape == (0, 512)


@pytest.mark.parametrize("name", ENCODINGS)
def test_damaged_blocks_decode_to_something_without_a_word(name: str) -> None:
    """Scales that are infinite or no numbers give what is not finite; every warning would be an error here."""
    encoding = ENCODINGS[name]
    data = random_rows(encoding, 260, 512, 7)
    data[:256] = np.arange(256, dtype=np.uint8)[:, None]
    values = encoding.decode(data, 512)
    assert values.dtype == np.float32
    assert values.shape == (260, 512)


@pytest.mark.parametrize("name", ENCODINGS)
def test_damaged_blocks_are_packed_by_the_cpu_backend(name: str) -> None:
    """As what its kernels hold, or decoded and quantized."""
    kernels = pytest.importorskip("bestiary_kernels")
    from bestiary.tensor import BlockTensor
    from bestiary_plugins.backends import cpu_pack

    encoding = ENCODINGS[name]
    data = random_rows(encoding, 32, 512, 7)
    data[:16] = np.array([0, 255] * 8, np.uint8)[:, None]
    tensor = BlockTensor(data, (32, 512), encoding)
    held = cpu_pack.stored_as(tensor, True)
    matrix = kernels.Matrix(cpu_pack.kernel_layout(held, 512), 32)
    matrix.pack(cpu_pack._read(tensor, 0, 32, held), 0)
    matrix.unpack(31, np.empty(512, np.float32))


def test_every_type_code_has_an_encoding_but_for_integers_and_what_is_in_no_file() -> None:
    names = {kind.name for kind in TENSOR_TYPES.values()}
    assert names - set(ENCODINGS) == {"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_k"}
    for kind in TENSOR_TYPES.values():
        if kind.name in ENCODINGS:
            assert ENCODINGS[kind.name].block_size == kind.block_size
            assert ENCODINGS[kind.name].block_bytes == (kind.block_bytes,)
    ours = {encoding.name for encoding in Gguf.encodings}
    assert ours >= {name for name in names if name.startswith(("iq", "tq", "mx", "nv", "q1", "q2")) or name[2:] == "_k"
                    } - {"q8_k"}
    assert set(FILE_TYPES) == names & set(ENCODINGS)
