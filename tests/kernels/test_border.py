"""Nothing crosses the border into the kernels unchecked: addresses, lengths, slots."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary_plugins.backends.cpu_pack import kernel_layout

kernels = pytest.importorskip("bestiary_kernels")

CODES = (4, tuple(range(16, 144, 4)), 144, 0, 36)
SCALE = ("f16", (16, (0,), 144, 0, 36), (), 0, False)


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
    "a scale beyond the row": {"scale": ("f16", (16, (280,), 0, 0, 36), (), 0, False)},
    "a scale of the wrong width": {"scale": ("f16", (32, (0,), 144, 0, 36), (), 0, False)},
    "a scale of an unknown type": {"scale": ("f64", (64, (0,), 0, 0, 36), (), 0, False)},
    "no offsets": {"codes": ((4, (), 144, 0, 36),)},
    "codes too wide for their kind": {"codes": ((5, CODES[1], 0, 0, 36),)},
    "an impossible group": {"group": 24},
    "places in no codebook": {"kind": "book"},
    "a codebook too short": {"kind": "book", "codebook": (0.0,) * 15, "rounded": (0,) * 15},
    "a codebook that is not rounded": {"kind": "book", "codebook": (0.0,) * 16},
    "a codebook beyond 8 bits": {"kind": "book", "codebook": (0.0,) * 16, "rounded": (-128,) * 16},
    "a codebook of signed codes": {"kind": "book", "codebook": (0.0,) * 16, "rounded": (0,) * 16, "signed": True},
    "a codebook of plain nibbles": {"codebook": (0.0,) * 16, "rounded": (0,) * 16},
    "a group that wraps": {"group": 2**63 - 1},
    "a group beyond any row": {"group": 1 << 62},
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
    x, y, z = program.slot(64, False), program.slot(20, False), program.slot(64, False)
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
        lambda: program.rope(x, x, 0, 16, 0, False),
        lambda: program.slice(x, y, 45, False),
        lambda: program.slice(x, y, -1, False),
        lambda: program.slice(x, y, 2**63 - 10, False),
        *(lambda columns=columns: program.order(x, z, columns, False) for columns in (
            np.arange(1, 65, dtype=np.int32), np.arange(-1, 63, dtype=np.int32), np.arange(63, dtype=np.int32),
            np.full(64, 2**31 - 1, np.int32), np.full(64, -2**31, np.int32), np.zeros(0, np.int32), np.arange(64),
            np.arange(128, dtype=np.int32)[::2])),
        lambda: program.order(x, x, np.arange(64, dtype=np.int32), False),
        lambda: program.order(x, y, np.arange(64, dtype=np.int32), False),
        lambda: program.order(y, x, np.arange(20, dtype=np.int32), False),
        lambda: program.order(x, 7, np.arange(64, dtype=np.int32), False),
        lambda: program.order(-1, x, np.arange(64, dtype=np.int32), False),
        lambda: program.gather(x, y),
        lambda: program.embed_rows(y, layout(), np.zeros((5, 36), np.uint8), False),
        lambda: program.embed_rows(x, layout(), np.zeros((5, 35), np.uint8), False),
        lambda: program.attention(x, x, x, x, 3, 1, 1.0, 0.0, 0, (), "f16", "f16", False),
        lambda: program.attention(x, x, x, x, 0, 0, 1.0, 0.0, 0, (), "f16", "f16", False),
        lambda: program.attention(x, x, x, x, 4, 4, 1.0, 0.0, 0, (1.0,), "f16", "f16", False),
        lambda: program.attention(x, x, x, x, 4, 4, 1.0, 0.0, 0, (), "f16", "q3", False),
        lambda: kernels.Cache(program, 1, 8, "f16", "q3"),
        lambda: program.run(0, 1),
        lambda: program.run(0, 0),
        lambda: program.commit(),
        lambda: program.read(5, np.empty((1, 1), np.float32)),
        lambda: program.read(1 << 20, np.empty((1, 1), np.float32)),
        lambda: program.read(-1, np.empty((1, 1), np.float32)),
        lambda: program.write(1 << 20, np.empty((1, 1), np.float32)),
        lambda: program.slot(0, False),
        lambda: kernels.Program("scalar", 0, 1),
        lambda: kernels.Program("quantum", 1, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert program.steps == 0


def test_experts_check_every_slot_and_matrix() -> None:
    square = kernels.Matrix(kernels.Layout("f32", 32, 128), 32)
    other = kernels.Matrix(kernels.Layout("f32", 16, 64), 32)

    def add(logits: int = 2, experts: int = 2, top: int = 1, down: Any = square, out: int = 32) -> None:
        program = kernels.Program("scalar", 1, 1)
        x, router, y = program.slot(32, False), program.slot(logits, False), program.slot(out, False)
        spare = tuple(program.slot(32, False) for _ in range(4))
        program.experts(x, router, y, [(square, square, down)] * experts, spare, top, True, False)
        assert program.steps == 1

    add()
    for wrong in ({"logits": 3}, {"experts": 0}, {"top": 0}, {"top": 3}, {"down": other}, {"out": 31}):
        with pytest.raises(ValueError):
            add(**wrong)


def test_a_rope_that_leaves_its_head_is_refused() -> None:
    program = kernels.Program("scalar", 1, 1)
    x = program.slot(64, False)
    program.rope_table(0, [0.1] * 16, True, 1.0, 0)
    for start in (33, 2**63 - 32, 2**63 - 1):
        with pytest.raises(ValueError, match="rope table 0"):
            program.rope(x, x, 0, 64, start, False)


def test_attention_of_the_wanted_tokens_takes_slots_of_any_number() -> None:
    for order in itertools.permutations(range(4)):
        program = kernels.Program("scalar", 1, 1)
        tails, slots = (True, False, False, True), [0] * 4  # q, k, v and what comes out
        for place in order:
            slots[place] = program.slot(64, tails[place])
        program.attention(*slots, 1, 1, 1.0, 0.0, 0, (), "f16", "f16", True)
        for place in range(4):
            wrong = list(slots)
            wrong[place] = program.slot(64, not tails[place])
            with pytest.raises(ValueError, match=f"slot {wrong[place]} has the rows of"):
                program.attention(*wrong, 1, 1, 1.0, 0.0, 0, (), "f16", "f16", True)


def test_steps_and_slots_agree_on_whose_rows_they_have() -> None:
    program = kernels.Program("scalar", 1, 1)
    matrix, rows = kernels.Matrix(layout(), 64), np.zeros((5, 36), np.uint8)
    full, tail = program.slot(64, False), program.slot(64, True)
    program.rope_table(0, [0.1] * 16, True, 1.0, 0)
    calls: list[Callable[[], object]] = [
        lambda: program.gather(tail, tail),
        lambda: program.gather(full, full),
        lambda: program.embed_rows(tail, layout(), rows, False),
        lambda: program.embed_matrix(tail, matrix, False),
        lambda: program.rope(full, tail, 0, 64, 0, False),
        lambda: program.rope(tail, full, 0, 64, 0, False),
        lambda: program.rope(full, full, 0, 64, 0, True),
        *(lambda slots=slots: program.attention(*slots, 1, 1, 1.0, 0.0, 0, (), "f16", "f16", False)
          for slots in ((tail, full, full, full), (full, tail, full, full), (full, full, tail, full),
                        (full, full, full, tail))),
        *(lambda slots=slots: program.attention(*slots, 1, 1, 1.0, 0.0, 0, (), "f16", "f16", True)
          for slots in ((full, full, full, tail), (tail, tail, full, tail), (tail, full, tail, tail),
                        (tail, full, full, full))),
    ]
    for is_tail in (False, True):
        here, other = (tail, full) if is_tail else (full, tail)
        for a, out in ((here, other), (other, here)):
            calls += [
                lambda a=a, out=out, t=is_tail: program.each("silu", a, a, out, 0.0, t),  # type: ignore[misc]
                lambda a=a, out=out, t=is_tail: program.norm("rms_norm", a, out, None, None, 1e-5, 64, t),  # type: ignore[misc]
                lambda a=a, out=out, t=is_tail: program.slice(a, out, 0, t),  # type: ignore[misc]
                lambda a=a, out=out, t=is_tail: program.order(a, out, np.arange(64, dtype=np.int32), t),  # type: ignore[misc]
                lambda a=a, out=out, t=is_tail: program.linear(a, [(matrix, None, out)], t),  # type: ignore[misc]
            ]
        calls.append(lambda h=here, o=other, t=is_tail: program.each("add", h, o, h, 0.0, t))  # type: ignore[misc]
    for call in calls:
        with pytest.raises(ValueError, match="has the rows of"):
            call()
    assert program.steps == 1


class Forward:
    """A program with attention, over a plain table of ten rows, and a cache."""

    def __init__(self, weight: Any = None, context: int = 1 << 30) -> None:
        self.program = kernels.Program("scalar", 2, 2)
        x, y = self.program.slot(64, False), self.program.slot(64, False)
        rows = np.arange(640, dtype=np.float32).reshape(10, 64).view(np.uint8)
        self.program.embed_rows(x, kernels.Layout("f32", 64, 256), rows, False)
        self.program.norm("rms_norm", x, x, weight, None, 1e-5, 64, False)
        self.program.attention(x, x, x, y, 1, 1, 1.0, 0.0, 0, (), "f32", "f32", False)
        self.slot, self.cache = y, kernels.Cache(self.program, 2, context, "f32", "f32")

    def begin(self, tokens: int, cache: Any = None) -> None:
        zeros = np.zeros(tokens, np.int32)
        self.program.begin(cache or self.cache, zeros, zeros[None], zeros, zeros[:1], None)

    def run(self) -> Any:
        self.program.run(0, self.program.steps)
        out = np.empty((self.program.rows(self.slot), 64), np.float32)
        self.program.read(self.slot, out)
        return out


def test_nothing_runs_that_was_not_begun() -> None:
    forward = Forward()
    for call in (forward.run, forward.program.commit):
        with pytest.raises(ValueError, match="no forward was begun"):
            call()
    assert forward.program.rows(forward.slot) == 0
    forward.begin(3)
    forward.run()
    forward.program.commit()
    for call in (forward.run, forward.program.commit):
        with pytest.raises(ValueError, match="no forward was begun"):
            call()
    forward.begin(3)
    forward.program.end()
    with pytest.raises(ValueError, match="no forward was begun"):
        forward.run()
    assert forward.cache.length(0) == 3


def test_a_cache_that_was_changed_since_ends_the_forward() -> None:
    forward = Forward()
    forward.begin(600)
    forward.run()
    forward.program.commit()
    changes: list[Callable[[], object]] = [lambda: forward.cache.truncate(0, 300),
                                           lambda: forward.cache.copy(0, 1, 7), lambda: forward.cache.copy(1, 0, 7)]
    for change in changes:
        forward.begin(600)
        change()
        for call in (forward.run, forward.program.commit):
            with pytest.raises(ValueError, match="cache was changed since"):
                call()
    assert (forward.cache.length(0), forward.cache.length(1)) == (7, 7)


def test_a_cache_lives_as_long_as_its_forward() -> None:
    forward = Forward()
    forward.begin(600)
    expected = forward.run()
    forward.begin(600, kernels.Cache(forward.program, 2, 1000, "f32", "f32"))
    gc.collect()
    np.testing.assert_array_equal(forward.run(), expected)
    forward.program.commit()


def test_a_running_forward_is_left_alone() -> None:
    """Everything else that would touch its cache or its slots says so, and nothing ends."""
    forward, other = Forward(), Forward()
    tried, refused, stop = 0, 0, threading.Event()
    changes = (lambda: forward.cache.truncate(0, 0), lambda: forward.cache.copy(1, 0, 0), lambda: forward.begin(900),
               lambda: other.begin(900, forward.cache), lambda: forward.program.end())

    def disturb() -> None:
        nonlocal tried, refused
        while not stop.is_set():
            for change in changes:
                tried += 1
                try:
                    change()
                except ValueError:
                    refused += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(10):
            try:
                forward.begin(900)
                forward.run()
                forward.program.commit()
            except ValueError:
                pass
    finally:
        stop.set()
        thread.join()
    assert tried > refused >= 0
    forward.cache.truncate(0, 0)
    forward.begin(5)
    assert np.isfinite(forward.run()).all()


def test_objects_are_made_once_and_whole() -> None:
    for kind in (kernels.Layout, kernels.Matrix, kernels.Cache, kernels.Program):
        with pytest.raises(TypeError):
            kind.__new__(kind)
    made = layout()
    matrix, program = kernels.Matrix(made, 16), kernels.Program("scalar", 1, 1)
    cache = kernels.Cache(program, 1, 10, "f32", "f32")
    for thing, given in ((made, ("f32", 1 << 20, 1 << 22)), (matrix, (made, 32)), (program, ("scalar", 2, 2)),
                         (cache, (program, 2, 20, False, False))):
        with pytest.raises(TypeError, match="made already"):
            thing.__init__(*given)
    assert (made.columns, matrix.rows, cache.sequences) == (64, 16, 1)


def test_the_kernels_hold_their_own_norms() -> None:
    weight = np.ones(64, np.float32)
    forward = Forward(weight=weight)
    forward.begin(5)
    expected = forward.run()
    weight.resize(1 << 22, refcheck=False)
    weight[:] = 7
    forward.begin(5)
    np.testing.assert_array_equal(forward.run(), expected)


POOR = """
import resource, sys
import numpy as np
import bestiary_kernels as kernels
from tests.kernels.test_border import Forward

def room(megabytes):
    now = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))

few = Forward()
few.begin(600); expected = few.run(); few.program.commit(); held = few.cache.nbytes
room(40)
try:
    few.begin(200000)
    sys.exit("there was enough memory")
except MemoryError:
    pass
assert few.cache.nbytes == held and few.cache.length(0) == 600, few.cache.nbytes
try:
    few.run()
    sys.exit("it ran")
except ValueError:
    pass
assert few.program.rows(few.slot) == 0
few.cache.truncate(0, 0)
few.begin(600); assert np.array_equal(few.run(), expected)
many = kernels.Program("scalar", 1000, 1000)
x = many.slot(64, False)
many.embed_rows(x, kernels.Layout("f32", 64, 256), np.zeros((10, 256), np.uint8), False)
cache = kernels.Cache(many, 1, 100, "f32", "f32")
zeros = np.zeros(50, np.int32)
many.begin(cache, zeros, zeros[None], zeros, zeros, None)
many.run(0, 1)
many.commit()
assert 1 <= many.threads < 1000, many.threads
print("fine")
"""


@pytest.mark.machine
@pytest.mark.skipif(sys.platform != "linux" or "libasan" in os.environ.get("LD_PRELOAD", ""),
                    reason="limits of the address space are Linux's, and a sanitizer needs all of it")
def test_too_little_memory_and_too_few_threads_are_survived() -> None:
    paths = os.pathsep.join(path for path in [str(Path(__file__).parents[2]), *sys.path] if path)
    done = subprocess.run([sys.executable, "-c", POOR], timeout=60, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": paths})
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
