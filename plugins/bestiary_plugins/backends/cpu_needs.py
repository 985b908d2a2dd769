"""Memory that a plan of the cpu backend takes, from shapes alone. cpu_pack, the kernels' cache.h and cpu_lower decide
it; the tests compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from bestiary.backend import Limits
from bestiary.encoding import Encoding
from bestiary.graph import Graph
from bestiary.tensor import Tensor
from bestiary_plugins.backends.cpu_lower import tails
from bestiary_plugins.backends.cpu_pack import kernel_layout, roles, stored_as

LANES, SEGMENT, ALIGNMENT = 16, 256, 64
"""Rows of a group, positions of the cache that are allocated at once, and where their parts begin."""


def up(count: int, step: int) -> int:
    return -(-count // step) * step


@lru_cache(maxsize=256)
def packed_row_group(encoding: Encoding, columns: int) -> int:
    return kernel_layout(encoding, columns).packed_bytes


def packed_bytes(graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """Of the weights: matrices in groups of rows, experts one by one, look-up tables as they are, numbers as f32.
    Scales that turn out to be f16 numbers take less (cpu_halves)."""
    packed, stacked, looked_up, numbers = roles(graph)
    matrices, total = packed | stacked | looked_up, 0
    for name in graph.weights:
        tensor = tensors[name]
        if name in numbers:
            total += 4 * tensor.rows * tensor.columns
        if name in matrices:
            encoding = stored_as(tensor, name not in looked_up)
            count = tensor.shape[0] if name in stacked else 1
            rows = tensor.rows // count
            total += tensor.rows * encoding.row_bytes(tensor.columns) if name in looked_up else \
                count * up(rows, LANES) // LANES * packed_row_group(encoding, tensor.columns)
    return total


def cache_bytes(graph: Graph, limits: Limits, types: tuple[str, str]) -> int:
    """Of all sequences when they are full."""
    segment = 0
    for node in graph.nodes:
        if node.op == "attention":
            kv_heads = node.params["kv_heads"]
            k, v = (graph.nodes[i].width // kv_heads for i in node.inputs[1:])
            for kind, columns in zip(types, (k, up(v, LANES)), strict=True):
                segment += up(kv_heads * SEGMENT * held(kind, columns), ALIGNMENT)
    return limits.sequences * up(limits.context, SEGMENT) // SEGMENT * segment


def held(kind: str, columns: int) -> int:
    """Bytes of a position of a head; q8_0 has a scale for up to 32 columns."""
    return {"f32": 4 * columns, "f16": 2 * columns, "q8_0": columns + 2 * (up(columns, 32) // 32)}[kind]


def work_bytes(graph: Graph, limits: Limits) -> int:
    """Of the values of a batch that are alive at once, by their widths, which share no memory; only one token's logits
    are wanted."""
    last = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs}
    rows = [1 if tail else limits.batch for tail in tails(graph)]
    alive, most = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for i, node in enumerate(graph.nodes):
        kind = node.width, rows[i]
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        for j in set(node.inputs):
            if last[j] == i:
                alive[graph.nodes[j].width, rows[j]] -= 1
    return sum(4 * count * width * tokens for (width, tokens), count in most.items())
