"""Batches are checked once, for every backend, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.errors import BestiaryError
from bestiary.graph import Graph


class BatchCheck:
    """What a plan's batches must be; made once a plan, because a graph has hundreds of nodes."""

    def __init__(self, graph: Graph, limits: Limits) -> None:
        self.most = limits.batch
        rows = {index: [graph.weights[node.weights["weight"]][0] for node in graph.nodes
                        if node.op == "embed" and node.params["index"] == index] for index in ("token", "position")}
        self.vocabulary = min(rows["token"], default=None)
        self.places = min(rows["position"], default=None)
        self.streams = max([node.params["stream"] + 1 for node in graph.nodes if node.op == "rope"]
                           + [1] * bool(rows["position"]), default=0)
        self.width = next((node.width for node in graph.nodes if node.op == "input"), None)

    def __call__(self, batch: Batch, sequences: int) -> Batch:
        """The batch with contiguous arrays of int32 and float32. sequences: how many the cache has. Raises
        BestiaryError, naming what is wrong."""
        ids = _integers("sequences", batch.sequences, 1, 0, sequences - 1,
                        lambda bad: f"sequence {bad}; the cache has {sequences}")
        n = len(ids)
        if not 1 <= n <= self.most:
            raise BestiaryError(f"a batch of {n or 'no'} tokens; the limit is {self.most}")
        positions = _integers("positions", batch.positions, 2)
        if positions.shape[1] != n or len(positions) < self.streams:
            raise BestiaryError(f"positions of {len(positions)} x {positions.shape[1]}; needed: {self.streams} x {n}")
        if self.places is not None:
            _integers("positions", positions[0], 1, 0, self.places - 1,
                      lambda bad: f"position {bad}; the model has {self.places}")
        wanted = _integers("wanted", batch.wanted, 1, 0, n - 1,
                           lambda bad: f"token {bad} is wanted of a batch of {n}")
        return Batch(self._tokens(batch.tokens, n), positions, ids, wanted, self._hidden(batch.hidden, n),
                     self._prefixes(batch.prefixes, sequences))

    def _tokens(self, tokens: Any, n: int) -> NDArray[np.int32] | None:
        if tokens is None:
            if self.vocabulary is not None:
                raise BestiaryError("this graph begins with token ids, and the batch has none")
            return None
        top = _MOST if self.vocabulary is None else self.vocabulary - 1
        ids = _integers("tokens", tokens, 1, 0, top, lambda bad: f"token id {bad}; the vocabulary has {top + 1}")
        if len(ids) != n:
            raise BestiaryError(f"{len(ids)} token ids for {n} tokens")
        return ids

    def _hidden(self, hidden: Any, n: int) -> NDArray[np.float32] | None:
        if self.width is None:
            return None
        if hidden is None:
            raise BestiaryError("this graph begins with a hidden state, and the batch has none")
        rows = np.asarray(hidden)
        if rows.dtype.kind != "f" or rows.shape != (n, self.width):
            raise BestiaryError(f"hidden is {rows.dtype} of the shape {rows.shape}; needed: float32 of "
                                f"{(n, self.width)}")
        return np.ascontiguousarray(rows, np.float32)

    def _prefixes(self, prefixes: Mapping[int, int] | None, sequences: int) -> dict[int, int]:
        checked: dict[int, int] = {}
        for sequence, length in (prefixes or {}).items():
            if not isinstance(sequence, _WHOLE) or not isinstance(length, _WHOLE):
                raise BestiaryError(f"a prefix of {length!r} tokens of sequence {sequence!r}: whole numbers are needed")
            if not 0 <= sequence < sequences or not 0 <= length <= _MOST:
                raise BestiaryError(f"a prefix of {length} tokens of sequence {sequence}; the cache has {sequences}")
            checked[int(sequence)] = int(length)
        return checked


_INT32 = np.iinfo(np.int32)
_LEAST, _MOST, _KIND = int(_INT32.min), int(_INT32.max), np.dtype(np.int32)
_WHOLE = (int, np.integer)


def _integers(name: str, values: Any, axes: int, least: int = _LEAST, most: int = _MOST,
              words: Any = None) -> NDArray[np.int32]:
    """values as int32. The range is checked before: a wider integer would wrap to one that is allowed."""
    given = np.asarray(values)
    size, short = given.size, given.dtype == _KIND
    if given.ndim != axes or not short and given.dtype.kind not in "iu" and size:
        raise BestiaryError(f"{name} is an array of {given.dtype} with {given.ndim} axes; needed: integers, {axes}")
    if size and not (short and least == _LEAST and most == _MOST):
        # numpy's own take microseconds to begin with, and a decode step has one token
        low, high = (given.min(), given.max()) if size > 16 else _ends(given.ravel().tolist())
        if low < least or high > most:
            bad = low if low < least else high
            raise BestiaryError(words(bad) if words else f"{name} has {bad}; possible: {least} to {most}")
    return np.ascontiguousarray(given, np.int32)


def _ends(numbers: list[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)
