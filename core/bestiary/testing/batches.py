"""Batches with one thing wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bestiary.backend import Batch
from bestiary.testing.tiny import LIMITS


def bad_batches(good: Batch, vocabulary: int) -> Iterator[tuple[str, Batch]]:
    """A good batch with one thing wrong."""
    def with_first(values: Any, value: int) -> Any:
        return np.concatenate([np.asarray([value], np.int32), values[1:]])

    count = len(good.sequences)
    yield "with a token id beyond the vocabulary", replace(good, tokens=with_first(good.tokens, vocabulary))
    yield "with a token id below 0", replace(good, tokens=with_first(good.tokens, -1))
    yield "with a sequence that is not there", replace(good, sequences=with_first(good.sequences, 99))
    yield "with a sequence below 0", replace(good, sequences=with_first(good.sequences, -1))
    yield "that wants a token which is not there", replace(good, wanted=np.array([count], np.int32))
    yield "with fewer positions than tokens", replace(good, positions=good.positions[:, 1:])
    yield "with fewer ids than tokens", replace(good, tokens=None if good.tokens is None else good.tokens[1:])
    yield "of no tokens", Batch(np.zeros(0, np.int32), good.positions[:, :0], np.zeros(0, np.int32),
                                np.zeros(0, np.int32))
    n = LIMITS.context - 1
    yield "that outgrows the context", Batch(np.zeros(n, np.int32), np.tile(np.arange(n, dtype=np.int32), (
        len(good.positions), 1)) % 8, np.zeros(n, np.int32), np.zeros(0, np.int32), None, good.prefixes)
