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
ROUNDED = {False: 2.0 ** -7, True: 2.0 ** -3}
"""By how much of a row's largest weight two copies of it in different encodings may differ: where both are plain, and
where one is quantized."""


def check_tied(path: Path, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raises BestiaryError where the graph has no output matrix but the embedding, and the checkpoint has another."""
    embeddings = [node.weights["weight"] for node in graph.nodes
                  if node.op == "embed" and node.params["index"] == "token"]
    if OUTPUT not in tensors or OUTPUT in graph.weights or not embeddings:
        return
    if not _copies(tensors[OUTPUT], tensors[embeddings[0]]):
        raise BestiaryError(f"{path}: tensor {OUTPUT} (lm_head.weight in most checkpoints) is no copy of the "
                            "embedding, which tie_word_embeddings = true puts in its place; to use the tensor set "
                            "tie_word_embeddings to false in config.json")


def _copies(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    quantized = one.encoding.quantized or other.encoding.quantized
    for row in sorted({i * (one.rows - 1) // (ROWS - 1) for i in range(ROWS)}):
        if one.encoding == other.encoding:
            if not np.array_equal(read_exactly(one, row, row + 1), read_exactly(other, row, row + 1)):
                return False
            continue
        a, b = one.decode(row, row + 1), other.decode(row, row + 1)
        if not np.abs(a - b).max() <= ROUNDED[quantized] * np.abs(b).max():  # so that NaN differs
            return False
    return True
