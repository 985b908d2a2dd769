"""Bestiary as a program of the benchmark: what `bestiary bench` does."""

from __future__ import annotations

from typing import Any

import numpy as np
from program import Program, Test

from bestiary import load
from bestiary.benchmark import Cache
from bestiary.model import Model


class Bestiary(Program):
    model: Model | None = None

    def open(self, path: str, threads: int, test: Test) -> None:
        self.model = load(path, threads=threads, context=test.depth + test.tokens, sequences=test.sequences)
        self._new_cache(Test("decode", 1))

    def prepare(self, test: Test) -> str:
        self._new_cache(test)
        self.once()
        return ""

    def _new_cache(self, test: Test) -> None:
        self.test = test
        self.cache = None  # the last one's memory is free before the next one is filled
        self.cache = Cache(self.loaded, test.sequences, test.depth)

    def once(self) -> int:
        assert self.cache is not None
        self.cache.rewind()
        if self.test.kind == "prefill":
            self.cache.fill([0], self.test.tokens)
            return self.test.tokens
        chosen = np.full(self.test.sequences, self.cache.ids[-1], np.int32)
        for i in range(self.test.tokens):
            chosen = np.argmax(self.cache.step(chosen, i), axis=1).astype(np.int32)
        return self.test.tokens * self.test.sequences

    def logits(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self.loaded.logits(ids)

    def close(self) -> None:
        self.cache = None
        self.loaded.close()
        self.model = None

    def facts(self) -> dict[str, str]:
        return {"backend": self.loaded.backend.name, **self.loaded.facts()}

    @property
    def loaded(self) -> Model:
        assert self.model is not None
        return self.model

    cache: Cache | None = None


if __name__ == "__main__":
    Bestiary().serve()
