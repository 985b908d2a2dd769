"""Phi 3, 3.5 and 4-mini: LLaMA's graph with fused rows, a part of each head rotated, and two lists of factors of which
the context decides.

Source: Abdin et al. 2024 (arXiv 2404.14219); Ding et al. 2024 (arXiv 2402.13753) for the factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bestiary.config import one_of, real, section, whole
from bestiary.errors import BestiaryError, short
from bestiary.graph import Trace, Value
from bestiary.plugin import Key, Rule, TurnTemplate
from bestiary.tensor import ArrayTensor, Tensor
from bestiary_plugins.architectures.llama import Config, Llama, linear
from bestiary_plugins.architectures.published import share
from bestiary_plugins.architectures.windows import sliding_window

TURNS = TurnTemplate("phi-3", "<|system|>\n{system}<|end|>\n", "<|user|>\n", "<|end|>\n", "<|assistant|>\n",
                     "<|end|>\n", strips_answers=False, stop=("<|end|>", "<|endoftext|>"))
FACTORS = ("short_factor", "long_factor")
LONG = ("longrope", "su")
KINDS = ("default", "none", *LONG)
ORIGINAL = "original_max_position_embeddings"
USUAL_ORIGINAL = 4096
"""What transformers takes of configs with factors that do not say it beside them: what stands among them it does not
read."""
LAYER = "model.layers.{}"


class Phi3(Llama):
    """Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4 mini."""

    name = "phi3"
    called = ("phi3", "Phi3ForCausalLM")
    namings = {"huggingface": (
        Rule("model.embed_tokens.weight", "token_embd.weight"),
        *(Rule(f"{LAYER}.{theirs}.weight", f"blk.{{}}.{ours}.weight") for theirs, ours in (
            ("input_layernorm", "attn_norm"), ("self_attn.qkv_proj", "attn_qkv"), ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"))),
        Rule("model.norm.weight", "output_norm.weight"),
        Rule("lm_head.weight", "output.weight"))}
    pairing = "halves"
    usual_context, usual_eps = 4096, 1e-5
    pre_tokenizers = {}
    rank_lists = ()
    vocabularies = ()
    prompts = {}
    templates = {TURNS.name: TURNS}
    keys = (Key("rotary_dim", "{arch}.rope.dimension_count", "u32"),
            Key("original_max_position_embeddings", "{arch}.rope.scaling.original_context_length", "u32"),
            Key("rope_magnitude", "{arch}.rope.scaling.attn_factor", "f32"))

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        scaling = {**section(config, "rope_parameters"), **section(config, "rope_scaling")}
        kind = one_of({"rope_scaling": scaling.get("rope_type") or scaling.get("type")}, "rope_scaling", KINDS,
                      "default")
        share = real(scaling, "partial_rotary_factor", real(config, "partial_rotary_factor", 1.0), high=1.0)
        plain = {key: value for key, value in config.items()
                 if key not in ("rope_scaling", "rope_parameters", "partial_rotary_factor")}
        normal = super().normalise({"rope_theta": real(scaling, "rope_theta", 10000.0), **plain}, shapes)
        turned = whole(config, "rotary_dim", int(normal["head_dim"] * share), low=2, high=normal["head_dim"])
        context = normal["max_position_embeddings"]
        old = whole(config, ORIGINAL, USUAL_ORIGINAL if kind in LONG else context, low=2)
        if kind in LONG and whole(scaling, ORIGINAL, old) != old:
            raise BestiaryError(f"{ORIGINAL} = {scaling[ORIGINAL]} in rope_scaling; "
                                f"beside it stands {old}")
        long = kind in LONG or "rope_factors_long.weight" in shapes
        usual = usual_magnitude(real(scaling, "factor", context / old), old) if long else 1.0
        normal.update(
            attention_bias=False, attention_output_bias=False, mlp_bias=False, rotary_dim=turned, rope_scaling=None,
            partial_rotary_factor=share, original_max_position_embeddings=old, rope_parameters=None,
            sliding_window=sliding_window(config), long_rope=long,
            rope_magnitude=real(config, "rope_magnitude", real(scaling, "attention_factor", usual)) if long else None)
        if kind in LONG:
            normal["rope_scaling"] = {"rope_type": "longrope", **{
                key: numbers(scaling, key, turned // 2) for key in FACTORS}}
        return normal

    own_keys = (*Llama.own_keys, "rotary_dim", "long_rope", "rope_magnitude", "rope_parameters", "attention_bias",
                "mlp_bias")

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        said = super().published_config(config, tensors)
        said["partial_rotary_factor"] = share(config["rotary_dim"], config["head_dim"], config["partial_rotary_factor"])
        said.setdefault("pad_token_id", None)  # else transformers takes one that a small vocabulary does not have
        if config["long_rope"]:
            given = config["rope_scaling"] or {key: [float(str(number)) for number in tensors[
                f"rope_factors_{key.removesuffix('_factor')}.weight"].array()] for key in FACTORS}
            said["rope_scaling"] = {"type": LONG[0], **{key: given[key] for key in FACTORS}}
            old = config["original_max_position_embeddings"]
            if config["rope_magnitude"] != usual_magnitude(config["max_position_embeddings"] / old, old):
                said["rope_scaling"]["attention_factor"] = config["rope_magnitude"]
        return said

    def derived(self, config: Config) -> Mapping[str, Tensor]:
        scaling = config["rope_scaling"] or {}
        return {f"rope_factors_{key.removesuffix('_factor')}.weight": ArrayTensor(np.array(scaling[key], np.float32))
                for key in FACTORS if key in scaling}

    def rotation(self, g: Trace, c: Config, context: int) -> dict[str, Any]:
        how = {"pairing": self.pairing, "count": c["rotary_dim"]}
        if not c["long_rope"]:
            return how
        for kind in ("short", "long"):
            g.keep(f"rope_factors_{kind}.weight", c["rotary_dim"] // 2)
        kind = "long" if context > c["original_max_position_embeddings"] else "short"
        return {**how, "factors": f"rope_factors_{kind}.weight", "magnitude": c["rope_magnitude"]}

    def queries_keys_values(self, g: Trace, c: Config, h: Value, i: int) -> tuple[Value, ...]:
        q, kv = c["head_dim"] * c["num_attention_heads"], c["head_dim"] * c["num_key_value_heads"]
        rows = linear(g, h, f"blk.{i}.attn_qkv", q + 2 * kv, False)
        return g.slice(rows, 0, q), g.slice(rows, q, q + kv), g.slice(rows, q + kv, q + 2 * kv)

    def window(self, c: Config, i: int) -> int:
        return c["sliding_window"] or 0

    def feed_forward(self, g: Trace, c: Config, h: Value, i: int) -> Value:
        width = c["intermediate_size"]
        rows = linear(g, h, f"blk.{i}.ffn_up", 2 * width, False)
        h = g.mul(g.silu(g.slice(rows, 0, width)), g.slice(rows, width, 2 * width))
        return linear(g, h, f"blk.{i}.ffn_down", c["hidden_size"], False)

    def example_config(self) -> dict[str, Any]:
        factors = [1.0 + j / 4 for j in range(6)]
        return {**super().example_config(), "model_type": "phi3", "sliding_window": 24,
                "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75,
                "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": [4 * f for f in factors]}}


def usual_magnitude(growth: float, old: int) -> float:
    """How much queries and keys grow in a context that did so, where nothing else is said."""
    return math.sqrt(1 + math.log(growth) / math.log(old)) if growth > 1 else 1.0


def numbers(config: Config, key: str, count: int) -> list[float]:
    """That many numbers above 0."""
    given = config.get(key)
    if not isinstance(given, (list, tuple)) or len(given) != count:
        raise BestiaryError(f"{key} = {short(given)} in rope_scaling; it must be a list of {count} numbers")
    return [real({key: number}, key) for number in given]
