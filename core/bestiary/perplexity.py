"""How surprised a model is by a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bestiary.backend import Progress
from bestiary.errors import BestiaryError
from bestiary.model import Model


@dataclass(frozen=True)
class Perplexity:
    """perplexity: exp of the mean negative log-likelihood of the scored tokens. error: its standard error. tokens: how
    many were scored."""

    perplexity: float
    error: float
    tokens: int


def perplexity(model: Model, text: str, context: int | None = None, progress: Progress | None = None,
               chunks: int | None = None) -> Perplexity:
    """The text is cut into chunks of `context` tokens, each begins with BOS in the place of its first token, and the
    second half of each is scored. What is left over at the end is not used.

    context: 512 by default, or what the model holds if that is less. progress: is told the estimate so far after each
    chunk. chunks: only so many, from the beginning. Raises BestiaryError for a text that does not fill one chunk.
    """
    # All of this, the estimate of the error too, as llama.cpp does it, so that figures can be compared.
    context = min(512, model.plan.limits.context) if context is None else context
    if model.plan.limits.context < 4:
        raise BestiaryError(f"context = {model.plan.limits.context}; perplexity needs 4 tokens or more")
    if not 4 <= context <= model.plan.limits.context:
        raise BestiaryError(f"context = {context}; 4 to {model.plan.limits.context} tokens are wanted")
    tokenizer = model.tokenizer
    if model.plan.graph.prefix_mask:  # what ends an empty prompt, so that the text is what the model says
        begins = tokenizer.encode("", bos=True)
        ids = [*begins, *tokenizer.encode(text)]
    else:
        begins = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
        ids = tokenizer.encode(text, bos=True)
    if len(ids) < context:
        raise BestiaryError(f"the text has {len(ids)} tokens; a chunk has {context}; -c makes it shorter")
    first = context // 2
    total, squares, count = 0.0, 0.0, 0
    if chunks is not None and chunks < 1:
        raise BestiaryError(f"chunks = {chunks}; 1 or more is wanted")
    chunks = min(len(ids) // context, chunks or len(ids))
    for chunk in range(chunks):
        tokens = ids[chunk * context:(chunk + 1) * context]
        tokens = [*begins, *tokens[len(begins):]]
        logits = model.logits(tokens[:-1], first).astype(np.float64)  # (context - 1 - first, vocabulary)
        if not np.isfinite(logits).all():
            raise BestiaryError(f"chunk {chunk + 1}: the logits are not finite: the weights are damaged or exceed "
                                f"their type, or {model.whose(model.backend)} is at fault")
        logits -= logits.max(axis=1, keepdims=True)
        wanted = np.array(tokens[first + 1:])
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(wanted)), wanted]
        total, squares, count = total + float(loss.sum()), squares + float((loss * loss).sum()), count + len(loss)
        if progress:
            progress(chunk + 1, chunks, f"{estimate(total, squares, count).perplexity:.4f}")
    return estimate(total, squares, count)


def estimate(total: float, squares: float, count: int) -> Perplexity:
    """From the sums of the losses and of their squares."""
    mean = total / count
    spread = squares / count - mean * mean
    value = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(value, value * math.sqrt(spread / (count - 1)) if spread > 0 and count > 1 else 0.0, count)
