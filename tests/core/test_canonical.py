"""The way to canonical names: complete, lazy, and every tensor that does not fit named in one line."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.architecture import Architecture, Rule
from bestiary.canonical import from_canonical, ignorable, matches, rename, to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, Overlay, TokenizerMaterial
from bestiary.config import flag, whole
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace
from bestiary.tensor import ArrayTensor, Tensor
from bestiary.transform import Join, Permute, Split, Stack, Transpose

EXPERTS = 12  # two digits: their order is that of numbers, not of words


class Toy(Architecture):
    """A family with every kind of rule: the same, permuted, split, joined, transposed, stacked over two indices."""

    name = "toy"
    namings = {"wild": (
        Rule("embed", "token_embd.weight"),
        Rule("layer.{}.qkv", ("blk.{}.attn_q.weight", "blk.{}.attn_k.weight", "blk.{}.attn_v.weight"),
             lambda config: Split((4, 4, 4))),
        Rule("layer.{}.out", "blk.{}.attn_output.weight", lambda config: Permute((1, 0, 3, 2))),
        Rule(("layer.{}.up.left", "layer.{}.up.right"), "blk.{}.ffn_up.weight", lambda config: Join((2, 1))),
        Rule("layer.{}.down", "blk.{}.ffn_down.weight", lambda config: Transpose()),
        Rule("layer.{}.router", "blk.{}.router.weight"),
        *(Rule(f"layer.{{}}.expert.{{}}.{part}", f"blk.{{}}.{part}_exps.weight",
               lambda config: Stack(whole(config, "experts"))) for part in ("gate", "up", "down")),
    )}
    ignorable = (r"layer\.\d+\.frequencies", r"cache\..*")

    def claims(self, config: Mapping[str, Any], tokenizer: TokenizerMaterial) -> int:
        return 50

    def normalise(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {"layers": whole(config, "layers"), "experts": whole(config, "experts"), "max_position_embeddings": 32,
                "own": flag(config, "own")}

    def derived(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return {"own.weight": ArrayTensor(np.ones(4, np.float32))} if config["own"] else {}

    def graph(self, config: Mapping[str, Any], context: int) -> Graph:
        g = Trace()
        x = g.embed("token_embd.weight", 10, 4)
        for i in g.layers(config["layers"]):
            q, k, v = (g.linear(x, f"blk.{i}.attn_{name}.weight", 4) for name in "qkv")
            x = g.linear(g.attention(q, k, v, 2, 2), f"blk.{i}.attn_output.weight", 4)
            x = g.linear(g.linear(x, f"blk.{i}.ffn_up.weight", 3), f"blk.{i}.ffn_down.weight", 4)
            x = g.moe(x, f"blk.{i}.router.weight", *(f"blk.{i}.{part}_exps.weight" for part in ("gate", "up", "down")),
                      experts=config["experts"], width=2, top_k=1)
        if config["own"]:
            x = g.rms_norm(x, "own.weight", 1e-5)
        return g.finish(g.linear(x, "token_embd.weight", 10), hidden=x)

    def example_config(self) -> dict[str, Any]:
        return {"layers": 11, "experts": EXPERTS}


def wild_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed": (10, 4)}
    for i in range(layers):
        shapes.update({f"layer.{i}.qkv": (12, 4), f"layer.{i}.out": (4, 4), f"layer.{i}.up.left": (2, 4),
                       f"layer.{i}.up.right": (1, 4), f"layer.{i}.down": (3, 4), f"layer.{i}.router": (EXPERTS, 4)})
        for e in range(EXPERTS):
            shapes.update({f"layer.{i}.expert.{e}.gate": (2, 4), f"layer.{i}.expert.{e}.up": (2, 4),
                           f"layer.{i}.expert.{e}.down": (4, 2)})
    return shapes


ARRAYS = {name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
          for i, (name, shape) in enumerate(wild_shapes(11).items())}


def wild(layers: int = 11, without: tuple[str, ...] = (), **more: tuple[int, ...]) -> Checkpoint:
    """In memory; the names in an order of no meaning. more: further tensors, by shape; dots are written as __."""
    names = sorted(name for name in wild_shapes(layers) if name not in without)
    tensors: dict[str, Tensor] = {name: ArrayTensor(ARRAYS[name]) for name in reversed(names)}
    for name, shape in more.items():
        tensors[name.replace("__", ".")] = ArrayTensor(np.zeros(shape, np.float32))
    return again(tensors, layers)


def again(tensors: Mapping[str, Tensor], layers: int) -> Checkpoint:
    return Checkpoint(Path("toy.bin"), {"layers": layers, "experts": EXPERTS}, tensors, "wild",
                      source=(reopened, (layers,)))


def reopened(layers: int) -> Checkpoint:
    return wild(layers)


def test_every_rule_puts_its_tensors_in_their_canonical_places() -> None:
    canonical, graph = to_canonical(wild(), Toy())
    assert canonical.naming == CANONICAL
    assert set(canonical.tensors) == set(graph.weights)
    assert canonical.config["max_position_embeddings"] == 32
    for i in (0, 2, 10):
        tensors = {name.removeprefix(f"blk.{i}."): tensor.array() for name, tensor in canonical.tensors.items()
                   if name.startswith(f"blk.{i}.")}
        np.testing.assert_array_equal(np.concatenate([tensors[f"attn_{name}.weight"] for name in "qkv"]),
                                      ARRAYS[f"layer.{i}.qkv"])
        np.testing.assert_array_equal(tensors["attn_output.weight"], ARRAYS[f"layer.{i}.out"][[1, 0, 3, 2]])
        np.testing.assert_array_equal(tensors["ffn_up.weight"], np.concatenate(
            [ARRAYS[f"layer.{i}.up.left"], ARRAYS[f"layer.{i}.up.right"]]))
        np.testing.assert_array_equal(tensors["ffn_down.weight"], ARRAYS[f"layer.{i}.down"].T)
        for part in ("gate", "up", "down"):
            np.testing.assert_array_equal(tensors[f"{part}_exps.weight"], np.stack(
                [ARRAYS[f"layer.{i}.expert.{e}.{part}"] for e in range(EXPERTS)]))


def test_a_canonical_checkpoint_pickles_as_the_way_to_it() -> None:
    canonical, _ = to_canonical(wild(2), Toy())
    copy: Checkpoint = pickle.loads(pickle.dumps(canonical))
    assert set(copy.tensors) == set(canonical.tensors)
    name = "blk.1.gate_exps.weight"
    np.testing.assert_array_equal(copy.tensors[name].array(), canonical.tensors[name].array())


def test_a_canonical_checkpoint_is_taken_as_it_is() -> None:
    canonical, graph = to_canonical(wild(2), Toy())
    twice, again = to_canonical(canonical.having(config={"layers": 2, "experts": EXPERTS}), Toy())
    assert dict(twice.tensors) == dict(canonical.tensors)
    assert again == graph


def test_what_follows_from_the_config_is_added_and_a_stored_one_wins() -> None:
    config = {"layers": 1, "experts": EXPERTS, "own": True}
    made, _ = to_canonical(wild(1).having(config=config), Toy())
    np.testing.assert_array_equal(made.tensors["own.weight"].array(), np.ones(4))
    stored: dict[str, Tensor] = {**made.tensors, "own.weight": ArrayTensor(np.full(4, 2, np.float32))}
    made, _ = to_canonical(made.having(config=config, tensors=stored), Toy())
    np.testing.assert_array_equal(made.tensors["own.weight"].array(), np.full(4, 2))


def refusal(checkpoint: Checkpoint) -> str:
    with pytest.raises(BestiaryError) as caught:
        to_canonical(checkpoint, Toy())
    assert "\n" not in str(caught.value)
    return str(caught.value)


class OldToy(Toy):
    """Its first canonical files called a tensor otherwise, and a weight of it serves long contexts only."""

    namings = {**Toy.namings, CANONICAL: (Rule("blk.{}.ffn_going_up.weight", "blk.{}.ffn_up.weight"),)}

    def graph(self, config: Mapping[str, Any], context: int) -> Graph:
        g = Trace()
        x = g.linear(g.embed("token_embd.weight", 10, 4), "blk.0.ffn_up.weight", 3)
        g.keep("long.weight", 3)
        if context > 32:
            x = g.rms_norm(x, "long.weight", 1e-5)
        return g.finish(x, hidden=x)


def old(**more: tuple[int, ...]) -> Checkpoint:
    shapes = {"token_embd.weight": (10, 4), "long.weight": (3,), "blk.0.ffn_going_up.weight": (3, 4), **more}
    tensors: dict[str, Tensor] = {name: ArrayTensor(np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    return Checkpoint(Path("old.bin"), {"layers": 1, "experts": 1}, tensors, CANONICAL)


def test_names_of_older_canonical_files_have_rules_too() -> None:
    assert set(to_canonical(old(), OldToy())[0].tensors) == {"token_embd.weight", "blk.0.ffn_up.weight", "long.weight"}
    with pytest.raises(BestiaryError, match="no use for tensor blk.0.more"):
        to_canonical(old(**{"blk.0.more": (1,)}), OldToy())


def test_the_graph_follows_the_context_and_keeps_what_another_context_needs() -> None:
    short, graph = to_canonical(old(), OldToy())
    long, longer = to_canonical(old(), OldToy(), 33)
    assert [node.op for node in graph.nodes] == ["embed", "linear"]
    assert [node.op for node in longer.nodes] == ["embed", "linear", "rms_norm"]
    assert set(short.tensors) == set(long.tensors) == set(graph.weights) == set(longer.weights)


def test_tensors_that_are_missing_are_named() -> None:
    assert "tensor blk.1.attn_output.weight missing" in refusal(wild(2, ("layer.1.out",)))
    assert "tensors token_embd.weight, blk.0.attn_q.weight, blk.0.attn_k.weight and 1 more missing" in refusal(
        wild(1, ("embed", "layer.0.qkv")))


def test_a_layer_too_many_and_tensors_that_nobody_knows_are_named() -> None:
    assert "does not know tensor layer.0.surprise" in refusal(wild(1, layer__0__surprise=(3,)))
    assert "does not know tensors a, b, c and 2 more" in refusal(wild(1, a=(1,), b=(1,), c=(1,), d=(1,), e=(1,)))
    long = wild(3)
    assert "has no use for tensors blk.2." in refusal(long.having(config={"layers": 2, "experts": EXPERTS}))
    canonical, _ = to_canonical(wild(1), Toy())
    more = {**canonical.tensors, "blk.0.extra.weight": ArrayTensor(np.zeros(3, np.float32))}
    assert "has no use for tensor blk.0.extra.weight" in refusal(
        canonical.having(config={"layers": 1, "experts": EXPERTS}, tensors=more))


def test_tensors_that_may_be_ignored_are_dropped() -> None:
    canonical, graph = to_canonical(wild(1, layer__0__frequencies=(3,), cache__anything=(2, 2)), Toy())
    assert set(canonical.tensors) == set(graph.weights)
    assert "does not know tensor layer.x.frequencies" in refusal(wild(1, layer__x__frequencies=(3,)))


def test_a_tensor_of_another_shape_than_the_config_asks_for_is_named_with_both() -> None:
    bad = wild(1, ("layer.0.router",), layer__0__router=(EXPERTS, 5))
    assert f"blk.0.router.weight has shape [{EXPERTS}, 5]; the config asks for [{EXPERTS}, 4]" in refusal(bad)


def test_a_transform_that_its_tensors_do_not_fit_names_them() -> None:
    bad = refusal(wild(1, ("layer.0.qkv",), layer__0__qkv=(11, 4)))
    assert "layer.0.qkv" in bad
    assert "cannot be split into rows (4, 4, 4)" in bad


def test_a_missing_expert_is_an_error_that_names_the_stack() -> None:
    for missing in (0, 5, EXPERTS - 1):
        words = refusal(wild(2, (f"layer.1.expert.{missing}.up",)))
        assert "layer.1.expert" in words
        assert "up" in words


def test_experts_counted_with_a_gap_are_an_error() -> None:
    """As many as there should be, but one is another's."""
    bad = wild(1, ("layer.0.expert.5.up",), **{f"layer__0__expert__{EXPERTS}__up": (2, 4)})
    assert "layer.0.expert" in refusal(bad)


def test_half_of_a_joined_pair_is_named() -> None:
    assert "does not know tensor layer.0.up.left" in refusal(wild(1, ("layer.0.up.right",)))


def test_an_unknown_naming_is_refused_with_the_known() -> None:
    with pytest.raises(BestiaryError, match="does not know the tensor names of 'tame' checkpoints; known: wild"):
        to_canonical(wild(1).having(naming="tame"), Toy())


def test_indices_are_plain_numbers() -> None:
    rule = Rule("layer.{}.out", "blk.{}.attn_output.weight")
    names = ["layer.0.out", "layer.00.out", "layer.-1.out", "layer.1x.out", "layer.12345678.out", "layer.٣.out",
             "xlayer.0.out", "layer.0.outer", "layer.7.out", "layer.0/out"]
    assert matches(rule, names) == [(["layer.0.out"], ["blk.0.attn_output.weight"]),
                                    (["layer.7.out"], ["blk.7.attn_output.weight"])]


def test_stacks_are_ordered_by_number_in_each_layer() -> None:
    rule = Rule("layer.{}.expert.{}", "blk.{}.exps", lambda config: Stack(11))
    names = [f"layer.{layer}.expert.{e}" for layer in (10, 2) for e in sorted(range(11), key=str)]
    assert matches(rule, names) == [([f"layer.{layer}.expert.{e}" for e in range(11)], [f"blk.{layer}.exps"])
                                    for layer in (2, 10)]


def test_nothing_is_read_on_the_way_to_canonical_names() -> None:
    class Unread(Tensor):
        def __init__(self, base: Tensor) -> None:
            self.shape, self.encoding = base.shape, base.encoding

        def read(self, start: int, stop: int) -> Any:
            raise AssertionError("a tensor was read")

    checkpoint = wild(2)
    to_canonical(checkpoint.having(tensors={name: Unread(tensor) for name, tensor in checkpoint.tensors.items()}),
                 Toy())


def doubled(base: Checkpoint) -> Mapping[str, Tensor]:
    return {"embed": ArrayTensor(2 * base.tensors["embed"].array())}


def test_an_overlay_replaces_tensors_before_they_are_renamed_and_pickles() -> None:
    laid = Overlay(wild(1), doubled)
    np.testing.assert_array_equal(rename(laid, Toy())[0]["token_embd.weight"].array(), 2 * ARRAYS["embed"])
    copy: Checkpoint = pickle.loads(pickle.dumps(laid))
    np.testing.assert_array_equal(copy.tensors["embed"].array(), 2 * ARRAYS["embed"])


def test_a_checkpoint_made_in_memory_says_that_it_does_not_pickle() -> None:
    with pytest.raises(TypeError, match="made in memory"):
        pickle.dumps(wild(1).having(metadata={"name": "x"}))


class Layered(Toy):
    """Says its layers under the name that most do, and must not be asked for a graph of too many."""

    def normalise(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().normalise(config, shapes), "num_hidden_layers": 10_000}

    def graph(self, config: Mapping[str, Any], context: int) -> Graph:
        raise AssertionError("traced")


def test_more_layers_than_tensors_are_refused_before_the_graph_is_traced() -> None:
    with pytest.raises(BestiaryError, match="num_hidden_layers = 10000 in the config, and only .* tensors"):
        to_canonical(wild(), Layered())


class Deriving(Toy):
    def derived(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        raise AssertionError("derived")


def test_nothing_is_derived_from_a_config_that_the_tensors_contradict() -> None:
    bad = wild()
    tensors = {**bad.tensors, "layer.0.router": ArrayTensor(np.zeros((EXPERTS, 3), np.float32))}
    with pytest.raises(BestiaryError, match="router.weight has shape"):
        to_canonical(again(tensors, 11), Deriving())


def test_the_way_back_gives_the_names_and_the_rows_there_were() -> None:
    given = wild(2, layer__0__frequencies=(3,))
    theirs = from_canonical(to_canonical(given, Toy())[0], Toy(), "wild")
    used = {name: tensor for name, tensor in given.tensors.items() if not ignorable(Toy(), name)}
    assert theirs.naming == "wild" and theirs.tensors.keys() == used.keys()
    for name, tensor in used.items():
        assert np.array_equal(theirs.tensors[name].array(), tensor.array()), name
    copy: Checkpoint = pickle.loads(pickle.dumps(from_canonical(to_canonical(wild(2), Toy())[0], Toy(), "wild")))
    assert copy.naming == "wild" and copy.tensors.keys() == theirs.tensors.keys()


def test_what_follows_from_the_config_does_not_go_back() -> None:
    given = wild(2)
    own, _ = to_canonical(given.having(config={**given.config, "own": True}), Toy())
    assert "own.weight" in own.tensors
    assert from_canonical(own, Toy(), "wild").tensors.keys() == given.tensors.keys()


def test_the_way_back_reads_no_row_before_it_is_asked() -> None:
    class Unread(ArrayTensor):
        def read(self, start: int, stop: int) -> Any:
            raise AssertionError("read too early")

    canonical, _ = to_canonical(wild(2), Toy())
    unread = canonical.having(tensors={name: Unread(np.zeros(tensor.shape, np.float32))
                                       for name, tensor in canonical.tensors.items()})
    assert from_canonical(unread, Toy(), "wild").tensors


def test_what_has_no_name_there_is_said() -> None:
    canonical, _ = to_canonical(wild(2), Toy())
    with pytest.raises(BestiaryError, match="toy does not know the tensor names of 'tame' checkpoints; known: wild"):
        from_canonical(canonical, Toy(), "tame")
    more = canonical.having(tensors={**canonical.tensors, "blk.0.odd.weight": ArrayTensor(np.zeros(4, np.float32))})
    with pytest.raises(BestiaryError, match="'wild' checkpoints of toy have no name for tensor blk.0.odd.weight"):
        from_canonical(more, Toy(), "wild")


def test_a_transform_that_cannot_go_back_is_said() -> None:
    canonical, _ = to_canonical(wild(2), Toy())
    short = canonical.having(tensors={**canonical.tensors, "blk.0.attn_output.weight": ArrayTensor(
        np.zeros((3, 4), np.float32))})
    with pytest.raises(BestiaryError, match="4 rows cannot be permuted"):
        from_canonical(short, Toy(), "wild")


def test_spare_tensors_are_left_out_where_nobody_has_a_place_for_them() -> None:
    bias = {"embed.bias": ArrayTensor(np.zeros(3, np.float32))}
    base = wild(2)
    checkpoint = base.having(tensors={**base.tensors, **bias}, spare=frozenset(bias))
    canonical, _ = to_canonical(checkpoint, Toy())
    assert canonical.tensors.keys() == to_canonical(base, Toy())[0].tensors.keys() and not canonical.spare
    every = to_canonical(base.having(spare=frozenset(base.tensors)), Toy())[0]
    assert every.tensors.keys() == canonical.tensors.keys()  # nothing is spare that the graph declares
    for given in (checkpoint.having(spare=frozenset()), Overlay(checkpoint, lambda _: bias)):
        with pytest.raises(BestiaryError, match=r"does not know tensor embed\.bias"):
            to_canonical(given, Toy())
