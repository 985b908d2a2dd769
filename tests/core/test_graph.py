"""Graphs: traced once, every use of a weight declares its shape, and cut in two they give the same."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bestiary.backend import Batch, Limits
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace, Value
from bestiary.host import Host, HostSettings
from bestiary.tensor import ArrayTensor

LAYERS = 3


def graph(crossing: bool = False) -> Graph:
    """A small model. crossing: a value of the first layer is used in the last."""
    g = Trace()
    x = g.embed("embed", 11, 8)
    early = x
    for i in g.layers(LAYERS):
        h = g.rms_norm(x, f"{i}.norm", 1e-5)
        q, k, v = (g.linear(h, f"{i}.{name}", 8, bias=f"{i}.{name}.bias" if name == "v" else None) for name in "qkv")
        x = g.add(x, g.attention(g.rope(q, 4, 100.0), g.rope(k, 4, 100.0), v, 2, 2))
        if i == 0:
            early = h
        if crossing and i == LAYERS - 1:
            x = g.add(x, early)
    h = g.layer_norm(x, "norm", None, 1e-5)
    return g.finish(g.linear(h, "output", 11), hidden=h)


def test_every_use_of_a_weight_declares_its_shape() -> None:
    made = graph()
    assert made.weights["embed"] == (11, 8)
    assert made.weights["1.norm"] == (8,)
    assert made.weights["2.v.bias"] == (8,)
    assert made.weights["output"] == (11, 8)
    assert len(made.weights) == 3 + 5 * LAYERS
    assert (made.layers, made.vocabulary) == (LAYERS, 11)
    assert {name for node in made.nodes for name in node.weights.values()} == set(made.weights)


def test_nodes_know_their_layer_and_use_only_earlier_ones() -> None:
    made = graph()
    assert [node.layer for node in made.nodes if node.op == "attention"] == [0, 1, 2]
    assert made.nodes[0].layer is None
    assert made.nodes[-1].layer is None
    assert all(i < place for place, node in enumerate(made.nodes) for i in node.inputs)


def test_a_weight_may_be_used_twice_but_not_in_two_shapes() -> None:
    g = Trace()
    x = g.embed("tied", 11, 8)
    assert g.finish(g.linear(x, "tied", 11), x).weights == {"tied": (11, 8)}
    with pytest.raises(BestiaryError, match=r"weight tied is used as \(11, 8\) and as \(12, 8\)"):
        g.linear(x, "tied", 12)


def test_graphs_and_host_settings_pickle() -> None:
    made = graph()
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert again.cut(1) == made.cut(1)
    chosen = HostSettings(names=("a",), files=("b.py",), prefer=("c",))
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    host = Host(HostSettings(names=()))
    assert pickle.loads(pickle.dumps(host)).settings == host.settings


WRONG: dict[str, tuple[Callable[[Trace, Value, Value], Any], str]] = {
    "add": (lambda g, a, b: g.add(a, b), "add of values that are 12 and 8 wide"),
    "mul": (lambda g, a, b: g.mul(b, a), "mul of values that are 8 and 12 wide"),
    "slice beyond": (lambda g, a, b: g.slice(a, 4, 13), "slice 4..13 of 12 columns"),
    "slice of nothing": (lambda g, a, b: g.slice(a, 4, 4), "slice 4..4 of 12"),
    "slice before": (lambda g, a, b: g.slice(a, -1, 4), "slice -1..4 of 12"),
    "rope of heads that do not divide": (lambda g, a, b: g.rope(a, 8, 100.0), "heads of 8 in 12"),
    "rope of an odd count": (lambda g, a, b: g.rope(a, 6, 100.0, count=3), "columns 0..3 of heads of 6"),
    "rope beyond the head": (lambda g, a, b: g.rope(a, 6, 100.0, start=4, count=4), "columns 4..8 of heads of 6"),
    "rope of nothing": (lambda g, a, b: g.rope(a, 6, 100.0, count=0), "columns 0..0 of heads of 6"),
    "heads that do not divide": (lambda g, a, b: g.attention(a, a, a, 5, 5), "attention of 5 heads in 12 columns"),
    "unlike heads": (lambda g, a, b: g.attention(a, b, b, 2, 2), "2 key heads in 8"),
    "no multiple of the key heads": (lambda g, a, b: g.attention(a, a, a, 3, 2), "attention of 3 heads"),
    "too few slopes": (lambda g, a, b: g.attention(a, a, a, 2, 2, slopes=(1.0,)), "attention of 2 heads"),
    "norm over groups that do not divide": (lambda g, a, b: g.rms_norm(a, None, 1e-5, group=5), "groups of 5"),
    "layer norm over groups that do not divide": (lambda g, a, b: g.layer_norm(a, None, None, 1e-5, group=7), "of 7"),
    "rope by too few numbers": (lambda g, a, b: g.rope(a, 6, 100.0, factors=(1.0, 2.0)), "2 factors for 3 pairs"),
    "rope by zero": (lambda g, a, b: g.rope(a, 6, 100.0, factors=(1.0, 0.0, 2.0)), "none of them may be 0"),
    "an unknown pairing": (lambda g, a, b: g.rope(a, 6, 100.0, pairing="odd"), "pairing 'odd'"),
    "an unknown mask": (lambda g, a, b: g.attention(a, a, a, 2, 2, mask="none"), "mask 'none'"),
    "an unknown form": (lambda g, a, b: g.gelu(a, form="quick"), "form 'quick'"),
    "an unknown index": (lambda g, a, b: g.embed("other", 5, 4, index="row"), "index 'row'"),
    "rope by infinity": (lambda g, a, b: g.rope(a, 6, 100.0, factors=(1.0, math.inf, 2.0)), "may be 0 or infinite"),
    "heads of no column": (lambda g, a, b: g.rope(a, 0, 1e4), "rope: head_dim = 0; it must be an integer from 1 to"),
    "a head's half": (lambda g, a, b: g.rope(a, 6.0, 1e4), "rope: head_dim = 6.0; it must be an integer"),  # type: ignore[arg-type]
    "rope before the head": (lambda g, a, b: g.rope(a, 6, 1e4, start=-2), "rope: start = -2; it must be an integer"),
    "a stream before the first": (lambda g, a, b: g.rope(a, 6, 1e4, stream=-1), "rope: stream = -1"),
    "a base of nothing": (lambda g, a, b: g.rope(a, 6, 0.0), "rope: base = 0.0; it must be a number above 0"),
    "a base that is none": (lambda g, a, b: g.rope(a, 6, math.nan), "rope: base = nan"),
    "a base beyond numbers": (lambda g, a, b: g.rope(a, 6, 10**400), "rope: base = 1000"),
    "no heads": (lambda g, a, b: g.attention(a, a, a, 0, 0), "attention: heads = 0; it must be an integer from 1 to"),
    "more heads than columns": (lambda g, a, b: g.attention(a, a, a, 13, 13), "attention of 13 heads in 12 columns"),
    "no key heads": (lambda g, a, b: g.attention(a, a, a, 2, 0), "attention: kv_heads = 0"),
    "a window before the token": (lambda g, a, b: g.attention(a, a, a, 2, 2, window=-1), "attention: window = -1"),
    "a scale that is none": (lambda g, a, b: g.attention(a, a, a, 2, 2, math.inf), "attention: scale = inf"),
    "a cap below nothing": (lambda g, a, b: g.attention(a, a, a, 2, 2, soft_cap=-1.0), "it must be a number from 0"),
    "slopes that are none": (lambda g, a, b: g.attention(a, a, a, 2, 2, slopes=(1.0, math.nan)), "slopes = (1.0, nan)"),
    "a matrix of no rows": (lambda g, a, b: g.linear(a, "w", -3), "linear: width = -3; it must be an integer from 1"),
    "a matrix beyond reason": (lambda g, a, b: g.linear(a, "w", 1 << 40), "linear: width = 1099511627776"),
    "a matrix of a truth": (lambda g, a, b: g.linear(a, "w", True), "linear: width = True"),
    "a matrix without a name": (lambda g, a, b: g.linear(a, "", 3), "a weight is called ''; a text is wanted"),
    "an embedding of no rows": (lambda g, a, b: g.embed("q", -1, 5), "embed: rows = -1"),
    "an embedding of no columns": (lambda g, a, b: g.embed("q", 5, 0), "embed: width = 0"),
    "groups of less than nothing": (lambda g, a, b: g.rms_norm(a, "n", 1e-5, -2), "a norm: group = -2"),
    "an epsilon below nothing": (lambda g, a, b: g.rms_norm(a, "n", -1.0), "rms_norm: eps = -1.0; it must be a"),
    "no epsilon": (lambda g, a, b: g.layer_norm(a, "n", None, None), "eps = None"),  # type: ignore[arg-type]
    "no experts": (lambda g, a, b: g.moe(a, "r", "g", "u", "d", experts=0, width=3, top_k=0), "moe: experts = 0"),
    "experts of no column": (lambda g, a, b: g.moe(a, "r", "g", "u", "d", experts=4, width=0, top_k=2), "width = 0"),
    "a factor that is none": (lambda g, a, b: g.scale(a, math.nan), "scale: factor = nan; it must be a number"),
    "a cap of nothing": (lambda g, a, b: g.soft_cap(a, 0.0), "soft_cap: cap = 0.0; it must be a number above 0"),
    "a column twice": (lambda g, a, b: g.order(b, [0, 1, 2, 3, 4, 5, 6, 6]), "an order of 8 columns that is no permut"),
    "too few columns": (lambda g, a, b: g.order(b, range(7)), "an order of 7 columns that is no permutation of 8"),
    "columns beyond": (lambda g, a, b: g.order(b, range(1, 9)), "an order of 8 columns that is no permutation of 8"),
    "half columns": (lambda g, a, b: g.order(b, [0.5] * 8), "order [0.5, 0.5"),  # type: ignore[list-item]
    "columns beyond numbers": (lambda g, a, b: g.order(b, [1 << 40] * 8), "it must be a list of columns"),
    "half a slice": (lambda g, a, b: g.slice(a, 0, 6.0), "slice 0..6.0 of 12 columns"),  # type: ignore[arg-type]
    "no function": (lambda g, a, b: g.call("nocolon", a, width=3), "call of 'nocolon'; \"package.module:function\" "),
    "a result of no column": (lambda g, a, b: g.call("m:f", a, width=0), "call: width = 0"),
    "a call's bad weight": (lambda g, a, b: g.call("m:f", a, weights={"w": ("w", (3, -1))}, width=3), "w: size = -1"),
    "too many experts a token": (lambda g, a, b: g.moe(a, "r", "g", "u", "d", experts=4, width=3, top_k=5), "5 of 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_widths_that_do_not_fit_are_refused_while_tracing(name: str) -> None:
    call, words = WRONG[name]
    g = Trace()
    for _ in g.layers(1):
        a, b = g.embed("a", 5, 12), g.embed("b", 5, 8)
        with pytest.raises(BestiaryError) as caught:
            call(g, a, b)
    assert words in str(caught.value)


@pytest.mark.parametrize("count", [-1, 0, 10_001, 1 << 40, 2.0, True])
def test_a_number_of_layers_is_looked_at_before_they_are_traced(count: Any) -> None:
    with pytest.raises(BestiaryError, match="a graph: layers = .*; it must be an integer from 1 to 10000"):
        next(iter(Trace().layers(count)))


def test_attention_outside_of_the_layers_is_refused() -> None:
    g = Trace()
    x = g.embed("a", 5, 12)
    with pytest.raises(BestiaryError, match="outside of the layers"):
        g.attention(x, x, x, 2, 2)


def batch(tokens: np.ndarray[Any, np.dtype[np.int32]] | None, count: int, **more: Any) -> Batch:
    return Batch(tokens, np.arange(count, dtype=np.int32)[None], np.zeros(count, np.int32),
                 np.arange(count, dtype=np.int32), **more)


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
def test_a_graph_cut_before_any_layer_gives_the_same_when_joined(layer: int, host: Host) -> None:
    made = graph()
    random = np.random.default_rng(layer)
    tensors = {name: ArrayTensor(random.standard_normal(shape).astype(np.float32))
               for name, shape in made.weights.items()}
    limits = Limits(16, cache_type_k="f32", cache_type_v="f32")
    ids = np.array([3, 1, 4, 1, 5, 9, 2], np.int32)

    def forward(part: Graph, given: Batch, output: str = "logits") -> Any:
        plan = host.backends["numpy"].compile(part, {name: tensors[name] for name in part.weights}, limits)
        return plan.forward(given, plan.new_cache(), output)

    head, tail = made.cut(layer)
    assert set(head.weights) | set(tail.weights) == set(made.weights)
    assert not set(head.weights) & set(tail.weights)
    assert sorted({node.layer for node in head.nodes if node.layer is not None}) == list(range(layer))
    hidden = forward(head, batch(ids, 7))
    assert hidden.shape == (7, 8)
    for output in ("logits", "hidden"):
        np.testing.assert_array_equal(forward(tail, batch(None, 7, hidden=hidden), output),
                                      forward(made, batch(ids, 7), output))
    with pytest.raises(BestiaryError, match="begins with a hidden state"):
        forward(tail, batch(ids, 7))


def test_a_tied_embedding_is_in_both_halves() -> None:
    g = Trace()
    x = g.embed("tied", 11, 8)
    for i in g.layers(2):
        x = g.add(x, g.linear(x, f"{i}.w", 8))
    head, tail = g.finish(g.linear(x, "tied", 11), x).cut(1)
    assert set(head.weights) == {"tied", "0.w"}
    assert set(tail.weights) == {"tied", "1.w"}


@pytest.mark.parametrize("layer", [-1, 0, LAYERS + 1, 100])
def test_a_cut_where_there_is_no_layer_is_refused(layer: int) -> None:
    with pytest.raises(BestiaryError, match=f"a graph of {LAYERS} layers cannot be cut before layer {layer}"):
        graph().cut(layer)


def test_a_cut_that_more_than_one_value_crosses_is_refused() -> None:
    with pytest.raises(BestiaryError, match="2 values cross the cut before layer 2; one may"):
        graph(crossing=True).cut(2)


def test_the_parts_of_a_cut_can_be_cut_again() -> None:
    _, rest = graph().cut(1)
    middle, last = rest.cut(2)
    assert {node.layer for node in middle.nodes} == {None, 1}
    assert middle.nodes[0].op == last.nodes[0].op == "input"
