"""Whether a checkpoint looks like the difference of two models, which speaks nonsense by itself and does not say so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bestiary.graph import Graph
from bestiary.tensor import Tensor

SMALL = 0.1
"""Of a norm's weights the mean size, below which they are near zero. Of a model that was trained some norms may have
less, the first ones most of all, but never the last."""
MOST = 8
SAID = ("the weights of its norms are all near zero: it looks like the difference of two models, a delta; `merge` and "
        "`convert` put it together with the model that --base names")


def is_difference(graph: Graph, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights of the norms are all near zero; reads a few, the last among them."""
    names = list(dict.fromkeys(name for node in graph.nodes if node.op in ("rms_norm", "layer_norm")
                               if (name := node.weights.get("weight")) is not None and name in tensors))
    step = max(len(names) // MOST, 1)
    return bool(names) and all(float(np.abs(tensors[name].array()).mean()) < SMALL for name in names[::-step])
