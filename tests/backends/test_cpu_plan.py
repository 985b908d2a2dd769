"""What surrounds the numbers: errors before anything runs, the cache, threads, forks and Ctrl-C."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.tensor import Absent, ArrayTensor, BlockTensor
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends.cpu import CpuBackend, CpuPlan
from bestiary_plugins.backends.cpu_needs import packed_bytes
from bestiary_plugins.backends.cpu_pack import why_not
from bestiary_plugins.encodings import K_QUANTS, OF_SPRING_2023
from bestiary_plugins.loaders.quantized.rows import IntegerRows
from tests.blocks import blocks

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
QUANTIZERS = {quantizer.name: quantizer for quantizer in bestiary_quantizers()}


@pytest.fixture(scope="module")
def plan(lab: Lab) -> CpuPlan:
    graph = lab.llama()
    return CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["q8_0"]), lab.limits(context=600))


@pytest.mark.parametrize("ids", [[3, 199], [-1, 4], [2**31 - 1]])
def test_ids_outside_the_vocabulary_are_refused_before_anything_runs(lab: Lab, plan: CpuPlan, ids: list[int]) -> None:
    cache = plan.new_cache()
    with pytest.raises(BestiaryError, match="vocabulary has 199"):
        plan.forward(lab.batch(ids), cache)
    assert cache.length(0) == 0


def test_bad_batches_are_refused(lab: Lab, plan: CpuPlan) -> None:
    cache = plan.new_cache()
    good = lab.batch([1, 2, 3])
    for bad, message in (
        (Batch(good.tokens, good.positions, np.array([0, 0, 4], np.int32), good.wanted), "sequence 4; the cache has 4"),
        (Batch(good.tokens, good.positions, good.sequences, np.array([3], np.int32)), "token 3 is wanted"),
        (Batch(good.tokens, good.positions[:, :2], good.sequences, good.wanted), "positions of 1 x 2"),
        (Batch(None, good.positions, good.sequences, good.wanted), "begins with token ids"),
        (lab.batch([]), "a batch of no tokens"),
    ):
        with pytest.raises(BestiaryError, match=message):
            plan.forward(bad, cache)
    with pytest.raises(BestiaryError, match="would hold 601 tokens; the context is 600"):
        plan.forward(lab.batch([1] * 601), cache)
    with pytest.raises(BestiaryError, match="known: hidden, logits"):
        plan.forward(good, cache, "embedding")
    graph = lab.llama(kv_heads=1)
    other = CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["q8_0"]), lab.limits())
    with pytest.raises(BestiaryError, match="another plan"):
        plan.forward(good, other.new_cache())
    assert cache.length(0) == 0


def test_what_the_backend_cannot_run_is_refused_by_name(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lab.llama()
    tensors = lab.weights(graph, QUANTIZERS["f32"])
    with pytest.raises(BestiaryError, match="unknown cache type 'q4_1'; the cpu backend knows: f32, f16, q8_0"):
        CpuBackend().compile(graph, tensors, lab.limits(cache_type_k="q4_1"))
    with pytest.raises(BestiaryError, match="'sse9' does not run here; these do: scalar"):
        CpuBackend("sse9").compile(graph, tensors, lab.limits())
    monkeypatch.setenv("BESTIARY_ISA", "mmx")
    with pytest.raises(BestiaryError, match="'mmx' does not run here"):
        CpuBackend().compile(graph, tensors, lab.limits())
    monkeypatch.setenv("BESTIARY_ISA", "scalar")
    assert CpuBackend().describe()["isa"] == "scalar"
    with pytest.raises(BestiaryError, match="has no tensor output"):
        CpuBackend().compile(graph, {n: t for n, t in tensors.items() if n != "output"}, lab.limits())
    with pytest.raises(BestiaryError, match=r"the shape \(2, 2\)"):
        CpuBackend().compile(graph, tensors | {"output": ArrayTensor(np.ones((2, 2), np.float32))}, lab.limits())


def test_the_cache_forgets_and_copies(lab: Lab, plan: CpuPlan) -> None:
    ids = lab.ids(300)
    cache = plan.new_cache()
    whole = plan.forward(lab.batch(ids), cache)
    assert cache.length(0) == 300 and cache.length(1) == 0
    cache.copy(0, 2, 270)
    cache.truncate(0, 100)
    assert (cache.length(0), cache.length(2)) == (100, 270)
    np.testing.assert_array_equal(plan.forward(lab.batch(ids[270:], 270, sequence=2), cache), whole[270:])
    np.testing.assert_array_equal(plan.forward(lab.batch(ids[100:], 100), cache), whole[100:])
    cache.copy(2, 0, 10)
    np.testing.assert_array_equal(plan.forward(lab.batch(ids[10:60], 10), cache), whole[10:60])
    for call in (lambda: cache.truncate(0, 999), lambda: cache.copy(1, 0, 1), lambda: cache.length(4),
                 lambda: cache.copy(0, -1, 1)):
        with pytest.raises(BestiaryError):
            call()


def test_what_a_truncated_sequence_held_leaves_no_trace(lab: Lab, plan: CpuPlan) -> None:
    """Not even where it was not a number: keys and values after the end are never looked at."""
    graph = lab.llama(layers=1)
    tensors = lab.weights(graph, QUANTIZERS["f32"])
    rows = tensors["token_embd"].array().copy()
    rows[7] = np.nan
    rows[8, 3] = np.inf
    poisoned = CpuBackend().compile(graph, tensors | {"token_embd": ArrayTensor(rows)}, lab.limits())
    ids = np.array([i for i in lab.ids(60) if i not in (7, 8)], np.int32)
    expected = lab.prefill(poisoned, ids)
    cache = poisoned.new_cache()
    poisoned.forward(lab.batch(ids[:20]), cache)
    assert np.isnan(poisoned.forward(lab.batch([7, 8, 7, 8], 20), cache)).any()
    cache.truncate(0, 20)
    np.testing.assert_array_equal(poisoned.forward(lab.batch(ids[20:], 20), cache), expected[20:])
    beside = poisoned.forward(Batch(np.array([ids[0], 7, ids[1]], np.int32), np.array([[0, 0, 1]], np.int32),
                                    np.array([1, 2, 1], np.int32), np.arange(3, dtype=np.int32)), cache)
    np.testing.assert_array_equal(beside[[0, 2]], expected[:2])


@pytest.mark.parametrize("isa", kernels.isas())
@pytest.mark.parametrize("name", QUANTIZERS)
def test_weights_that_are_no_numbers_do_no_harm(lab: Lab, isa: str, name: str) -> None:
    graph = lab.llama(layers=1)
    tensors = dict(lab.weights(graph, QUANTIZERS[name]))
    random = np.random.default_rng(0)
    for weight in ("0.q", "0.down", "output", "token_embd"):
        tensor = tensors[weight]
        noise = random.integers(0, 256, (tensor.rows, tensor.row_bytes), dtype=np.uint8)
        tensors[weight] = BlockTensor(noise, tensor.shape, tensor.encoding)
    compiled = CpuBackend(isa).compile(graph, tensors, lab.limits())
    ids = lab.ids(41)
    np.testing.assert_array_equal(lab.prefill(compiled, ids), lab.in_pieces(compiled, ids, [1]))


def test_the_cache_grows_as_it_fills(lab: Lab) -> None:
    graph = lab.llama()
    compiled = CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["f32"]), lab.limits(context=1 << 20))
    cache = compiled.new_cache()
    assert cache.nbytes == 0
    compiled.forward(lab.batch([1, 2]), cache)
    one = cache.nbytes
    assert one == 2 * 256 * 2 * 32 * 2  # layers x positions x (keys, values) x width x f16
    compiled.forward(lab.batch([1] * 255, 2), cache)
    assert cache.nbytes == 2 * one
    cache.truncate(0, 3)
    assert cache.nbytes == one


def test_an_encoding_without_a_layout_is_decoded_and_that_is_said_once(
        lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    def decoder(rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(rows).view(np.int8).astype(np.float32) / np.float32(16)

    strange = Encoding("strange", 1, (1,), decoder=decoder)
    random = np.random.default_rng(0)
    for columns, held in ((64, "q8_0"), (50, "bf16")):
        caplog.clear()
        weight = BlockTensor(random.integers(0, 256, (40, columns), dtype=np.uint8), (40, columns), strange)
        rows = random.standard_normal((5, columns)).astype(np.float32)
        graph, tensors = lab.single(weight, rows)
        with caplog.at_level(logging.WARNING, "bestiary"):
            compiled = CpuBackend().compile(graph, tensors, lab.limits())
        assert [record.message for record in caplog.records] == [
            "the cpu backend's kernels do not hold strange (there is code to decode it, and none to multiply with it): "
            f"such weights are decoded and kept as {held}"]
        got = lab.prefill(compiled, np.arange(5, dtype=np.int32))
        np.testing.assert_allclose(got, rows @ weight.array().T, atol=2.0)


@pytest.mark.parametrize("encoding", [one for one in (*OF_SPRING_2023, *K_QUANTS) if why_not(one) is None],
                         ids=lambda encoding: str(encoding.name))
def test_what_old_blocks_and_super_blocks_take_when_they_are_packed_is_known_before(
        lab: Lab, encoding: Encoding) -> None:
    weight = blocks(encoding, 37, 4 * max(encoding.block_size, 32))  # its scales are no f16 numbers
    graph, tensors = lab.single(weight, np.zeros((3, weight.columns), np.float32))
    held = CpuBackend().compile(graph, tensors, lab.limits()).weights
    assert packed_bytes(graph, {name: Absent(tensor.shape, tensor.encoding) for name, tensor in tensors.items()}) \
        == held.nbytes


def test_progress_ends_at_the_whole(lab: Lab) -> None:
    graph = lab.llama()
    seen: list[tuple[int, int, str]] = []
    CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["q4_0"]), lab.limits(),
                         progress=lambda *given: seen.append(given))
    assert seen and seen[-1][0] == seen[-1][1]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_a_closed_plan_says_so(lab: Lab) -> None:
    graph = lab.llama()
    compiled = CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["f32"]), lab.limits())
    cache = compiled.new_cache()
    compiled.close()
    with pytest.raises(BestiaryError, match="closed"):
        compiled.forward(lab.batch([1]), cache)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
def test_ctrl_c_ends_a_long_forward_and_leaves_the_cache_as_it_was(lab: Lab) -> None:
    graph = lab.llama(hidden=160, ffn=480, layers=6)
    compiled = CpuBackend("scalar").compile(graph, lab.weights(graph, QUANTIZERS["f32"]), lab.limits(threads=2))
    ids = lab.ids(60)
    cache = compiled.new_cache()
    before = compiled.forward(lab.batch(ids[:10]), cache)

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            for _ in range(200):  # the first is long enough, wherever this runs
                compiled.forward(lab.batch(np.resize(ids, 900), 10), compiled.new_cache())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert cache.length(0) == 10
    cache.truncate(0, 0)
    np.testing.assert_array_equal(compiled.forward(lab.batch(ids[:10]), cache), before)


def test_a_closed_plan_s_weights_are_free_at_once(lab: Lab) -> None:
    graph = lab.llama(layers=1)
    plan = CpuBackend().compile(graph, lab.weights(graph, QUANTIZERS["q8_0"]), lab.limits())
    held = weakref.ref(plan.weights)
    gc.disable()
    try:
        plan.close()
        assert held() is None
    finally:
        gc.enable()


PLAN = """
import gc, os, sys, threading
import numpy as np
from bestiary.backend import Batch, Limits
from bestiary.graph import Trace
from bestiary.tensor import ArrayTensor
from bestiary_plugins.backends.cpu import CpuBackend

g = Trace()
y = g.linear(g.embed("e", 50, 256), "w", 5000)
random = np.random.default_rng(0)
tensors = {"e": ArrayTensor(random.standard_normal((50, 256), dtype=np.float32)),
           "w": ArrayTensor(random.standard_normal((5000, 256), dtype=np.float32))}
plan = CpuBackend().compile(g.finish(y, y), tensors, Limits(context=64, threads=3))
n = np.arange(9, dtype=np.int32)
batch = Batch(n, n[None], n * 0, n)
before = plan.forward(batch, plan.new_cache())
child = os.fork()
"""
USED_AFTERWARDS = """
after = plan.forward(batch, plan.new_cache())
if not np.array_equal(before, after):
    os._exit(3)
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
FREED_AFTERWARDS = """
if child == 0:  # its threads may have the memory that the plan's had
    go = threading.Event()
    for _ in range(8):
        threading.Thread(target=go.wait, daemon=True).start()
    del plan
    gc.collect()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("then", [USED_AFTERWARDS, FREED_AFTERWARDS], ids=["used", "freed"])
def test_threads_of_a_plan_do_not_come_along_in_a_fork(then: str) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PLAN + then], timeout=60, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr


def test_what_the_kernels_lack_is_said_for_users() -> None:
    for group in (172, 8):  # a scale a row; of 172 columns, 4 have one scale wherever they begin
        lacking = why_not(IntegerRows(8, 172, group, "f32", True).encoding)
        assert lacking == "its rows or groups are no multiple of 32 columns"
    assert why_not(IntegerRows(8, 192, 64, "f32", True).encoding) is None
