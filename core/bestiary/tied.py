"""A second copy of the embedding, which checkpoints hold whose output matrix it is: whether it is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.tensor import Tensor, read_exactly

OUTPUT = "output.weight"
"""The canonical name of an output matrix of its own."""
ROWS = 16
"""So many are compared, spread over the matrix: a matrix of its own differs in nearly all."""
MANY = 512
ROUNDED = {False: 2.0 ** -7, True: 2.0 ** -3}
"""By how much of a row's largest weight two copies of it in different encodings may differ: where both are plain, and
where one is quantized."""


def check_tied(path: Path, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raises BestiaryError where the graph has no output matrix but the embedding, and the checkpoint has another."""
    embedding = embedding_of(graph)
    if OUTPUT not in tensors or OUTPUT in graph.weights or embedding is None:
        return
    if not _copies(tensors[OUTPUT], tensors[embedding]):
        raise BestiaryError(f"{path}: tensor {OUTPUT} (lm_head.weight in most checkpoints) is no copy of the "
                            "embedding, which tie_word_embeddings = true puts in its place; to use the tensor set "
                            "tie_word_embeddings to false in config.json")


def embedding_of(graph: Graph) -> str | None:
    """The canonical name of the matrix that turns tokens into vectors."""
    return next((node.weights["weight"] for node in graph.nodes
                 if node.op == "embed" and node.params["index"] == "token"), None)


def is_tied(graph: Graph) -> bool:
    """Whether that matrix is the output matrix too."""
    embedding = embedding_of(graph)
    return OUTPUT not in graph.weights and any(node.op == "linear" and node.weights["weight"] == embedding
                                               for node in graph.nodes)


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices hold the same numbers; reads both, some rows at a time."""
    return one.shape == other.shape and all(
        np.array_equal(one.decode(start, min(start + MANY, one.rows)), other.decode(start, min(start + MANY, one.rows)))
        for start in range(0, one.rows, MANY))


def _copies(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    quantized = one.quantized_as is not None or other.quantized_as is not None
    for row in sorted({i * (one.rows - 1) // (ROWS - 1) for i in range(ROWS)}):
        if one.encoding == other.encoding:
            if not np.array_equal(read_exactly(one, row, row + 1), read_exactly(other, row, row + 1)):
                return False
            continue
        a, b = one.decode(row, row + 1), other.decode(row, row + 1)
        if not np.abs(a - b).max() <= ROUNDED[quantized] * np.abs(b).max():  # so that NaN differs
            return False
    return True
