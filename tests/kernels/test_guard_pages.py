"""Buffers that begin or end at a page nobody may touch: the kernels stay inside them, on every isa and at odd sizes."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.encoding import Encoding
from bestiary.tensor import encode_plain
from bestiary_plugins.encodings import ENCODINGS

kernels = pytest.importorskip("bestiary_kernels")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages are Linux's")
HERE = Path(__file__).parent
HELD = {name: encoding for name, encoding in ENCODINGS.items() if encoding.layout or encoding.number}
SIDES = ("after", "before")
each_side = pytest.mark.parametrize("side", SIDES)


class Fenced:
    """Copies of arrays that end (or begin) where a page begins (or ends) that may not be touched."""

    def __init__(self, side: str) -> None:
        self._after, self._maps = side == "after", list[mmap.mmap]()
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        page = mmap.PAGESIZE
        whole = -(-array.nbytes // page) * page
        memory = mmap.mmap(-1, whole + 2 * page)
        self._maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for address in (start, start + page + whole):
            if self._protect(address, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = page + (whole - array.nbytes if self._after else 0)
        copy: NDArray[Any] = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
        copy[...] = array
        return copy


@pytest.fixture(params=SIDES)
def fenced(request: pytest.FixtureRequest) -> Fenced:
    return Fenced(request.param)


@each_side
def test_a_touched_guard_page_ends_the_process(side: str) -> None:
    """Or the other tests here would say nothing."""
    script = (f"import sys; sys.path.insert(0, {str(HERE)!r}); import numpy as np, ctypes\n"
              f"from test_guard_pages import Fenced\n"
              f"a = Fenced({side!r})(np.zeros(100, np.uint8))\n"
              f"ctypes.string_at(a.ctypes.data + ({100 if side == 'after' else -1}), 1)\n")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode < 0, ended.stderr


@pytest.mark.parametrize("encoding", HELD.values(), ids=HELD)
def test_rows_are_packed_and_decoded_from_within_their_buffers(encoding: Encoding, fenced: Fenced) -> None:
    from bestiary_plugins.backends.cpu_pack import kernel_layout

    for columns in (encoding.block_size, 3 * encoding.block_size) if encoding.quantized else (1, 31, 33):
        random = np.random.default_rng(columns)
        rows = random.integers(0, 100, (19, encoding.row_bytes(columns)), dtype=np.uint8)
        if encoding.number:
            rows = encode_plain(random.standard_normal((19, columns)).astype(np.float32), encoding)
        data, out = fenced(rows), fenced(np.zeros((19, columns), np.float32))
        layout = kernel_layout(encoding, columns)
        layout.decode(data, out)
        matrix = kernels.Matrix(layout, 19)
        matrix.pack(data, 0)
        one = fenced(np.zeros(columns, np.float32))
        for row in range(19):
            matrix.unpack(row, one)
            np.testing.assert_array_equal(one, out[row])


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_quantizers_stay_within_their_buffers(name: str, fenced: Fenced) -> None:
    from bestiary_kernels import _native

    rows = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    out = fenced(np.zeros((7, ENCODINGS[name].row_bytes(96)), np.uint8))
    getattr(_native, f"quantize_{name}_into")(fenced(rows), out)
    np.testing.assert_array_equal(out, getattr(kernels, f"quantize_{name}")(rows))


@pytest.mark.parametrize("isa", kernels.isas())
def test_a_forward_reads_and_writes_only_what_it_was_given(isa: str, fenced: Fenced) -> None:
    columns, rows, tokens = 33, 37, 5
    random = np.random.default_rng(1)
    table = fenced(random.standard_normal((tokens, columns)).astype(np.float32))
    plain = kernels.Layout("f32", columns, 4 * columns)
    matrix = kernels.Matrix(plain, rows)
    weights = fenced(random.standard_normal((rows, columns)).astype(np.float32))
    matrix.pack(weights.view(np.uint8), 0)
    program = kernels.Program(isa, 1, 1)
    x, normed, y = program.slot(columns, False), program.slot(columns, False), program.slot(rows, False)
    program.embed_rows(x, plain, table.view(np.uint8), False)
    vector = fenced(np.ones(columns, np.float32))
    program.norm("layer_norm", x, normed, vector, vector, 1e-5, columns, False)
    program.linear(normed, [(matrix, fenced(np.zeros(rows, np.float32)), y)], False)
    ids = fenced(np.arange(tokens, dtype=np.int32))
    program.begin(kernels.Cache(program, 1, 8, "f32", "f32"), ids, fenced(ids[None]), fenced(ids * 0), ids, None)
    program.run(0, program.steps)
    out = fenced(np.zeros((tokens, rows), np.float32))
    program.read(y, out)
    program.write(x, table)
    centred = table - table.mean(axis=1, keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) + 1) @ weights.T
    np.testing.assert_allclose(out, expected, atol=1e-4)


@each_side
def test_memory_of_the_kernels_is_fenced_where_that_is_asked_for(side: str) -> None:
    script = ("import bestiary_kernels as kernels\n"
              "def fences(): return sum(' ---p ' in line for line in open('/proc/self/maps'))\n"
              "before = fences()\n"
              "kept = [kernels.Matrix(kernels.Layout('f32', 9, 36), 16) for _ in range(50)]\n"
              "print(fences() - before)\n")
    for environment, least, most in (({"BESTIARY_GUARD_PAGES": side}, 50, 200), ({}, 0, 5)):
        ended = subprocess.run([sys.executable, "-c", script], env=dict(os.environ) | environment, check=True,
                               capture_output=True, text=True)
        assert least <= int(ended.stdout) <= most


@each_side
def test_weights_activations_caches_and_scratch_of_the_kernels_are_not_left(side: str) -> None:
    """The tests of products and of whole models again, in a process whose memory for the kernels is fenced."""
    # Under python -O, pytest would say that it keeps its asserts: the kernels are the same.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("BESTIARY_TEST_RECORD", "PYTHONOPTIMIZE")}
    files = [str(HERE / "test_products.py"), str(HERE.parent / "backends" / "test_cpu_meaning.py"),
             str(HERE.parent / "backends" / "test_cpu_bits.py")]
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k",
                            "formula or extreme or same_bits or meaning or numpy or isa", *files],
                           env=environment | {"BESTIARY_GUARD_PAGES": side}, cwd=HERE.parent.parent,
                           capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
