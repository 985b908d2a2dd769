"""The cpu backend: graphs run by the compiled kernels, the same bits whatever the threads, the batch or the isa.

A codebook's numbers are rounded to 8 bits; encodings with an integer zero per group are decoded while loading and
kept as 8-bit blocks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend, Batch, KVCache, Limits, Needs, Plan, Progress
from bestiary.batch_check import BatchCheck
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.guard import calling
from bestiary.tensor import Tensor

if TYPE_CHECKING:
    import bestiary_kernels
    from bestiary_plugins.backends.cpu_lower import Call, Lowered
    from bestiary_plugins.backends.cpu_pack import Weights

log = logging.getLogger("bestiary")

CACHE_TYPES = ("f32", "f16", "q8_0")
"""Encodings of keys and values. What exceeds f16 becomes infinite there; q8_0 rounds 32 columns of a head together."""


def _cache_types(limits: Limits) -> tuple[str, str]:
    types = limits.cache_type_k, limits.cache_type_v
    for name in types:
        if name not in CACHE_TYPES:
            raise BestiaryError(f"unknown cache type {name!r}; the cpu backend knows: {', '.join(CACHE_TYPES)}")
    return types


@contextmanager
def _in_words(doing: str) -> Iterator[None]:
    """What the kernels refuse, as an error of the user's."""
    try:
        yield
    except MemoryError:
        raise BestiaryError(f"out of memory {doing}") from None
    except (ValueError, OverflowError) as error:
        raise BestiaryError(str(error)) from None


class Turns:
    """A lock for each process: after a fork, the parent's may be held by a thread that is not here."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def turn(self) -> AbstractContextManager[object]:
        """What to enter: others wait. A call from inside comes through, and the kernels refuse what would harm."""
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        return self._lock


class CpuCache(KVCache):
    """Keys and values in segments of 256 positions, allocated as they fill. Threads wait for one another."""

    def __init__(self, native: bestiary_kernels.Cache) -> None:
        self.native, self.turns = native, Turns()

    def length(self, sequence: int) -> int:
        return int(self._checked(self.native.length, sequence))

    def truncate(self, sequence: int, length: int) -> None:
        self._checked(self.native.truncate, sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._checked(self.native.copy, source, target, length)

    @property
    def nbytes(self) -> int:
        with self.turns.turn():
            return self.native.nbytes

    def _checked(self, function: Any, *arguments: int) -> Any:
        with self.turns.turn(), _in_words("for keys and values"):
            return function(*arguments)


class CpuPlan(Plan):
    """A graph as the kernels' list of steps."""

    def __init__(self, graph: Graph, limits: Limits, weights: Weights, program: bestiary_kernels.Program,
                 lowered: Lowered) -> None:
        self.graph, self.limits, self.weights = graph, limits, weights
        self._program: bestiary_kernels.Program | None = program
        self._lowered = lowered
        self._prefix = any(node.params.get("mask") == "prefix" for node in graph.nodes if node.op == "attention")
        self._check, self._turns, self._begun = BatchCheck(graph, limits), Turns(), False

    @property
    def program(self) -> bestiary_kernels.Program:
        if self._program is None:
            raise BestiaryError("the plan was closed")
        return self._program

    def new_cache(self, limits: Limits | None = None) -> CpuCache:
        from bestiary_kernels import Cache

        limits = limits or self.limits
        kinds = _cache_types(limits)
        if kinds != _cache_types(self.limits):
            raise BestiaryError(f"a cache of {limits.cache_type_k} keys and {limits.cache_type_v} values; the plan was "
                                f"compiled for {self.limits.cache_type_k} and {self.limits.cache_type_v}")
        with _in_words(f"for a cache of {limits.sequences} sequences"):
            return CpuCache(Cache(self.program, limits.sequences, limits.context, *kinds))

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        if not isinstance(cache, CpuCache):
            raise TypeError("the cache is another backend's")
        if output not in self._lowered.ends:
            raise BestiaryError(f"unknown output {output!r}; known: hidden, logits")
        with self._turns.turn(), cache.turns.turn():
            return self._forward(self._check(batch, cache.native.sequences), cache, output)

    def _forward(self, batch: Batch, cache: CpuCache, output: str) -> NDArray[np.float32]:
        program, calling = self.program, False
        try:
            program.begin(cache.native, batch.tokens, batch.positions, batch.sequences, batch.wanted,
                          batch.prefixes if self._prefix else None)
            if not self._begun:
                self._begun = True
                self._count_threads(program)
            for slot in self._lowered.inputs:
                program.write(slot, batch.hidden)  # type: ignore[arg-type]  # the check wants one
            stop, slot = self._lowered.ends[output]
            for part in self._lowered.parts[:stop]:
                if isinstance(part, tuple):
                    program.run(*part)
                else:
                    calling = True
                    self._call(part)
                    calling = False
            result = np.empty((len(batch.wanted), self._width(output)), np.float32)
            program.read(slot, result)
            program.commit()
        except BaseException as error:
            program.end()
            if isinstance(error, MemoryError):
                raise BestiaryError(f"out of memory for a batch of {len(batch.sequences)} tokens") from None
            if isinstance(error, (ValueError, OverflowError)) and not calling:  # a plugin's own keeps its traceback
                raise BestiaryError(str(error)) from None
            raise
        return result

    def _count_threads(self, program: bestiary_kernels.Program) -> None:
        wanted = max(self.limits.threads or 0, self.limits.threads_prefill or 0)
        if program.threads < wanted:
            log.warning("the system gives %d threads, not %d", program.threads, wanted)

    def _width(self, output: str) -> int:
        return self.graph.nodes[self.graph.hidden if output == "hidden" else self.graph.output].width

    def _call(self, call: Call) -> None:
        """A plugin's own operation, over copies of its inputs."""
        arrays = []
        for slot, width in zip(call.inputs, call.widths, strict=True):
            arrays.append(np.empty((self.program.rows(slot), width), np.float32))
            self.program.read(slot, arrays[-1])
        with calling(f"operation {call.name}", "run"):
            result = call.function(*arrays, **call.keywords)
        expected = (self.program.rows(call.out), call.width)
        if getattr(result, "shape", None) != expected:
            raise BestiaryError(f"{call.name} returned shape {getattr(result, 'shape', None)}, not {expected}")
        self.program.write(call.out, np.ascontiguousarray(result, np.float32))

    def close(self) -> None:
        from bestiary_plugins.backends.cpu_pack import Weights

        with self._turns.turn():
            self._program, self.weights = None, Weights()


class CpuBackend(Backend):
    """isa: an instruction set by name, by default BESTIARY_ISA's or the best that runs here."""

    name = "cpu"
    rank = 10
    exact = True
    orders = True
    cache_types = CACHE_TYPES

    def __init__(self, isa: str | None = None) -> None:
        self._isa = isa

    def available(self) -> str | None:
        try:
            import bestiary_kernels  # noqa: F401
        except ImportError as error:
            return f"no compiled kernels: {error}"
        return None

    def isa(self) -> str:
        """Raises BestiaryError where the one that was asked for does not run here."""
        from bestiary_kernels import isas

        wanted = self._isa or os.environ.get("BESTIARY_ISA") or isas()[-1]
        if wanted not in isas():
            raise BestiaryError(f"the instruction set {wanted!r} does not run here; these do: {', '.join(isas())}")
        return wanted

    def needs(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits) -> Needs | None:
        from bestiary_plugins.backends.cpu_needs import cache_bytes, packed_bytes, work_bytes

        return Needs(packed_bytes(graph, tensors), cache_bytes(graph, limits, _cache_types(limits)),
                     work_bytes(graph, limits))

    def describe(self) -> Mapping[str, str]:
        if (reason := self.available()) is not None:
            return {"unavailable": reason}
        from bestiary_kernels import isas, usable_threads

        return {"isa": self.isa(), "isas": ", ".join(isas()), "threads": str(usable_threads())}

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *, share: Plan | None = None,
                progress: Progress | None = None) -> CpuPlan:
        if (reason := self.available()) is not None:
            raise BestiaryError(f"the cpu backend does not run here: {reason}")
        from bestiary_kernels import Program, usable_threads
        from bestiary_plugins.backends.cpu_lower import lower, refuse
        from bestiary_plugins.backends.cpu_pack import load

        refuse(graph)
        kinds = _cache_types(limits)
        threads = limits.threads or usable_threads()
        with _in_words("for the threads"):
            program = Program(self.isa(), threads, limits.threads_prefill or threads)
        try:
            weights = load(graph, tensors, max(threads, limits.threads_prefill or threads),
                           share.weights if isinstance(share, CpuPlan) else None, progress)
            return CpuPlan(graph, limits, weights, program, lower(graph, weights, program, kinds))
        except MemoryError:
            raise BestiaryError("out of memory while loading the weights") from None
