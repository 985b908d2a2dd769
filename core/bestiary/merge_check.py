"""Whether a merge is what its parts say, and speaks: the file that was written against the view that it was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestiary.architecture import Architecture
from bestiary.backend import Backend, Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.model import choose_backend, make_tokenizer
from bestiary.named_function import check_functions

Logits = NDArray[np.float32]

TEXT = ("Once upon a time, there was a small owl named Otto, who lived in a hollow oak. On the first day of summer, "
        "Otto found an old map. It showed a way from the crooked willow to the blue lake, and from there to the windy "
        "hill. Otto asked Wanda the hedgehog to come along. At the blue lake they lost the path. Otto sang a song.")
MOST_TOKENS, FEWEST = 96, 16
"""Tokens of the text that are run; with fewer than FEWEST scored nothing is said about what the model makes of them."""
BOUND = 1e-3
"""Of the spread of the logits: by so much they may differ. The same weights on one backend differ by nothing."""
SPEAKS, SPEAKS_A_LITTLE = 0.5, 0.8
"""A base is known to speak whose perplexity is below this share of its vocabulary's size, which is what guessing gives:
a model of random weights, of which nothing can be said, has as much or more."""
KEPT, WORSE = 0.1, 10.0
"""Garbage is what keeps less than this share of what such a base knows (in bits a token, against guessing), and of a
base that speaks a little, what is worse than guessing by this factor."""


@dataclass(frozen=True)
class Found:
    """tokens: of the text, 0 where the model has no tokenizer. difference: of the logits, over their spread; None
    where the model was not run. perplexity, of_base: of the text; None where they say nothing."""

    tokens: int
    difference: float | None = None
    perplexity: float | None = None
    of_base: float | None = None

    def __str__(self) -> str:
        same = f"its tokenizer gives the same {self.tokens} tokens" if self.tokens else "there is no tokenizer"
        if self.difference is None:
            return f"checked: {same}; the model was not run, --check does that too"
        logits = "the same logits" if not self.difference else f"logits within {self.difference:.1e} of their spread"
        said = "" if self.perplexity is None else f"; perplexity of a plain text {self.perplexity:.4g}" + (
            "" if self.of_base is None else f", the base's {self.of_base:.4g}")
        return f"checked: {same}, {logits} as base and additions together{said}"


def check_merge(written: Checkpoint, wanted: Checkpoint, base: Checkpoint, family: Architecture,
                base_family: Architecture, host: Host, run: bool) -> Found:
    """Compares what was written with what it was to be; all three canonical. run: logits too, which reads all weights
    of the three, a layer at a time. Raises BestiaryError where they differ, and where the merge speaks garbage."""
    ids = tokens(written, family, host)
    if ids != tokens(wanted, family, host):
        raise BestiaryError(f"{written.path} was written, and its tokenizer gives other tokens than that of the "
                            "merged model: do not use it")
    if not run:
        return Found(len(ids or ()))
    given = ids or list(range(min(room(wanted), vocabulary_of(wanted, family))))
    try:
        ours, theirs = logits(written, family, given, host), logits(wanted, family, given, host)
    except BestiaryError as error:
        raise BestiaryError(f"{written.path} was written, and does not run: do not use it ({error})") from None
    difference = float(np.abs(ours - theirs).max() / max(float(theirs.max() - theirs.min()), 1e-30))
    if not difference <= BOUND:  # so that NaN differs
        raise BestiaryError(f"{written.path} was written, and its logits are not those of the merged model (they "
                            f"differ by {difference:.1g} of their spread): do not use it")
    return Found(len(ids or ()), difference, *speech(written, base, family, base_family, host, ids, ours))


def speech(written: Checkpoint, base: Checkpoint, family: Architecture, base_family: Architecture, host: Host,
           ids: Sequence[int] | None = None, ours: Logits | None = None) -> tuple[float, float] | tuple[()]:
    """The perplexity of the text in the merge and in its base; nothing where there is no tokenizer or too little of the
    text. ids, ours: of the merge, where they are known. Raises BestiaryError where the merge speaks garbage."""
    ids = tokens(written, family, host) if ids is None else ids
    before = tokens(base, base_family, host) or ids
    if ids is None or before is None or min(len(ids), len(before)) <= FEWEST:
        return ()
    ours = logits(written, family, ids, host) if ours is None else ours
    first = logits(base, base_family, before, host)
    now, then, size = perplexity(ours, ids), perplexity(first, before), ours.shape[1]
    if garbage(now, size, then, first.shape[1]):
        raise BestiaryError(f"{written.path} was written, and this merge speaks garbage: the perplexity of a plain "
                            f"text is {now:.3g}, where guessing among {size} tokens gives {size}, and the base's own "
                            f"is {then:.3g}; the base is probably wrong")
    return now, then


def garbage(now: float, size: int, then: float, base_size: int) -> bool:
    """Whether a merge speaks no more while its base does. now, then: perplexities of the two; sizes of vocabularies."""
    kept, known = (math.log(count) - math.log(found) for count, found in ((size, now), (base_size, then)))
    return then < SPEAKS * base_size and kept < KEPT * known or \
        then < SPEAKS_A_LITTLE * base_size and kept < -math.log(WORSE)


def tokens(checkpoint: Checkpoint, family: Architecture, host: Host) -> list[int] | None:
    """The beginning of the text; None where there is no tokenizer."""
    tokenizer = make_tokenizer(checkpoint.tokenizer, family, checkpoint.config, host)
    return None if tokenizer is None else tokenizer.encode(TEXT, bos=True)[:room(checkpoint)]


def room(checkpoint: Checkpoint) -> int:
    return min(MOST_TOKENS, int(checkpoint.config["max_position_embeddings"]))


def vocabulary_of(checkpoint: Checkpoint, family: Architecture) -> int:
    return to_canonical(checkpoint, family)[1].vocabulary


def perplexity(rows: Logits, ids: Sequence[int]) -> float:
    """Of each token after the first, from the logits after the one before it."""
    scores = rows[:-1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    mean = float(loss.mean())
    return math.exp(mean) if mean < 700 else math.inf


def logits(checkpoint: Checkpoint, family: Architecture, ids: Sequence[int], host: Host) -> Logits:
    """After each of the tokens, (tokens, vocabulary). The canonical checkpoint is run a layer at a time where its graph
    can be cut, so that no more of it is in memory. Raises BestiaryError where they are not finite."""
    checkpoint, graph = to_canonical(checkpoint, family)
    if not all(0 <= token < graph.vocabulary for token in ids):
        raise BestiaryError(f"{checkpoint.path}: its tokenizer gives token {max(ids)}, and the model has rows for "
                            f"{graph.vocabulary}")
    check_functions(graph, host.whose(family))
    backend, layout = choose_backend(host, None), family.layout(list(ids), checkpoint.config)
    count = len(ids)
    limits = Limits(count, 1, count, cache_type_k="f32", cache_type_v="f32")
    rows: Logits | None = None
    parts = pieces(graph)
    for i, part in enumerate(parts):
        batch = Batch(np.asarray(ids, np.int32) if rows is None else None, np.asarray(layout.positions, np.int32),
                      np.zeros(count, np.int32), np.arange(count, dtype=np.int32), rows, {0: layout.prefix})
        rows = forward(backend, part, checkpoint, limits, batch, "logits" if i == len(parts) - 1 else "hidden", host)
    if rows is None or not np.isfinite(rows).all():
        raise BestiaryError(f"{checkpoint.path}: the logits are not finite: the weights are damaged or exceed their "
                            "type")
    return rows


def forward(backend: Backend, graph: Graph, checkpoint: Checkpoint, limits: Limits, batch: Batch, output: str,
            host: Host) -> Logits:
    with host.calling(backend, f"run {checkpoint.path}"), np.errstate(all="ignore"):
        plan = backend.compile(graph, checkpoint.tensors, limits)
        try:
            return np.array(plan.forward(batch, plan.new_cache(limits), output))
        finally:
            plan.close()


def pieces(graph: Graph) -> list[Graph]:
    """The graph's layers, each alone; the whole where it cannot be cut."""
    found, rest = [], graph
    try:
        for layer in range(1, graph.layers):
            head, rest = rest.cut(layer)
            found.append(head)
    except BestiaryError:
        return [graph]
    return [*found, rest]
