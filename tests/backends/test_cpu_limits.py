"""The cpu backend between threads, and where memory or threads run out: it waits or says so, and goes on."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary import readahead
from bestiary.errors import BestiaryError
from bestiary.graph import Trace
from bestiary_plugins import bestiary_quantizers
from bestiary_plugins.backends import cpu_pack
from bestiary_plugins.backends.cpu import CpuBackend, CpuPlan

if TYPE_CHECKING:
    from tests.backends.conftest import Lab

kernels = pytest.importorskip("bestiary_kernels")
F32 = next(quantizer for quantizer in bestiary_quantizers() if quantizer.name == "f32")


@pytest.fixture
def plan(lab: Lab) -> CpuPlan:
    graph = lab.llama()
    return CpuBackend().compile(graph, lab.weights(graph, F32), lab.limits(threads=2, context=5000))


def at_once(*functions: Callable[[], object]) -> None:
    """Each in a thread of its own; raises what the first of them raised."""
    raised: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if raised:
        raise raised[0]


def test_a_cache_is_changed_between_forwards_never_within(lab: Lab, plan: CpuPlan) -> None:
    cache, ids = plan.new_cache(), lab.ids(700)
    expected = plan.forward(lab.batch(ids, wanted=[699]), plan.new_cache())
    ends: list[NDArray[np.float32]] = []

    def forwards() -> None:
        for _ in range(8):
            ends.append(plan.forward(lab.batch(ids, wanted=[699], sequence=1), cache))
            cache.truncate(1, 0)

    def changes() -> None:
        for _ in range(300):
            cache.copy(2, 0, 0)
            cache.truncate(0, 0)
            assert cache.nbytes >= 0 and cache.length(1) in (0, 700)

    at_once(forwards, changes)
    for end in ends:
        np.testing.assert_array_equal(end, expected)


def test_threads_take_turns_with_a_plan_and_with_a_cache(lab: Lab, plan: CpuPlan) -> None:
    other = CpuBackend().compile(plan.graph, lab.weights(plan.graph, F32), plan.limits, share=plan)
    cache, batch = plan.new_cache(), lab.batch(lab.ids(200), wanted=[])

    def run(compiled: CpuPlan) -> Callable[[], None]:
        def forwards() -> None:
            for _ in range(5):
                compiled.forward(batch, cache)

        return forwards

    at_once(run(plan), run(plan), run(other), run(other))
    assert cache.length(0) == 4 * 5 * 200


inside: Callable[[], Any] | None = None


def meddling(x: NDArray[np.float32]) -> NDArray[np.float32]:
    if inside is not None:
        inside()
    return x


def test_an_operation_that_meddles_with_its_own_forward_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Trace()
    for _ in g.layers(1):
        x = g.embed("e", 20, 32)
        y = g.call(f"{__name__}:meddling", g.attention(x, x, x, 2, 2), width=32)
    graph = g.finish(g.linear(y, "out", 20), y)
    made = CpuBackend().compile(graph, lab.weights(graph, F32), lab.limits())
    cache, batch = made.new_cache(), lab.batch([1, 2, 3])
    expected = made.forward(batch, cache)
    calls: list[Callable[[], object]] = [lambda: cache.truncate(0, 0), lambda: cache.copy(1, 0, 0)]
    for call in calls:
        monkeypatch.setattr(f"{__name__}.inside", call)
        with pytest.raises(BestiaryError, match="its cache was changed since"):
            made.forward(batch, cache)
    monkeypatch.setattr(f"{__name__}.inside", None)
    cache.truncate(0, 0)
    np.testing.assert_array_equal(made.forward(batch, cache), expected)


def test_what_does_not_fit_is_said_in_words(lab: Lab, plan: CpuPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({"context": 2**40}, {"context": 2**70}, {"sequences": 2**40}, {"sequences": 2**70}, {"context": 0}):
        with pytest.raises(BestiaryError):
            plan.new_cache(lab.limits(**given))
    for threads in (1025, 2**70):
        with pytest.raises(BestiaryError):
            CpuBackend().compile(plan.graph, lab.weights(plan.graph, F32), lab.limits(threads=threads))

    class Full:
        """A program in a machine without memory."""

        threads, steps = 2, 0

        def __getattr__(self, name: str) -> Any:
            def fail(*given: object) -> None:
                raise MemoryError

            return fail if name in ("begin", "run") else lambda *given: None

    monkeypatch.setattr(plan, "_program", Full())
    cache = CpuBackend().compile(plan.graph, lab.weights(plan.graph, F32), plan.limits).new_cache()
    with pytest.raises(BestiaryError, match="out of memory for a batch of 3 tokens"):
        plan.forward(lab.batch([1, 2, 3]), cache)

    def no_memory(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cpu_pack, "Matrix", no_memory)
    with pytest.raises(BestiaryError, match="out of memory while loading the weights"):
        CpuBackend().compile(plan.graph, lab.weights(plan.graph, F32), plan.limits)


@pytest.mark.parametrize("there", [0, 1])
def test_weights_are_loaded_without_threads_of_their_own(lab: Lab, monkeypatch: pytest.MonkeyPatch,
                                                         there: int) -> None:
    graph = lab.llama()
    tensors, ids = lab.weights(graph, F32), lab.ids(9)
    expected = lab.prefill(CpuBackend().compile(graph, tensors, lab.limits(threads=3)), ids)
    started = 0

    def poor(function: Any, arguments: Any) -> None:
        nonlocal started
        started += 1
        if started > there:
            raise RuntimeError("can't start new thread")
        start_new_thread(function, arguments)

    seen: list[tuple[int, int, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(readahead, "start_new_thread", poor)
        patch.setattr(cpu_pack, "CHUNK_BYTES", 1 << 10)
        made = CpuBackend().compile(graph, tensors, lab.limits(threads=3), progress=lambda *given: seen.append(given))
    assert started > there
    assert seen[-1][0] == seen[-1][1]
    np.testing.assert_array_equal(lab.prefill(made, ids), expected)
