"""What the benchmark asks of a program, as a child process that answers lines of JSON."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Test(NamedTuple):
    """kind: "prefill" (`tokens` of one sequence) or "decode" (`tokens` one after the other, of all sequences together).
    depth: tokens that each sequence holds before."""

    kind: str
    tokens: int
    depth: int = 0
    sequences: int = 1


class Program(ABC):
    """A program that runs models. `serve` is the life of its process."""

    trials = True
    """Whether `prepare` looks for the best setting, or takes the usual one."""

    @abstractmethod
    def open(self, path: str, threads: int, test: Test) -> None:
        """Loads a model, with limits for the test, and is ready for one token: what a user waits for."""

    @abstractmethod
    def prepare(self, test: Test) -> str:
        """Fills a cache to the test's depth and runs the test. Returns the setting it is the fastest in."""

    @abstractmethod
    def once(self) -> int:
        """The work of the test. Returns how many tokens that were."""

    @abstractmethod
    def logits(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Of one sequence, after each of its tokens: (tokens, vocabulary)."""

    @abstractmethod
    def close(self) -> None:
        """Frees what `open` made."""

    def begin(self, path: str, threads: int, trials: bool) -> str:
        """Loads a model for tests to come. Returns the setting that was found to be best."""
        self.trials = trials
        self.open(path, threads, Test("decode", 1, 3072, 8))
        return ""

    def sample(self, seconds: float) -> float:
        """Tokens a second, over as many runs as take that long."""
        done, started = 0, time.perf_counter()
        while not done or time.perf_counter() - started < seconds:
            done += self.once()
        return done / (time.perf_counter() - started)

    def load(self, tiny: str, path: str, threads: int) -> dict[str, float]:
        """Seconds until the model is loaded and until it has said its first token, and the most memory that it takes
        over a prefill of 512 and a few tokens, beyond what the interpreter has after a tiny model was loaded."""
        self.trials = False
        self.open(tiny, threads, Test("decode", 1))
        self.prepare(Test("decode", 1))
        self.close()
        gc.collect()
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        test, started = Test("decode", 8, 512), time.perf_counter()
        self.open(path, threads, test)
        loaded = time.perf_counter()
        self.once()
        first = time.perf_counter()
        self.prepare(test)
        return {"load": loaded - started, "first_token": first - started, "peak": memory("VmHWM") - before,
                "private": memory("RssAnon")}

    def serve(self) -> None:
        """Answers requests, objects with a method's name as "do" and its arguments, until there are no more."""
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            request = json.loads(line)
            if "test" in request:
                request["test"] = Test(*request["test"])
            to = request.pop("to", None)
            result = getattr(self, request.pop("do"))(**request)
            if to is not None:
                np.save(to, result)
                result = None
            print(json.dumps(result), file=answers, flush=True)


def memory(field: str) -> int:
    """Bytes, as the system counts them for this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
