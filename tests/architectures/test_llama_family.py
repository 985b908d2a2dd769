"""The llama family: its row order, its scaled frequencies, and what it refuses in words."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor
from bestiary_plugins.architectures.llama import HUGGINGFACE, META, Llama

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}


def config(**changes: Any) -> dict[str, Any]:
    return {**Llama().example_config(), **changes}


def normal(**changes: Any) -> dict[str, Any]:
    return Llama().normalise(config(**changes), {})


def test_the_rows_of_q_and_k_go_from_halves_to_neighbours() -> None:
    """Hugging Face's own conversion, undone: view(heads, 2, d / 2, columns), axes 1 and 2 swapped."""
    settings = config(hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    rules = {rule.targets: rule for rule in HUGGINGFACE}
    for part, heads in (("q", 3), ("k", 1)):
        rule = rules[f"blk.{{}}.attn_{part}.weight"]
        assert rule.transform is not None
        rows = weight[:8 * heads]
        (ours,) = rule.transform(settings).apply([ArrayTensor(rows)])
        wanted = rows.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(8 * heads, 5)
        np.testing.assert_array_equal(ours.array(), wanted)
        (bias,) = rules[f"blk.{{}}.attn_{part}.bias"].transform(settings).apply(  # type: ignore[misc]
            [ArrayTensor(rows[:, 0])])
        np.testing.assert_array_equal(bias.array(), wanted[:, 0])


def test_both_namings_lead_to_the_same_weights() -> None:
    def matrices(rules: Any) -> set[str]:
        return {rule.targets for rule in rules if not rule.targets.endswith(".bias")
                and (rule.targets.endswith("norm.weight") or "attn" in rule.targets or "ffn" in rule.targets
                     or rule.targets in ("token_embd.weight", "output.weight"))}

    assert {target for target in matrices(HUGGINGFACE) if not target.endswith("norm.bias")} == matrices(META)
    graph = Llama().graph(normal(tie_word_embeddings=False), 32)
    assert {name.replace("blk.0.", "blk.{}.").replace("blk.1.", "blk.{}.") for name in graph.weights} == matrices(META)


def scaled(wavelength: float) -> float:
    """What Llama 3.1's reference code divides a frequency by."""
    low, high = 8192 / 1.0, 8192 / 4.0
    if wavelength < high:
        return 1.0
    if wavelength > low:
        return 8.0
    smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
    return 1 / ((1 - smooth) / 8.0 + smooth)


def test_frequencies_of_llama_3_1_are_kept_mixed_or_divided() -> None:
    made = normal(head_dim=128, rope_parameters=LLAMA3)
    factors = Llama().derived(made)["rope_freqs.weight"].array()
    wanted = [scaled(2 * math.pi * 500000.0 ** (2 * j / 128)) for j in range(64)]
    np.testing.assert_allclose(factors, wanted, rtol=1e-6)
    assert {1.0, 8.0} < set(np.round(factors, 4).tolist())


SPELLINGS: dict[str, dict[str, Any]] = {
    "transformers 5": {"rope_parameters": LLAMA3},
    "transformers 4": {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    "older": {"rope_theta": 500000.0, "rope_scaling": {
        **{k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")}, "type": "llama3"}},
}


def test_every_spelling_of_the_rope_means_the_same() -> None:
    first, *others = ({key: normal(**changes)[key] for key in ("rope_theta", "rope_scaling", "rope_factors")}
                      for changes in SPELLINGS.values())
    assert all(other == first for other in others)
    linear = ({"rope_scaling": {"type": "linear", "factor": 4}},
              {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
              {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
              {"rope_scaling": {"rope_type": "linear"}, "rope_factor": 4.0})
    assert all(normal(**changes)["rope_factor"] == 4.0 for changes in linear)


REFUSED: dict[str, dict[str, Any]] = {
    "rope_scaling = 'longrope'": {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
    "mscale = 0.7 is not implemented": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7}},
    "rope_theta = 0.5 with rope_scaling 'yarn'": {"rope_theta": 0.5, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "partial_rotary_factor = 0.5": {"partial_rotary_factor": 0.5},
    "rope_scaling = 'dynamic'": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "hidden_act = 'gelu'": {"hidden_act": "gelu"},
    "hidden_size = 0": {"hidden_size": 0},
    "hidden_size = '96'": {"hidden_size": "96"},
    "hidden_size = 2147483648": {"hidden_size": 1 << 31},
    "intermediate_size = 2147483648": {"intermediate_size": 1 << 31},
    "vocab_size = 2147483648": {"vocab_size": 1 << 31},
    "head_dim = 2147483648": {"head_dim": 1 << 31},
    "num_key_value_heads = 2147483648": {"num_key_value_heads": 1 << 31},
    "num_key_value_heads = 4 in the config; it must divide": {"num_key_value_heads": 4},
    "num_attention_heads = -6": {"num_attention_heads": -6},
    "num_hidden_layers = 1000000000": {"num_hidden_layers": 10 ** 9},
    "rms_norm_eps = 0": {"rms_norm_eps": 0},
    "rope_theta = inf": {"rope_theta": math.inf},
    "factor = -2": {"rope_scaling": {"rope_type": "linear", "factor": -2}},
    "no low_freq_factor": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "rope_scaling = 'linear'": {"rope_scaling": "linear"},
    "attention_bias = 'yes'": {"attention_bias": "yes"},
    "must be a multiple of the 97 heads": {"num_attention_heads": 97},
    "head_dim = 0": {"head_dim": 0},
    "high_freq_factor = 4.0 in the config; it must be a number above 4": {
        "rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
}


def test_no_number_of_a_config_takes_memory_or_time_before_the_tensors_are_compared(tmp_path: Path) -> None:
    names = [rule.sources.format(i) for rule in HUGGINGFACE if isinstance(rule.sources, str) for i in (0, 1)]
    tensors: dict[str, Tensor] = {name: ArrayTensor(np.zeros((4, 4), np.float32)) for name in names}
    keys = [key for key, value in config().items() if isinstance(value, int)]
    scaling = {**LLAMA3, "factor": 2.0}
    started = time.monotonic()
    for key in (*keys, "head_dim"):
        for value in (9999, 1 << 16, (1 << 24) - 1, (1 << 31) - 1, 1 << 31, 1 << 32, 1e9):
            given = Checkpoint(tmp_path, config(rope_scaling=scaling, **{key: value}), tensors, "huggingface",
                               TokenizerMaterial())
            with pytest.raises(BestiaryError):
                to_canonical(given, Llama())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("words", REFUSED)
def test_a_value_that_is_not_implemented_is_refused_by_key_and_value(words: str) -> None:
    with pytest.raises(BestiaryError) as caught:
        normal(**REFUSED[words])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"head_dim": 15}, {"num_key_value_heads": 4}, {"hidden_size": 100}], ids=str)
def test_heads_that_do_not_fit_are_refused_before_anything_runs(changes: dict[str, Any]) -> None:
    made = config(**changes)
    shapes = Llama().graph(normal(), 32).weights
    checkpoint = Checkpoint(Path("x"), made, {name: ArrayTensor(np.zeros(shape, np.float32))
                                              for name, shape in shapes.items()}, CANONICAL)
    with pytest.raises(BestiaryError) as caught:
        to_canonical(checkpoint, Llama())
    assert "\n" not in str(caught.value)


def test_it_claims_what_calls_itself_so_and_nothing_else() -> None:
    nothing = TokenizerMaterial()
    assert Llama().claims({"model_type": "llama"}, nothing) > 0
    assert Llama().claims({"architectures": ["LlamaForCausalLM"]}, nothing) > 0
    for other in ({}, {"model_type": "bloom"}, {"architectures": ["FalconForCausalLM"]}, {"architectures": None}):
        assert Llama().claims(other, nothing) == 0


def test_what_the_config_does_not_say_follows_from_the_tensors() -> None:
    graph = Llama().graph(normal(attention_bias=True, mlp_bias=True, tie_word_embeddings=False), 32)
    tensors: dict[str, Tensor] = {name: ArrayTensor(np.zeros(shape, np.float32))
                                  for name, shape in graph.weights.items()}
    made, _ = to_canonical(Checkpoint(Path("x"), config(vocab_size=None), tensors, CANONICAL), Llama())
    assert made.config["attention_bias"] and made.config["mlp_bias"] and not made.config["tie_word_embeddings"]
    assert made.config["vocab_size"] == 199
    del tensors["output.weight"]
    made, tied = to_canonical(Checkpoint(Path("x"), config(), tensors, CANONICAL), Llama())
    assert made.config["tie_word_embeddings"]
    assert "output.weight" not in tied.weights


def test_a_second_copy_of_a_tied_embedding_is_dropped_and_old_buffers_too() -> None:
    graph = Llama().graph(normal(tie_word_embeddings=True), 32)
    tensors: dict[str, Tensor] = {name: ArrayTensor(np.zeros(shape, np.float32))
                                  for name, shape in graph.weights.items()}
    more = {"output.weight": ArrayTensor(np.zeros((199, 96), np.float32)),
            "blk.0.rotary_emb.inv_freq": ArrayTensor(np.zeros(8, np.float32))}
    made, _ = to_canonical(Checkpoint(Path("x"), config(tie_word_embeddings=True), {**tensors, **more}, CANONICAL),
                           Llama())
    assert set(made.tensors) == set(graph.weights)


def logits(host: Host, graph: Graph, tensors: dict[str, Tensor], start: int) -> NDArray[np.float32]:
    plan = host.backends["numpy"].compile(graph, tensors, Limits(64, cache_type_k="f32", cache_type_v="f32"))
    ids = np.array([5, 9, 2, 7, 1], np.int32)
    return plan.forward(Batch(ids, np.arange(start, start + 5, dtype=np.int32)[None], np.zeros(5, np.int32),
                              np.arange(5, dtype=np.int32)), plan.new_cache())


@pytest.mark.parametrize("changes", [{}, {"rope_parameters": LLAMA3},
                                     {"rope_scaling": {"type": "linear", "factor": 2.0}}], ids=str)
def test_only_distances_between_positions_count(host: Host, changes: dict[str, Any]) -> None:
    made = normal(**changes)
    graph = Llama().graph(made, 64)
    random = np.random.default_rng(0)
    tensors: dict[str, Tensor] = {name: ArrayTensor(random.standard_normal(shape).astype(np.float32) / np.float32(8))
                                  for name, shape in graph.weights.items()} | dict(Llama().derived(made))
    np.testing.assert_allclose(logits(host, graph, tensors, 0), logits(host, graph, tensors, 40), atol=1e-3)
