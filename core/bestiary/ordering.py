"""Weights whose encoding holds their columns in another order: a graph that puts what they multiply in that order."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend
from bestiary.graph import Graph, Node
from bestiary.tensor import Ordered, Tensor

log = logging.getLogger("bestiary")
Orders = Mapping[str, NDArray[np.int64]]


class Decoded(Tensor):
    """A weight as it is read, and nothing else."""

    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._base.read(start, stop)


def in_order(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, Mapping[str, Tensor]]:
    """Both with the weights that can be kept in an order of columns of their own, under their names. Products that take
    the same input in the same order share one node."""
    taken = {name: offer for name, offer in offers(graph, tensors).items() if name not in not_multiplied(graph)}
    if not taken:
        return graph, tensors
    return (reordered(graph, {name: offer.order for name, offer in taken.items()}),
            {**tensors, **{name: offer.tensor for name, offer in taken.items()}})


def offers(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Ordered]:
    found = {name: tensors[name].ordered for name in graph.weights if name in tensors}
    return {name: offer for name, offer in found.items() if offer is not None}


def not_multiplied(graph: Graph) -> set[str]:
    """The weights that some operation uses otherwise than as the matrix of a linear."""
    nodes = (*graph.nodes, *(graph.past.graph.nodes if graph.past else ()))
    return {name for node in nodes for part, name in node.weights.items() if (node.op, part) != ("linear", "weight")}


def reordered(graph: Graph, orders: Orders) -> Graph:
    """The graph for weights whose columns are in these orders."""
    nodes: list[Node] = []
    places: list[int] = []  # of the nodes that there were
    made: dict[tuple[int, int | None, bytes], int] = {}  # of one layer, so that the graph can be cut where it could
    for node in graph.nodes:
        inputs = tuple(places[i] for i in node.inputs)
        order = orders.get(node.weights["weight"]) if node.op == "linear" else None
        if order is not None:
            columns = order.astype(np.int32).tobytes()
            key = inputs[0], node.layer, columns
            if key not in made:
                made[key] = len(nodes)
                nodes.append(Node("order", inputs, len(order), params={"columns": array("i", columns)},
                                  layer=node.layer))
            inputs = (made[key],)
        places.append(len(nodes))
        nodes.append(replace(node, inputs=inputs))
    past = graph.past and replace(graph.past, graph=reordered(graph.past.graph, orders))
    return replace(graph, nodes=tuple(nodes), output=places[graph.output], hidden=places[graph.hidden], past=past)


def say_left(graph: Graph, tensors: Mapping[str, Tensor], backend: Backend) -> None:
    """A line on the weights that are not kept in their own order, if there are any."""
    found = offers(graph, tensors)
    if backend.orders:
        say_decoded((tensors[name] for name in found if name in not_multiplied(graph)), "only plain products follow")
    else:
        say_decoded((tensors[name] for name in found), f"the backend {backend.name} does not follow")


def say_decoded(tensors: Iterable[Tensor], why: str) -> None:
    """A line on those that could be kept in an order of columns of their own and are not."""
    kinds = [tensor.encoding.name for tensor in tensors if tensor.ordered is not None]
    if kinds:
        log.warning("the groups of %d weights are runs only in another order of their columns (act-order), which %s: "
                    "they are decoded to %s", len(kinds), why, " and ".join(sorted(set(kinds))))
