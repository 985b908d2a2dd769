"""Llama's kin: whose a config is, what canonical files say of it, and what is refused in words."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.convert import convert, recipe_for
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, Tensor
from bestiary_plugins.loaders.gguf_header import read_header
from tests.goldens.random_models import save_random

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
           "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM",
           "phi3": "Phi3ForCausalLM", "gpt2": "GPT2LMHeadModel", "gptneox": "GPTNeoXForCausalLM"}
families = pytest.mark.parametrize("family", CLASSES)
OTHERS = {"bloom": "BloomForCausalLM", "falcon": "FalconForCausalLM", "chatglm": "GlmForCausalLM",
          "glm4": "Glm4ForCausalLM"}
"""No kin of LLaMA, but known by their class as well."""
NAMED = CLASSES | OTHERS


def normal(host: Host, family: str, **changes: Any) -> dict[str, Any]:
    architecture = host.architectures[family]
    return architecture.normalise({**architecture.example_config(), **changes}, {})


@pytest.mark.parametrize("family", NAMED)
def test_a_config_is_one_familys_by_its_type_and_by_its_class(family: str, host: Host) -> None:
    config = host.architectures[family].example_config()
    named = {"architectures": [NAMED[family]]}
    for known in (config, {"model_type": config["model_type"]}, named):
        assert host.architecture_of(known, TokenizerMaterial()).name == family
    with pytest.raises(BestiaryError):
        host.architecture_of({"model_type": "other", "architectures": None}, TokenizerMaterial())


@pytest.mark.parametrize("name", ["ChatGLMModel", "ChatGLMForConditionalGeneration"])
def test_the_generations_of_chatglm_are_told_apart_by_class_too(name: str, host: Host) -> None:
    for known, family in (({}, "chatglm"), ({"inner_hidden_size": 160}, "chatglm1")):
        config = {**known, "architectures": [name]}
        assert host.architecture_of(config, TokenizerMaterial()).name == family


@pytest.mark.parametrize("given", [False, None, "no"])
@pytest.mark.parametrize("family", [*NAMED, "chatglm1"])
def test_attention_to_what_follows_is_refused(family: str, given: object, host: Host, tmp_path: Path) -> None:
    architecture = host.architectures[family]
    config = architecture.example_config()
    weights = architecture.graph(architecture.normalise(config, {}), 32).weights
    zeros: dict[str, Tensor] = {name: ArrayTensor(np.zeros(shape, np.float32)) for name, shape in weights.items()}
    with pytest.raises(BestiaryError, match=f"is_causal = {given!r} is not implemented"):
        to_canonical(Checkpoint(tmp_path, {**config, "is_causal": given}, zeros, CANONICAL), architecture)
    to_canonical(Checkpoint(tmp_path, {**config, "is_causal": True}, zeros, CANONICAL), architecture)


@families
def test_a_normalised_config_stays_as_it_is(family: str, host: Host) -> None:
    made = normal(host, family)
    assert host.architectures[family].normalise(made, {}) == made


KEYS: dict[str, dict[str, Any]] = {
    "mistral": {"general.architecture": "llama", "llama.attention.sliding_window": 24},
    "mixtral": {"general.architecture": "llama", "llama.expert_count": 4, "llama.expert_used_count": 2},
    "qwen2": {"qwen2.attention.head_count_kv": 2, "qwen2.rope.freq_base": 10000.0},
    "qwen3": {"qwen3.attention.key_length": 24},
    "gemma2": {"gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0,
               "gemma2.attention.sliding_window": 24},
    "phi3": {"phi3.rope.dimension_count": 12, "phi3.rope.scaling.original_context_length": 64,
             "phi3.rope.scaling.attn_factor": math.sqrt(1 + math.log(2) / math.log(64))},
    "gpt2": {"gpt2.context_length": 128, "gpt2.feed_forward_length": 384, "gpt2.attention.layer_norm_epsilon": 1e-5},
    "gptneox": {"gptneox.rope.dimension_count": 6, "gptneox.use_parallel_residual": True},
}


def rounded(graph: Graph) -> list[Any]:
    """The nodes, their numbers as exact as f32."""
    return [(node.op, node.inputs, node.weights, {key: float(np.float32(value)) if isinstance(value, float) else value
                                                  for key, value in node.params.items()}) for node in graph.nodes]


@pytest.mark.parametrize("family", KEYS)
def test_a_file_has_the_keys_of_llama_cpp_and_opens_as_what_it_was(family: str, host: Host, tmp_path: Path) -> None:
    """Also once the embedded config is gone, and after it was quantized from such a file."""
    config = host.architectures[family].example_config()
    save_random(config, host, tmp_path / "ours.gguf")
    written = read_header(DataFile(tmp_path / "ours.gguf")).metadata
    for key, value in {"general.architecture": family, **KEYS[family]}.items():
        found = written[key].value
        assert found == (value.encode() if isinstance(value, str) else pytest.approx(value + 0, rel=1e-6)), key
    opened = host.open(tmp_path / "ours.gguf")
    assert host.architecture_of(opened.config, opened.tokenizer).name == family
    made, graph = to_canonical(opened, host.architectures[family])
    assert {**made.config, **normal(host, family), "model_type": None} == {**made.config, "model_type": None}
    bare = (tmp_path / "ours.gguf").read_bytes().replace(b"bestiary.config", b"somebody.config")
    (tmp_path / "bare.gguf").write_bytes(bare)
    foreign = host.open(tmp_path / "bare.gguf")
    chosen = host.architecture_of(foreign.config, foreign.tokenizer)
    again, foreign_graph = to_canonical(foreign, chosen)
    assert chosen.name == family
    if family != "qwen2":  # whose window is in no key
        assert rounded(foreign_graph) == rounded(graph)
    small = convert(again, foreign_graph, recipe_for(host.quantizers["q8_0"]), host)
    host.writers["gguf"].save(small, tmp_path / "small.gguf", host)
    last = host.open(tmp_path / "small.gguf")
    assert host.architecture_of(last.config, last.tokenizer).name == family
    assert rounded(to_canonical(last, chosen)[1]) == rounded(foreign_graph)


def test_a_llama_stays_a_llama(host: Host, tmp_path: Path) -> None:
    save_random(host.architectures["llama"].example_config(), host, tmp_path / "x.gguf")
    opened = host.open(tmp_path / "x.gguf")
    assert host.architecture_of(opened.config, opened.tokenizer).name == "llama"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding_window = -1": ("mistral", {"sliding_window": -1}),
    "sliding_window = 'wide'": ("mistral", {"sliding_window": "wide"}),
    "rope_scaling = 'dynamic'": ("mistral", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "num_experts_per_tok = 5": ("mixtral", {"num_experts_per_tok": 5}),
    "num_local_experts = 0": ("mixtral", {"num_local_experts": 0}),
    "num_local_experts = 2147483648": ("mixtral", {"num_local_experts": 1 << 31}),
    "mlp_bias = True": ("mixtral", {"mlp_bias": True}),
    "rope_scaling = 'mrope'": ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}),
    "rope_scaling = 'llama3'": ("qwen2", {"rope_scaling": {"rope_type": "llama3"}}),
    "attention_factor = 1.5": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}}),
    "layer_types = 'chunked_attention'": ("qwen2", {"layer_types": ["chunked_attention"] * 3}),
    "it must list the 3 layers": ("qwen3", {"layer_types": ["full_attention"]}),
    "max_window_layers = 'all'": ("qwen2", {"max_window_layers": "all"}),
    "hidden_act = 'gelu'": ("gemma2", {"hidden_activation": "gelu"}),
    "use_bidirectional_attention = True": ("gemma2", {"use_bidirectional_attention": True}),
    "query_pre_attn_scalar = 0": ("gemma2", {"query_pre_attn_scalar": 0}),
    "final_logit_softcapping = 0": ("gemma2", {"final_logit_softcapping": 0}),
    "rope_scaling = 'yarn'": ("phi3", {"rope_scaling": {"type": "yarn"}}),
    "short_factor = [1.0] in rope_scaling; it must be a list of 6 numbers": (
        "phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}),
    "long_factor = 0": ("phi3", {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 6, "long_factor": [0.0] * 6}}),
    "original_max_position_embeddings = 32 in rope_scaling; beside it stands 64": ("phi3", {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0] * 6,
        "original_max_position_embeddings": 32}}),
    "factor = -1": ("phi3", {"rope_scaling": {
        "type": "longrope", "factor": -1, "short_factor": [1.0] * 6, "long_factor": [1.0] * 6}}),
    "position_encoding_2d = False": ("chatglm1", {"position_encoding_2d": False}),
    "partial_rotary_factor = 1.5": ("phi3", {"partial_rotary_factor": 1.5}),
    "original_max_position_embeddings = 1": ("phi3", {"original_max_position_embeddings": 1}),
    "activation_function = 'relu'": ("gpt2", {"activation_function": "relu"}),
    "add_cross_attention = True": ("gpt2", {"add_cross_attention": True}),
    "n_embd = 97 in the config; it must be a multiple of the 6 heads": ("gpt2", {"n_embd": 97}),
    "hidden_act = 'relu'": ("gptneox", {"hidden_act": "relu"}),
    "rope_scaling = 'llama3' ": ("gptneox", {"rope_scaling": {"type": "llama3"}}),
    "rotary_pct = 2 in the config; it must be a number above 0 and at most 1": ("gptneox", {"rotary_pct": 2}),
    "use_parallel_residual = 'yes'": ("gptneox", {"use_parallel_residual": "yes"}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_value_that_is_not_implemented_is_refused_by_key_and_value(words: str, host: Host) -> None:
    family, changes = REFUSED[words]
    with pytest.raises(BestiaryError) as caught:
        normal(host, family, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@families
def test_no_number_of_a_config_takes_memory_or_time_before_the_tensors_are_compared(
        family: str, host: Host, tmp_path: Path) -> None:
    architecture = host.architectures[family]
    config = architecture.example_config()
    names = [name.format(i, 0) for rule in architecture.namings["huggingface"] for i in (0, 1)
             for name in ([rule.sources] if isinstance(rule.sources, str) else rule.sources)]
    tensors: dict[str, Tensor] = {name: ArrayTensor(np.zeros((4, 4), np.float32)) for name in names}
    started = time.monotonic()
    for key in (*(key for key, value in config.items() if type(value) is int), "head_dim", "sliding_window"):
        for value in (9999, 1 << 16, (1 << 24) - 1, (1 << 31) - 1, 1 << 31, 1 << 32, 1e9, 0, -1, True, "x", math.nan):
            given = Checkpoint(tmp_path, {**config, key: value}, tensors, "huggingface", TokenizerMaterial())
            with pytest.raises(BestiaryError) as caught:
                to_canonical(given, architecture)
            assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_a_file_with_its_experts_apart_opens_too(host: Host, tmp_path: Path) -> None:
    """As llama.cpp wrote Mixtral before April 2024."""
    save_random(host.architectures["mixtral"].example_config(), host, tmp_path / "x.gguf")
    stacked = host.open(tmp_path / "x.gguf")
    apart: dict[str, Tensor] = {}
    for name, tensor in stacked.tensors.items():
        if "_exps" in name:
            apart |= {name.replace("_exps", f".{i}"): ArrayTensor(tensor.array()[i]) for i in range(4)}
        else:
            apart[name] = tensor
    made, _ = to_canonical(stacked.having(tensors=apart), host.architectures["mixtral"])
    wanted, _ = to_canonical(stacked, host.architectures["mixtral"])
    assert set(made.tensors) == set(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        np.testing.assert_array_equal(made.tensors[name].array(), tensor.array())


def factors_of(graph: Graph) -> set[str]:
    return {node.weights["factors"] for node in graph.nodes if node.op == "rope"}


def test_the_context_decides_between_short_and_long_factors(host: Host) -> None:
    phi, config = host.architectures["phi3"], normal(host, "phi3")
    short, long = phi.graph(config, 64), phi.graph(config, 65)
    assert factors_of(short) == {"rope_factors_short.weight"} and factors_of(long) == {"rope_factors_long.weight"}
    assert dict(short.weights) == dict(long.weights)
    assert set(phi.derived(config)) == {"rope_factors_short.weight", "rope_factors_long.weight"}


def test_a_factor_of_the_whole_says_how_far_phi_3_was_stretched(host: Host) -> None:
    lists = {"short_factor": [1.0] * 6, "long_factor": [1.0] * 6}
    for factor, wanted in ((16.0, math.sqrt(1 + math.log(16) / math.log(64))), (0.5, 1.0)):
        made = normal(host, "phi3", rope_scaling={"type": "longrope", "factor": factor, **lists})
        assert made["rope_magnitude"] == pytest.approx(wanted)
        assert host.architectures["phi3"].normalise(made, {}) == made


def test_a_scale_that_a_config_of_transformers_leaves_out_is_that_of_its_class(host: Host) -> None:
    left_out = {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": None}
    assert normal(host, "gemma2", **left_out)["query_pre_attn_scalar"] == 256
    assert normal(host, "gemma2", **left_out, num_hidden_layers=46)["query_pre_attn_scalar"] == 256


def test_the_largest_gemma_2_scales_by_the_width_of_its_heads_where_a_file_does_not_say(host: Host) -> None:
    gemma, config = host.architectures["gemma2"], {**normal(host, "gemma2"), "query_pre_attn_scalar": None}
    assert gemma.normalise(config, {})["query_pre_attn_scalar"] == 24
    large = {**config, "num_hidden_layers": 46, "layer_types": None}
    assert gemma.normalise(large, {})["query_pre_attn_scalar"] == 96 // 6


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_first_checkpoints_of_gpt_2_have_no_prefix(prefix: str, host: Host) -> None:
    gpt = host.architectures["gpt2"]
    shapes = gpt.graph(normal(host, "gpt2"), 32).weights
    back = {rule.targets: rule for rule in gpt.namings["huggingface"] if str(rule.sources).startswith(prefix)
            and str(rule.sources).count("transformer.") == bool(prefix)}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        rule = back[".".join(["{}" if part.isdigit() else part for part in parts])]
        assert isinstance(rule.sources, str)
        turned = shape[::-1] if rule.transform else shape
        tensors[rule.sources.format(*(part for part in parts if part.isdigit()))] = ArrayTensor(
            np.zeros(turned, np.float32))
    tensors[f"{prefix}h.0.attn.bias"] = ArrayTensor(np.zeros((1, 1, 4, 4), np.float32))
    made, _ = to_canonical(Checkpoint(Path("x"), gpt.example_config(), tensors, "huggingface"), gpt)
    assert set(made.tensors) == set(shapes)


TURNS: dict[str, tuple[str, str]] = {
    "chatml": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
               "Yes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"),
    "gemma": ("<start_of_turn>user\nBe brief.\n\nOne?<end_of_turn>\n<start_of_turn>model\n",
              "Yes.<end_of_turn>\n<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n"),
    "phi-3": ("<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\n",
              "Yes.<|end|>\n<|user|>\nTwo?<|end|>\n<|assistant|>\n"),
    "mistral": ("[INST] Be brief.\n\nOne? [/INST]", " Yes.</s> [INST] Two? [/INST]"),
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_are_those_of_the_authors(name: str, host: Host) -> None:
    said = [{"role": role, "content": text} for role, text in (
        ("system", "Be brief."), ("user", "One?"), ("assistant", "Yes."), ("user", "Two?"))]
    first, second = TURNS[name]
    assert "".join(segment.text for segment in host.templates[name].render(said[:2])) == first
    segments = host.templates[name].render(said)
    assert "".join(segment.text for segment in segments) == first + second
    assert [segment.text for segment in segments if not segment.special] == ["Be brief.", "One?", "Yes.", "Two?"]
