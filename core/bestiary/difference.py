"""Whether a checkpoint looks like the difference of two models, which speaks nonsense by itself and does not say so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bestiary.graph import Graph
from bestiary.tensor import Tensor

SMALL, MIXED = 0.1, 0.3
"""A norm's weights lie around zero where their mean size is below SMALL, or their mean below this share of it: as many
are negative. Of a model that was trained that may be said of some norms, the first ones most of all; never of all."""
MOST = 8
SAID = ("the weights of its norms all lie around zero: it looks like the difference of two models, a delta; `merge` "
        "and `convert` put it together with the model that --base names")


def is_difference(graph: Graph, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights of the norms lie around zero; reads a few, the last among them."""
    names = list(dict.fromkeys(name for node in graph.nodes if node.op in ("rms_norm", "layer_norm")
                               if (name := node.weights.get("weight")) is not None and name in tensors))
    step = max(len(names) // MOST, 1)
    return bool(names) and all(around_zero(tensors[name]) for name in names[::-step])


def around_zero(tensor: Tensor) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):  # infinity and NaN are neither
        weights = tensor.array().astype(np.float64)
        size = float(np.abs(weights).mean())
        return size < SMALL or bool(abs(weights.mean()) < MIXED * size)
