"""Llama's kin: our logits are those of transformers, in what tells each family from the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bestiary.saving import save_as

if TYPE_CHECKING:
    from bestiary.host import Host
    from tests.parity.conftest import Parity, Reference

# Sizes that no tile of a kernel divides; windows that are shorter than the 60 tokens of a prompt.
BASE: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
NEOX = {**{key: value for key, value in BASE.items() if key not in ("num_key_value_heads", "rms_norm_eps")},
        "layer_norm_eps": 1e-5}
GPT2 = {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 64, "vocab_size": 199, "resid_pdrop": 0.0,
        "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**BASE, "num_hidden_layers": 2, "intermediate_size": 72}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1 + j / 16 for j in range(8)], "long_factor": [1.5 + j for j in range(8)]}
PHI = {**BASE, "original_max_position_embeddings": 32}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("MistralForCausalLM", {**BASE, "sliding_window": 17}),
    "mistral, no window": ("MistralForCausalLM", {**BASE, "sliding_window": None, "head_dim": 20}),
    "mistral, yarn": ("MistralForCausalLM", {**BASE, "sliding_window": None, "rope_parameters": YARN}),
    "mixtral": ("MixtralForCausalLM", {**SMALL, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral, window, one expert": ("MixtralForCausalLM", {
        **SMALL, "num_local_experts": 12, "num_experts_per_tok": 1, "sliding_window": 17}),
    "qwen2": ("Qwen2ForCausalLM", BASE),
    "qwen2, tied, window in later layers": ("Qwen2ForCausalLM", {
        **BASE, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1}),
    "qwen2, windows listed": ("Qwen2ForCausalLM", {
        **BASE, "use_sliding_window": True, "sliding_window": 17,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen2, yarn": ("Qwen2ForCausalLM", {**BASE, "rope_parameters": YARN}),
    "qwen2, linear": ("Qwen2ForCausalLM", {**BASE, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}}),
    "qwen3": ("Qwen3ForCausalLM", {**BASE, "head_dim": 20}),
    "qwen3, biases, yarn, tied": ("Qwen3ForCausalLM", {
        **BASE, "head_dim": 16, "attention_bias": True, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", {
        **BASE, "head_dim": 20, "query_pre_attn_scalar": 20, "sliding_window": 17, "tie_word_embeddings": True}),
    "gemma2, another scale, biases": ("Gemma2ForCausalLM", {
        **BASE, "head_dim": 16, "query_pre_attn_scalar": 37, "sliding_window": 17, "tie_word_embeddings": True,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0, "attention_bias": True}),
    "gemma2, no caps": ("Gemma2ForCausalLM", {
        **BASE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 17, "tie_word_embeddings": True,
        "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "phi3, window": ("Phi3ForCausalLM", {**PHI, "sliding_window": 17}),
    "phi3, part of a head": ("Phi3ForCausalLM", {
        **PHI, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}),
    "phi3, long": ("Phi3ForCausalLM", {**PHI, "rope_parameters": LONG}),
    "phi3, short": ("Phi3ForCausalLM", {
        **PHI, "original_max_position_embeddings": 64,
        "rope_parameters": {**LONG, "original_max_position_embeddings": 64}}),
    "phi3, long, part of a head": ("Phi3ForCausalLM", {**PHI, "rope_parameters": {
        **LONG, "partial_rotary_factor": 0.75, "short_factor": LONG["short_factor"][:6],
        "long_factor": LONG["long_factor"][:6]}}),
    "phi3, long, a factor of its own": ("Phi3ForCausalLM", {**PHI, "rope_parameters": {**LONG, "factor": 20.0}}),
    "phi3, long, a magnitude of its own": ("Phi3ForCausalLM", {**PHI, "rope_parameters": {
        **LONG, "factor": 20.0, "attention_factor": 1.7}}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2, scaled by layer, erf, untied": ("GPT2LMHeadModel", {
        **GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 150, "activation_function": "gelu",
        "tie_word_embeddings": False}),
    "gpt2, unscaled": ("GPT2LMHeadModel", {**GPT2, "scale_attn_weights": False, "reorder_and_upcast_attn": True}),
    "gpt-neox": ("GPTNeoXForCausalLM", NEOX),
    "gpt-neox, one after the other": ("GPTNeoXForCausalLM", {
        **NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    "gpt-neox, no biases of attention, linear, tied": ("GPTNeoXForCausalLM", {
        **NEOX, "attention_bias": False, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "factor": 3.0}}),
}
CONTEXT = {"phi3, short": 64}
"""A context that decides for the short factors; elsewhere it is the model's own."""
models = pytest.mark.parametrize("name", MODELS)


GELUS = {"gpt2": {"activation_function": "gelu"}, "gpt-neox": {"hidden_act": "gelu_new"}}


def made(parity: Parity, name: str) -> Reference:
    model_class, config = MODELS[name]
    return parity.reference(name.replace(",", ""), model_class, config)


@models
def test_logits_are_those_of_transformers(parity: Parity, name: str, backend: str) -> None:
    parity.check(name, made(parity, name), backend, context=CONTEXT.get(name))


@models
def test_logits_are_kept_through_gguf(parity: Parity, name: str, backend: str, tmp_path: Path) -> None:
    reference = made(parity, name)
    file = tmp_path / "model.gguf"
    save_as(reference.path, file, "f32", parity.host)
    parity.check(f"{name}, through GGUF", reference, backend, path=file, context=CONTEXT.get(name))


@pytest.mark.parametrize("form", ["bin", "bin in shards", "old bin"])
@pytest.mark.parametrize("name", [name for name in MODELS if "," not in name] + ["phi3, long", "mistral, window"])
def test_every_form_of_the_weights_is_the_same_model(parity: Parity, name: str, form: str, backend: str, tmp_path: Path,
                                                     saved_again: Callable[[Path, str, Path], Path]) -> None:
    reference = made(parity, name)
    parity.check(f"{name}, {form}", reference, backend, path=saved_again(reference.path, form, tmp_path / "x"))


DEFAULTS = {"MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral", "Qwen2ForCausalLM": "qwen2",
            "Qwen3ForCausalLM": "qwen3", "Gemma2ForCausalLM": "gemma2", "Phi3ForCausalLM": "phi3",
            "LlamaForCausalLM": "llama", "GlmForCausalLM": "chatglm", "Glm4ForCausalLM": "glm4",
            "GPTNeoXForCausalLM": "gptneox"}
KEYS = ("rms_norm_eps", "layer_norm_eps", "query_pre_attn_scalar")
CONTEXTS = ("max_position_embeddings", "original_max_position_embeddings")


@pytest.mark.parametrize("model_class", DEFAULTS)
def test_what_a_config_leaves_out_is_what_transformers_takes(model_class: str, host: Host) -> None:
    import transformers

    family = host.architectures[DEFAULTS[model_class]]
    keys = KEYS if "Glm" in model_class else (*KEYS, *CONTEXTS)
    usual = getattr(transformers, model_class).config_class().to_dict()
    given = {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}} \
        if DEFAULTS[model_class] == "phi3" else {}
    config = {key: value for key, value in {**NEOX, **SMALL, **given, "architectures": [model_class]}.items()
              if key not in keys}
    found = family.normalise(config, {})
    wanted = {key: usual[key] for key in keys if key in usual}
    assert {key: found[key] for key in wanted} == wanted


def older(config: dict[str, Any]) -> None:
    """As transformers 4 and the models' authors spelled it."""
    scaling = dict(config.pop("rope_parameters"))
    neox = config["model_type"] == "gpt_neox"
    config["rotary_emb_base" if neox else "rope_theta"] = scaling.pop("rope_theta")
    if (share := scaling.pop("partial_rotary_factor", None)) is not None:
        config["rotary_pct" if neox else "partial_rotary_factor"] = share
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = None if scaling["type"] == "default" else scaling
    for key in ("layer_types", "dtype"):
        config.pop(key, None)
    if config["model_type"] == "phi3":
        scaling.pop("original_max_position_embeddings", None)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("gpt2") and "listed" not in name])
def test_old_spellings_of_the_config_give_the_same(
        parity: Parity, name: str, rewritten: Callable[[Path, Callable[[dict[str, Any]], None]], Path]) -> None:
    reference = made(parity, name)
    parity.check(f"{name}, old spelling", reference, "numpy", path=rewritten(reference.path, older),
                 context=CONTEXT.get(name))


CHANGES = [("mistral, window", {"sliding_window": 30}), ("qwen2, tied, window in later layers", {"layer_types": None}),
           ("qwen2, yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
           ("gemma2", {"query_pre_attn_scalar": 24}), ("gemma2", {"attn_logit_softcapping": 10.0}),
           ("gemma2", {"final_logit_softcapping": 20.0}), ("gemma2", {"sliding_window": 30}),
           ("phi3, long", {"rope_parameters": {**LONG, "long_factor": LONG["short_factor"]}}),
           ("phi3, long", {"max_position_embeddings": 256}),
           ("phi3, long, a factor of its own", {"rope_parameters": LONG}), ("mixtral", {"num_experts_per_tok": 3}),
           ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
           ("gpt-neox", {"use_parallel_residual": False}),
           ("gpt-neox", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}})]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=str)
def test_a_difference_in_the_config_would_be_seen(
        parity: Parity, name: str, change: dict[str, Any],
        rewritten: Callable[[Path, Callable[[dict[str, Any]], None]], Path]) -> None:
    """The comparison is sharp: models that differ in one value only are far apart."""
    reference = made(parity, name)
    if "layer_types" in change:
        change = {"layer_types": None, "max_window_layers": 2}
    path = rewritten(reference.path, lambda config: config.update(change))
    assert min(parity.differences(reference, path, "numpy").values()) > 1e-3


@pytest.mark.parametrize("name", GELUS)
def test_both_forms_of_gelu_are_told_apart(
        parity: Parity, name: str, rewritten: Callable[[Path, Callable[[dict[str, Any]], None]], Path]) -> None:
    """They are closer to one another than the bound of the other tests."""
    reference = made(parity, name)
    path = rewritten(reference.path, lambda config: config.update(GELUS[name]))
    right, wrong = (parity.differences(reference, where, "numpy") for where in (reference.path, path))
    assert 20 * max(right.values()) < min(wrong.values())
