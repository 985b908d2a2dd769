"""Weights that hold their columns in another order: who passes the offer on, and what becomes of a graph."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Backend, Limits
from bestiary.checkpoint import Checkpoint
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Past, Trace
from bestiary.guard import calling
from bestiary.guarded_checkpoint import GuardedTensor, guarded
from bestiary.ordering import Decoded, in_order
from bestiary.past import compiled, needed
from bestiary.tensor import ArrayTensor, BlockTensor, Ordered, Tensor
from bestiary.testing.tiny import LIMITS, Piece, Runs, Shuffled, random_ids, random_weights, shuffled
from bestiary.transform import Join, JoinColumns, Permute, Regroup, Split, SplitColumns, Stack, Transpose, Unstack
from bestiary_plugins.backends.numpy import NumpyBackend

WIDTH, VOCABULARY = 12, 20
NIBBLES = Encoding("signs", 4, (1,), decoder=lambda rows, columns: np.ones((len(rows), columns), np.float32))
Floats = NDArray[np.float32]


def order(seed: int = 0, width: int = WIDTH) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(width)


def weight(rows: int, seed: int = 0, turned: int = 0, width: int = WIDTH) -> Shuffled:
    """Its numbers by `seed`, its order by `turned`."""
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return Shuffled(ArrayTensor(values), order(turned, width))


def check(tensor: Tensor) -> None:
    """The offer is the weight, in its order."""
    assert tensor.ordered is not None
    offer, columns = tensor.ordered
    assert offer.shape == tensor.shape
    np.testing.assert_array_equal(offer.array(), tensor.array()[..., columns])


def test_most_tensors_offer_nothing() -> None:
    assert ArrayTensor(np.zeros((3, 4), np.float32)).ordered is None


def test_what_acts_on_rows_passes_the_offer_on() -> None:
    made = weight(8)
    check(made)
    for transform in (Permute((3, 1, 2, 0, 7, 6, 5, 4)), Regroup((2, 4), (1, 0)), Split((3, 5))):
        for tensor in transform.apply([made]):
            check(tensor)
            assert tensor.ordered is not None
            np.testing.assert_array_equal(tensor.ordered.order, order())
    (joined,) = Join((8, 4)).apply([made, weight(4, 1)])
    check(joined)
    (stack,) = Stack(2).apply([made, weight(8, 1)])
    check(stack)
    for tensor in Unstack(2).apply([stack]):
        check(tensor)


def test_parts_of_other_orders_have_none_together_and_what_acts_on_columns_offers_nothing() -> None:
    made = weight(WIDTH)
    plain, halves = ArrayTensor(made.array()), Shuffled(ArrayTensor(np.ones((12, 12), np.float16)), order())
    for other in (weight(WIDTH, 1, turned=1), plain, halves):
        (joined,) = Join((WIDTH, WIDTH)).apply([made, other])
        assert joined.ordered is not None and joined.ordered.order is None  # so that somebody says it
        assert joined.ordered.tensor is joined
        np.testing.assert_array_equal(joined.array(), np.concatenate((made.array(), other.array())))
    for tensor in (*SplitColumns((4, 8)).apply([made]), *JoinColumns((12, 12)).apply([made, made]),
                   *Transpose().apply([made])):
        assert tensor.ordered is None


def test_what_a_weight_was_quantized_as_is_known_wherever_its_rows_and_columns_go() -> None:
    codes = BlockTensor(np.zeros((4, 3), np.uint8), (4, 12), NIBBLES)
    made = Shuffled(codes, order())
    assert codes.quantized_as == made.quantized_as == NIBBLES
    assert weight(8).quantized_as is None and ArrayTensor(made.array()).quantized_as is None
    other = Shuffled(codes, order(1))
    (joined,), (mixed,) = (Join((4, 4)).apply(parts) for parts in ([made, other], [ArrayTensor(made.array()), made]))
    for tensor in (joined, mixed, Decoded(made), GuardedTensor(made, "w", calling("loader x", "open")),
                   *(tensor for transform in (Permute((3, 1, 2, 0)), Split((1, 3)), SplitColumns((4, 8)), Transpose())
                     for tensor in transform.apply([made])), *Stack(2).apply([made, made]),
                   *JoinColumns((12, 12)).apply([made, other])):
        assert tensor.quantized_as == NIBBLES and not tensor.encoding.quantized


def test_a_loader_s_bad_word_on_what_was_quantized_is_refused_by_name() -> None:
    class Wrong(ArrayTensor):
        quantized_as = "q4"  # type: ignore[assignment]

    with pytest.raises(BestiaryError, match="tensor w: loader x gives str 'q4' as the encoding that it was quantized"):
        GuardedTensor(Wrong(np.zeros((3, 4), np.float32)), "w", calling("loader x", "open")).quantized_as  # noqa: B018


def graph(tied: bool = False) -> Graph:
    g = Trace()
    x = g.embed("token_embd.weight", VOCABULARY, WIDTH)
    for i in g.layers(2):
        h = g.rms_norm(x, f"blk.{i}.norm.weight", 1e-5)
        q, k, v = (g.linear(h, f"blk.{i}.{name}.weight", WIDTH) for name in "qkv")
        x = g.add(x, g.linear(g.attention(q, k, v, 2, 2), f"blk.{i}.o.weight", WIDTH))
        x = g.add(x, g.linear(g.silu(g.linear(x, f"blk.{i}.up.weight", 30)), f"blk.{i}.down.weight", WIDTH))
    return g.finish(g.linear(x, "token_embd.weight" if tied else "output.weight", VOCABULARY), x)


def ops(made: Graph) -> list[str]:
    return [node.op for node in made.nodes]


def test_a_graph_without_offers_stays_as_it_is() -> None:
    made = graph()
    tensors = random_weights(made.weights)
    again, same, left = in_order(made, tensors, NumpyBackend())
    assert again is made and same is tensors and not left


def test_products_of_one_input_in_one_order_share_a_node() -> None:
    made = graph()
    tensors = shuffled(random_weights(made.weights))  # one order for each width
    again, taken, left = in_order(made, tensors, NumpyBackend())
    assert left == [tensors["token_embd.weight"]]
    assert ops(again).count("order") == 2 * 4 + 1 and ops(made).count("order") == 0
    assert again.weights == made.weights and again.layers == made.layers
    assert again.nodes[again.output].op == "linear" and again.nodes[again.hidden].op == "add"
    assert taken["blk.0.q.weight"] is tensors["blk.0.q.weight"].ordered.tensor  # type: ignore[union-attr]
    for node in again.nodes:
        if node.op == "order":
            assert node.width == again.nodes[node.inputs[0]].width == len(node.params["columns"])
    tensors["blk.1.k.weight"] = weight(WIDTH, 5, turned=5)
    assert ops(in_order(made, tensors, NumpyBackend())[0]).count("order") == 2 * 4 + 2
    assert pickle.loads(pickle.dumps(again)) == again


def test_a_weight_that_is_not_only_multiplied_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    made = graph(tied=True)
    tensors = shuffled(random_weights(made.weights))
    again, taken, _ = in_order(made, tensors, NumpyBackend())
    assert ops(again).count("order") == 2 * 4
    assert taken["token_embd.weight"] is tensors["token_embd.weight"]
    with caplog.at_level(logging.WARNING):
        compiled(NumpyBackend(), made, tensors, LIMITS)
    assert [record.message for record in caplog.records] == [
        "1 weights were quantized in another order of their inputs (act-order), which embeddings, "
        "experts and matrices joined of several orders do not follow: they are decoded to f32"]


def test_experts_stay_as_they_are() -> None:
    g = Trace()
    x = g.embed("e.weight", VOCABULARY, WIDTH)
    for _ in g.layers(1):
        x = g.moe(x, "r.weight", "g.weight", "u.weight", "d.weight", experts=3, width=8, top_k=2)
    made = g.finish(x, x)
    tensors = shuffled(random_weights(made.weights))
    (tensors["g.weight"],) = Stack(3).apply([weight(8, 1, turned=i) for i in range(3)])
    again, same, left = in_order(made, tensors, NumpyBackend())
    assert again is made and same is tensors
    assert left == [tensors[f"{name}.weight"] for name in "ergud"]


def test_a_product_with_rows_of_several_orders_stays_as_it_is() -> None:
    g = Trace()
    x = g.embed("e.weight", VOCABULARY, WIDTH)
    y = g.linear(x, "w.weight", 2 * WIDTH)
    made = g.finish(y, x)
    tensors = random_weights(made.weights)
    (tensors["w.weight"],) = Join((WIDTH, WIDTH)).apply([weight(WIDTH), weight(WIDTH, turned=1)])
    again, same, left = in_order(made, tensors, NumpyBackend())
    assert again is made and same is tensors and left == [tensors["w.weight"]]


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_weights_decoded(tied: bool) -> None:
    made = graph(tied)
    tensors = shuffled(random_weights(made.weights))
    ids = random_ids(VOCABULARY, 15)
    plan = compiled(NumpyBackend(), made, tensors, LIMITS)
    assert "order" in ops(plan.graph)
    wanted = Runs(NumpyBackend().compile(made, tensors, LIMITS)).prefill(ids)
    np.testing.assert_allclose(Runs(plan).prefill(ids), wanted, 0, 1e-5 * float(np.ptp(wanted)))


def test_a_graph_with_orders_is_cut_where_it_could_be() -> None:
    made = graph()
    again, taken, _ = in_order(made, shuffled(random_weights(made.weights)), NumpyBackend())
    head, tail = (Runs(NumpyBackend().compile(part, taken, LIMITS)) for part in again.cut(1))
    whole, ids = Runs(NumpyBackend().compile(again, taken, LIMITS)), random_ids(VOCABULARY, 15)
    piece = Piece(0, ids, 0, len(ids))
    hidden = head.forward(head.plan.new_cache(), piece, output="hidden")
    found = tail.run(tail.batch(piece, hidden=hidden), tail.plan.new_cache())
    np.testing.assert_array_equal(found, whole.prefill(ids))


def test_what_stands_before_the_first_token_is_rewritten_too() -> None:
    g = Trace()
    y = g.embed("past.weight", 3, WIDTH, index="position")
    for _ in g.layers(1):
        y = g.linear(y, "shared.weight", WIDTH)
        y = g.attention(y, y, y, 2, 2)
    past = Past(g.finish(y, y), 3)
    g = Trace()
    x = g.embed("e.weight", VOCABULARY, WIDTH)
    for _ in g.layers(1):
        x = g.linear(x, "shared.weight", WIDTH)
        x = g.attention(x, x, x, 2, 2)
    made = g.finish(x, x, past=past)
    tensors = shuffled(random_weights(made.weights))
    again, _, _ = in_order(made, tensors, NumpyBackend())
    assert again.past is not None and "order" in ops(again) and "order" in ops(again.past.graph)
    ids = random_ids(VOCABULARY, 7)
    decoded = {name: ArrayTensor(tensor.array()) for name, tensor in tensors.items()}
    found, wanted = (Runs(compiled(NumpyBackend(), made, given, LIMITS)).prefill(ids) for given in (tensors, decoded))
    np.testing.assert_allclose(found, wanted, 0, 1e-5 * float(np.ptp(wanted)))


class Plain(NumpyBackend):
    """A backend that was written before the operation."""

    name = "plain"
    orders = False


def test_a_backend_that_does_not_run_it_gets_the_weights_decoded(caplog: pytest.LogCaptureFixture) -> None:
    assert Backend.orders is False
    made = graph()
    tensors = shuffled(random_weights(made.weights))
    with caplog.at_level(logging.WARNING):
        plan = compiled(Plain(), made, tensors, LIMITS)
    assert plan.graph == made
    assert needed(Plain(), made, tensors, Limits(8)) is None
    assert [record.message for record in caplog.records] == [
        "14 weights were quantized in another order of their inputs (act-order), which the backend plain "
        "does not follow: they are decoded to f32"]


class Offers(ArrayTensor):
    def __init__(self, offer: object) -> None:
        super().__init__(np.zeros((3, 4), np.float32))
        self.offer = offer

    @property
    def ordered(self) -> Ordered | None:
        if isinstance(self.offer, Exception):
            raise self.offer
        return self.offer  # type: ignore[return-value]


GOOD = ArrayTensor(np.zeros((3, 4), np.float32))
WRONG: Mapping[str, object] = {
    "no pair": GOOD,
    "a plain pair": (GOOD, np.arange(4)),
    "no tensor": Ordered(np.zeros((3, 4)), np.arange(4)),  # type: ignore[arg-type]
    "another shape": Ordered(ArrayTensor(np.zeros((4, 3), np.float32)), np.arange(4)),
    "a column twice": Ordered(GOOD, np.array([0, 1, 1, 3])),
    "a column beyond": Ordered(GOOD, np.array([0, 1, 2, 4])),
    "a column before": Ordered(GOOD, np.array([-1, 0, 1, 2])),
    "too few": Ordered(GOOD, np.arange(3)),
    "numbers": Ordered(GOOD, np.arange(4.0)),  # type: ignore[arg-type]
    "a list": Ordered(GOOD, [0, 1, 2, 3]),  # type: ignore[arg-type]
    "a grid": Ordered(GOOD, np.arange(4).reshape(2, 2)),
}


@pytest.mark.parametrize("offer", WRONG.values(), ids=WRONG)
def test_a_loader_s_bad_offer_is_refused_by_name(offer: object) -> None:
    made = guarded(Checkpoint(Path("m"), {"a": 1}, {"w": Offers(offer)}, "own"), Path("m"), calling("loader x", "open"))
    with pytest.raises(BestiaryError, match="tensor w: loader x offers .*not a tensor of its shape and an order of 4"):
        made.tensors["w"].ordered  # noqa: B018 - it is a property


def test_a_loader_s_good_offer_comes_through_and_its_faults_have_its_name(caplog: pytest.LogCaptureFixture) -> None:
    tensor = GuardedTensor(Offers(Ordered(GOOD, np.array([3, 0, 2, 1]))), "w", calling("loader x", "open"))
    check(tensor)
    with pytest.raises(SystemError):
        GuardedTensor(Offers(SystemError("no")), "w", calling("loader x", "open")).ordered  # noqa: B018
    assert [record.message for record in caplog.records] == ["loader x failed to read tensor w: SystemError: no"]
