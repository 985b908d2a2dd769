"""Weights whose encoding holds their columns in another order: a graph that puts what they multiply in that order."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Backend
from bestiary.graph import Graph, Node
from bestiary.tensor import Tensor, View

log = logging.getLogger("bestiary")
Orders = Mapping[str, NDArray[np.int64]]


class Decoded(View):
    """A weight as it is read, without an offer."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.shape, base.encoding, (base,))
        self._base = base

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._base.read(start, stop)


def in_order(graph: Graph, tensors: Mapping[str, Tensor], backend: Backend,
             ) -> tuple[Graph, Mapping[str, Tensor], list[Tensor]]:
    """Both with the weights that the backend can keep in an order of columns of their own, under their names; and those
    of such weights that it cannot keep so. Products that take the same input in the same order share one node."""
    found = {name: tensors[name].ordered for name in graph.weights if name in tensors}
    offers = {name: offer for name, offer in found.items() if offer is not None}
    elsewhere = not_multiplied(graph)
    orders = {name: offer.order for name, offer in offers.items()
              if backend.orders and offer.order is not None and name not in elsewhere}
    if orders:
        graph = reordered(graph, orders)
        tensors = {**tensors, **{name: offers[name].tensor for name in orders}}
    return graph, tensors, [tensors[name] for name in offers if name not in orders]


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


def say_left(left: Sequence[Tensor], backend: Backend) -> None:
    """A line on what `in_order` could not keep, if there is anything."""
    where = "embeddings, experts and matrices joined of several orders do not follow"
    _say(left, where if backend.orders else f"the backend {backend.name} does not follow", "are decoded to")


def say_decoded(tensors: Mapping[str, Tensor], become: Mapping[str, Tensor], why: str, then: str = "") -> None:
    """A line on those that could be kept in an order of columns of their own and are not. become: what is made of
    them, by the same names."""
    _say([become[name] for name, tensor in tensors.items() if tensor.ordered is not None], why, "become", then)


def _say(made: Sequence[Tensor], why: str, how: str, then: str = "") -> None:
    if made:
        kinds = sorted({tensor.encoding.name for tensor in made})
        log.warning("%d weights were quantized in another order of their inputs (act-order), which %s: they %s %s%s",
                    len(made), why, how, " and ".join(kinds), then)


def as_held(tensor: Tensor) -> Tensor:
    """The weight in the bits that a file holds of it, in whatever order of columns, where it offers itself so."""
    offer = tensor.ordered
    return tensor if offer is None or offer.order is None else offer.tensor
