"""Nothing crosses the border into the kernels unchecked: addresses, lengths, slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary_plugins.backends.cpu_pack import kernel_layout

kernels = pytest.importorskip("bestiary_kernels")

CODES = (4, tuple(range(16, 144, 4)), 144, 0, 36)
SCALE = ("f16", (16, (0,), 144, 0, 36), (), 0)


def layout(**given: Any) -> Any:
    columns, row_bytes, kind = given.pop("columns", 64), given.pop("row_bytes", 36), given.pop("kind", "nibble")
    return kernels.Layout(kind, columns, row_bytes, **({"group": 32, "codes": (CODES,), "scale": SCALE} | given))


BAD: dict[str, dict[str, Any]] = {
    "codes beyond the row": {"codes": ((4, tuple(range(20, 148, 4)), 144, 0, 36),)},
    "a stride that leaves the row": {"codes": ((4, CODES[1], 145, 0, 36),)},
    "a negative stride": {"codes": ((4, CODES[1], -144, 0, 36),)},
    "a negative offset": {"codes": ((4, (-4, *CODES[1][1:]), 144, 0, 36),)},
    "a huge offset": {"codes": ((4, (1 << 62, *CODES[1][1:]), 0, 0, 36),)},
    "a plane beyond the row": {"codes": ((4, CODES[1], 144, 1, 36),)},
    "a scale beyond the row": {"scale": ("f16", (16, (280,), 0, 0, 36), (), 0)},
    "a scale of the wrong width": {"scale": ("f16", (32, (0,), 144, 0, 36), (), 0)},
    "a scale of an unknown type": {"scale": ("f64", (64, (0,), 0, 0, 36), (), 0)},
    "no offsets": {"codes": ((4, (), 144, 0, 36),)},
    "codes too wide for their kind": {"codes": ((5, CODES[1], 0, 0, 36),)},
    "an impossible group": {"group": 24},
    "no group": {"group": 0},
    "an impossible zero": {"zero": 1 << 20},
    "no columns": {"columns": 0},
    "too many columns": {"columns": 1 << 50},
    "more columns than bytes": {"columns": 96},
    "an unknown kind": {"kind": "crumb"},
    "plain numbers of another size": {"kind": "f32"},
}


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_layouts_that_leave_their_row_are_refused(given: dict[str, Any]) -> None:
    layout()
    with pytest.raises((ValueError, OverflowError)):
        layout(**given)


def test_the_backend_names_the_encoding_that_leaves_its_block() -> None:
    bad = Encoding("wide", 32, (18,), Layout((Bits(4, tuple(range(32, 160, 4)), 144),), 32,
                                             Factor("f16", Bits(16, (0,), 144)), offset=8))
    with pytest.raises(BestiaryError, match="encoding wide: a field of 4 bits reaches from bit"):
        kernel_layout(bad, 64)


def test_matrices_check_every_length() -> None:
    matrix = kernels.Matrix(layout(), 20)
    good = np.zeros((4, 36), np.uint8)
    matrix.pack(good, 16)
    for rows, start in ((good, 17), (good, -1), (good, 1 << 62), (np.zeros((4, 35), np.uint8), 0),
                        (np.zeros((21, 36), np.uint8), 0)):
        with pytest.raises((ValueError, OverflowError)):
            matrix.pack(rows, start)
    out = np.empty(64, np.float32)
    for row in (-1, 20, 1 << 40):
        with pytest.raises(ValueError, match="row"):
            matrix.unpack(row, out)
    with pytest.raises(ValueError, match="63 columns"):
        matrix.unpack(0, out[:63])
    with pytest.raises(ValueError):
        kernels.Matrix(layout(), 0)
    with pytest.raises((ValueError, MemoryError)):
        kernels.Matrix(layout(), 1 << 40)


def test_programs_check_every_slot() -> None:
    program = kernels.Program("scalar", 1, 1)
    matrix = kernels.Matrix(layout(), 20)
    x, y = program.slot(64, False), program.slot(20, False)
    calls: list[Callable[[], object]] = [
        lambda: program.linear(y, [(matrix, None, x)], False),
        lambda: program.linear(x, [(matrix, None, x)], False),
        lambda: program.linear(x, [(matrix, np.zeros(19, np.float32), y)], False),
        lambda: program.linear(x, [(matrix, None, 7)], False),
        lambda: program.norm("rms_norm", x, x, np.zeros(63, np.float32), None, 1e-5, 64, False),
        lambda: program.norm("rms_norm", x, x, None, None, 1e-5, 0, False),
        lambda: program.norm("rms_norm", x, x, None, None, 1e-5, 24, False),
        lambda: program.each("add", x, y, x, 0.0, False),
        lambda: program.each("mod", x, x, x, 0.0, False),
        lambda: program.rope(x, x, 0, 16, 0),
        lambda: program.slice(x, y, 45, False),
        lambda: program.slice(x, y, -1, False),
        lambda: program.gather(x, y),
        lambda: program.embed_rows(y, layout(), np.zeros((5, 36), np.uint8), False),
        lambda: program.embed_rows(x, layout(), np.zeros((5, 35), np.uint8), False),
        lambda: program.attention(x, x, x, x, 3, 1, 1.0, 0.0, 0, (), True, True),
        lambda: program.attention(x, x, x, x, 0, 0, 1.0, 0.0, 0, (), True, True),
        lambda: program.attention(x, x, x, x, 4, 4, 1.0, 0.0, 0, (1.0,), True, True),
        lambda: program.run(0, 1),
        lambda: program.run(0, 0),
        lambda: program.commit(),
        lambda: program.read(5, np.empty((1, 1), np.float32)),
        lambda: program.slot(0, False),
        lambda: kernels.Program("scalar", 0, 1),
        lambda: kernels.Program("quantum", 1, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert program.steps == 0
