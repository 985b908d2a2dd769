"""Logits to a token id: a chain of named samplers with its state per sequence."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bestiary.errors import BestiaryError

Floats = NDArray[np.float32]
CHAIN = ("penalties", "top_k", "top_p", "min_p", "temperature")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 takes the likeliest. A value in brackets switches its sampler off:
    top_k (0), top_p (1), min_p (0), repeat_penalty (1), frequency_penalty and presence_penalty (0).

    repeat_last_n: how many of the last tokens, the prompt's included, the penalties look at; 0 none, -1 all.
    seed: None draws one. samplers: the order of the chain.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None
    samplers: tuple[str, ...] = CHAIN

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), KINDS[str(field.type)]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise BestiaryError(f"{field.name} = {value!r}; it must be {field.type}")
        checks = (("temperature", 0 <= self.temperature < math.inf, "0 or more"),
                  ("top_k", self.top_k >= -1, "0 or more, or -1"),
                  ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"), ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
                  ("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0"),
                  ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
                  ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
                  ("seed", self.seed is None or self.seed >= 0, "0 or more"),
                  ("repeat_last_n", self.repeat_last_n >= -1, "-1 or more"))
        for name, good, wanted in checks:
            if not good:
                raise BestiaryError(f"{name} = {getattr(self, name)}; it must be {wanted}")
        for name in self.samplers:
            if name not in SAMPLERS:
                raise BestiaryError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")


KINDS: Mapping[str, tuple[type, ...]] = {
    "float": (int, float), "int": (int,), "int | None": (int, type(None)), "tuple[str, ...]": (tuple,)}
"""A field's type as it is written -> what its value may be."""

# A sampler: logits (vocabulary,), the settings and the tokens so far -> logits; -inf takes a token out. The input may
# be changed in place.
Sampler = Callable[[Floats, Sampling, Sequence[int]], Floats]


def penalties(logits: Floats, s: Sampling, tokens: Sequence[int]) -> Floats:
    """Keskar et al. 2019 (arXiv 1909.05858), and the two additive ones of OpenAI's interface."""
    recent = tokens if s.repeat_last_n < 0 else tokens[len(tokens) - min(s.repeat_last_n, len(tokens)):]
    if not recent or (s.repeat_penalty == 1 and not s.frequency_penalty and not s.presence_penalty):
        return logits
    counts = Counter(recent)
    ids = np.fromiter(counts, np.int64, len(counts))
    often = np.fromiter(counts.values(), np.float32, len(counts))
    chosen = logits[ids]
    chosen = np.where(chosen > 0, chosen / np.float32(s.repeat_penalty), chosen * np.float32(s.repeat_penalty))
    logits[ids] = chosen - often * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)
    return logits


def top_k(logits: Floats, s: Sampling, tokens: Sequence[int]) -> Floats:
    if 0 < s.top_k < len(logits):
        kept = np.argpartition(-logits, s.top_k - 1)[:s.top_k]
        return only(logits, kept)
    return logits


def top_p(logits: Floats, s: Sampling, tokens: Sequence[int]) -> Floats:
    """Holtzman et al. 2019 (arXiv 1904.09751): the fewest tokens whose probabilities reach p."""
    if s.top_p >= 1:
        return logits
    left = np.flatnonzero(logits > -np.inf)  # few after top_k: sorting a whole vocabulary takes a millisecond
    order = left[np.argsort(-logits[left], kind="stable")]
    total = np.cumsum(probabilities(logits[order]))
    return only(logits, order[:int(np.searchsorted(total, s.top_p)) + 1])


def min_p(logits: Floats, s: Sampling, tokens: Sequence[int]) -> Floats:
    """Nguyen et al. 2024 (arXiv 2407.01082): tokens at least p times as likely as the likeliest."""
    if s.min_p <= 0:
        return logits
    return np.where(logits >= logits.max() + np.float32(math.log(s.min_p)), logits, np.float32(-np.inf))


def temperature(logits: Floats, s: Sampling, tokens: Sequence[int]) -> Floats:
    return logits / np.float32(max(s.temperature, 1e-6))


SAMPLERS: Mapping[str, Sampler] = {f.__name__: f for f in (penalties, top_k, top_p, min_p, temperature)}


def only(logits: Floats, kept: NDArray[np.int64]) -> Floats:
    masked = np.full_like(logits, -np.inf)
    masked[kept] = logits[kept]
    return masked


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """softmax, in float64 so that the sum of a large vocabulary is 1."""
    e = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(e / e.sum())


class Chooser:
    """Chooses the tokens of one sequence; keeps its random state. seed: what was drawn where none was given."""

    def __init__(self, sampling: Sampling, banned: Sequence[int] = ()) -> None:
        self.sampling, self._banned = sampling, list(banned)
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._random = np.random.default_rng(self.seed)

    def choose(self, logits: Floats, tokens: Sequence[int]) -> int:
        """The token after `tokens`, from its logits (vocabulary,). Raises BestiaryError where they are no numbers."""
        logits = logits.astype(np.float32, copy=True)
        logits[self._banned] = -np.inf
        if not np.isfinite(logits.max()):  # the largest of a NaN and anything is a NaN
            raise BestiaryError("the model's logits are not finite: its weights are damaged or exceed their type, "
                                "or the backend is at fault")
        if self.sampling.temperature == 0:
            return int(np.argmax(penalties(logits, self.sampling, tokens)))
        for name in self.sampling.samplers:
            logits = SAMPLERS[name](logits, self.sampling, tokens)
        kept = np.flatnonzero(logits > -np.inf)
        total = np.cumsum(probabilities(logits[kept]))
        return int(kept[min(int(np.searchsorted(total, self._random.random(), side="right")), len(kept) - 1)])
