"""The backend double: every operation by its definition in float64, one token after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from bestiary.plugin import Backend, Batch, BestiaryError, Graph, KVCache, Limits, Plan, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.backend import Progress
    from bestiary.graph import Node
    from bestiary.tensor import Tensor

    Row = NDArray[np.float64]

bestiary_api = 1  # the version of the hooks that this is written for
CACHE_TYPES = ("f16", "f32", "f64")


class DoubleCache(KVCache):
    """Of each sequence a list of tokens, each the keys and values of all layers."""

    def __init__(self, limits: Limits) -> None:
        self.context = limits.context
        self.tokens: list[list[dict[int, tuple[Row, Row]]]] = [[] for _ in range(limits.sequences)]

    def _of(self, sequence: int) -> list[dict[int, tuple[Row, Row]]]:
        if not 0 <= sequence < len(self.tokens):
            raise BestiaryError(f"sequence {sequence}; the cache has {len(self.tokens)}")
        return self.tokens[sequence]

    def length(self, sequence: int) -> int:
        return len(self._of(sequence))

    def truncate(self, sequence: int, length: int) -> None:
        self.copy(sequence, sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._of(target)
        if not 0 <= length <= self.length(source):
            raise BestiaryError(f"sequence {source} holds {self.length(source)} tokens, not {length}")
        self.tokens[target] = self.tokens[source][:length]

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for sequence in self.tokens for token in sequence for k, v in token.values())


class DoublePlan(Plan):
    """Interprets the graph for a token at a time: then it cannot matter what else is in the batch."""

    def __init__(self, graph: Graph, weights: dict[str, Row], limits: Limits) -> None:
        from bestiary.batch_check import BatchCheck

        self.graph, self.limits, self.weights = graph, limits, weights
        self._check = BatchCheck(graph, limits)

    def new_cache(self, limits: Limits | None = None) -> DoubleCache:
        return DoubleCache(limits or self.limits)

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        import numpy as np

        if not isinstance(cache, DoubleCache) or output not in ("logits", "hidden"):
            raise BestiaryError(f"a cache of {type(cache).__name__}, output {output!r}; double knows its own cache, "
                                "logits and hidden")
        batch = self._check(batch, len(cache.tokens))
        if not self.weights:
            raise BestiaryError("the plan was closed")
        before = [list(tokens) for tokens in cache.tokens]
        result = self.graph.hidden if output == "hidden" else self.graph.output
        rows = np.empty((len(batch.sequences), self.graph.nodes[result].width))
        try:
            for i, sequence in enumerate(batch.sequences.tolist()):
                if cache.length(sequence) >= cache.context:
                    raise BestiaryError(f"the context of {cache.context} tokens is full")
                cache.tokens[sequence].append({})
                rows[i] = Token(batch, i, cache.tokens[sequence]).through(self)[result]
        except BaseException:
            cache.tokens = before
            raise
        return rows[batch.wanted].astype(np.float32)

    def close(self) -> None:
        self.weights = {}


class Token:
    """One token on its way through the graph; a method an operation, of rows (width,). past: the tokens of its
    sequence, itself included."""

    def __init__(self, batch: Batch, i: int, past: list[dict[int, tuple[Row, Row]]]) -> None:
        self.batch, self.i, self.past = batch, i, past

    def through(self, plan: DoublePlan) -> list[Row]:
        """The results of all nodes."""
        import numpy as np

        results: list[Row] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for node in plan.graph.nodes:
                weights = {part: plan.weights[name] for part, name in node.weights.items()}
                results.append(getattr(self, node.op)(node, *(results[k] for k in node.inputs), **weights))
        return results

    def input(self, node: Node) -> Row:
        if self.batch.hidden is None:
            raise BestiaryError("this graph begins with a hidden state, and the batch has none")
        row: Row = self.batch.hidden[self.i].astype("f8")
        return row

    def embed(self, node: Node, weight: Row) -> Row:
        index = self.batch.tokens if node.params["index"] == "token" else self.batch.positions[0]
        if index is None:
            raise BestiaryError("this graph begins with token ids, and the batch has none")
        row: Row = weight[index[self.i]]
        return row

    def linear(self, node: Node, x: Row, weight: Row, bias: Row | None = None) -> Row:
        y: Row = weight @ x
        return y if bias is None else y + bias

    def rms_norm(self, node: Node, x: Row, weight: Row | None = None) -> Row:
        g: Row = x.reshape(-1, node.params["group"])
        g = g / ((g * g).mean(axis=1, keepdims=True) + node.params["eps"]) ** 0.5
        return (g if weight is None else g * weight).reshape(-1)

    def layer_norm(self, node: Node, x: Row, weight: Row | None = None, bias: Row | None = None) -> Row:
        g = x.reshape(-1, node.params["group"])
        y = self.rms_norm(node, (g - g.mean(axis=1, keepdims=True)).reshape(-1), weight)
        return y if bias is None else (y.reshape(g.shape) + bias).reshape(-1)

    def rope(self, node: Node, x: Row, factors: Row | None = None) -> Row:
        import numpy as np

        p = node.params
        start, half = p["start"], p["count"] // 2
        turns = p["scaling"] * p["base"] ** (-np.arange(half) / half) / (1 if factors is None else factors)
        angle = int(self.batch.positions[p["stream"], self.i]) * turns
        cos, sin = np.cos(angle) * p["magnitude"], np.sin(angle) * p["magnitude"]
        heads = x.reshape(-1, p["head_dim"]).copy()
        pairs = (slice(start, start + 2 * half, 2), slice(start + 1, start + 2 * half, 2)) \
            if p["pairing"] == "adjacent" else (slice(start, start + half), slice(start + half, start + 2 * half))
        a, b = (heads[:, columns].copy() for columns in pairs)
        heads[:, pairs[0]], heads[:, pairs[1]] = a * cos - b * sin, a * sin + b * cos
        return heads.reshape(-1)

    def attention(self, node: Node, q: Row, k: Row, v: Row) -> Row:
        import numpy as np

        if node.layer is None:
            raise BestiaryError("attention outside of a layer")
        p, layer = node.params, node.layer
        self.past[-1][layer] = k, v
        seen = self.past[-p["window"]:] if p["window"] else self.past
        shape = (len(seen), p["kv_heads"], -1)
        times = p["heads"] // p["kv_heads"]
        keys, values = (np.repeat(np.stack([token[layer][part] for token in seen]).reshape(shape), times, axis=1)
                        for part in (0, 1))  # (tokens, heads, columns of a head)
        scores = np.einsum("hd,phd->hp", q.reshape(p["heads"], -1), keys) * p["scale"]
        if p["soft_cap"]:
            scores = p["soft_cap"] * np.tanh(scores / p["soft_cap"])
        if p["slopes"]:
            scores = scores + np.asarray(p["slopes"])[:, None] * np.arange(1 - len(seen), 1)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed: Row = np.einsum("hp,phd->hd", shares / shares.sum(axis=1, keepdims=True), values)
        return mixed.reshape(-1)

    def silu(self, node: Node, x: Row) -> Row:
        import numpy as np

        y: Row = x / (1 + np.exp(-x))
        return y

    def gelu(self, node: Node, x: Row) -> Row:
        import math

        import numpy as np

        if node.params["form"] == "tanh":
            y: Row = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
            return y
        return np.array([value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()])

    def add(self, node: Node, a: Row, b: Row) -> Row:
        return a + b

    def mul(self, node: Node, a: Row, b: Row) -> Row:
        return a * b

    def scale(self, node: Node, x: Row) -> Row:
        y: Row = x * node.params["factor"]
        return y

    def slice(self, node: Node, x: Row) -> Row:
        return x[node.params["start"]:node.params["stop"]]

    def order(self, node: Node, x: Row) -> Row:
        return x[list(node.params["columns"])]

    def soft_cap(self, node: Node, x: Row) -> Row:
        import numpy as np

        y: Row = node.params["cap"] * np.tanh(x / node.params["cap"])
        return y

    def call(self, node: Node, *inputs: Row, **weights: Row) -> Row:
        import numpy as np

        params = dict(node.params)
        module, _, function = params.pop("function").partition(":")  # an architecture's word, never a file's
        rows = getattr(import_module(module), function)(
            *(x[None].astype(np.float32) for x in inputs),
            **{part: weight.astype(np.float32) for part, weight in weights.items()}, **params)
        if getattr(rows, "shape", None) != (1, node.width):
            raise BestiaryError(f"{node.params['function']} returned shape {getattr(rows, 'shape', None)}, not "
                                f"{(1, node.width)}")
        row: Row = rows[0].astype("f8")
        return row


class Double(Backend):
    """Weights, cache and sums in float64."""

    name = "double"
    rank = -1  # never unless it is asked for
    orders = True

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *, share: Plan | None = None,
                progress: Progress | None = None) -> DoublePlan:
        for node in graph.nodes:
            if not hasattr(Token, node.op):
                raise BestiaryError(f"the backend double does not know the operation {node.op}")
        if graph.prefix_mask:
            raise BestiaryError("the backend double takes a token at a time; a prefix mask needs more")
        for name in (limits.cache_type_k, limits.cache_type_v):
            if name not in CACHE_TYPES:
                raise BestiaryError(f"unknown cache type {name!r}; known: {', '.join(CACHE_TYPES)}")
        known = share.weights if isinstance(share, DoublePlan) else {}
        weights: dict[str, Row] = {}
        for done, name in enumerate(graph.weights, 1):
            weights[name] = known[name] if name in known else tensors[name].array().astype("f8")
            if progress is not None:
                progress(done, len(graph.weights), "loading")
        return DoublePlan(graph, weights, limits)


@hookimpl
def bestiary_backends() -> Iterable[Backend]:
    return [Double()]
