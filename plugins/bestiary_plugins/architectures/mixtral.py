"""Mixtral: Mistral with a choice of experts in place of the feed forward.

Source: Jiang et al. 2024 (arXiv 2401.04088). llama.cpp files it as LLaMA with an expert count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import CANONICAL
from bestiary.config import real, section, whole
from bestiary.errors import BestiaryError
from bestiary.graph import Trace, Value
from bestiary.plugin import Key, Rule
from bestiary.transform import Stack
from bestiary_plugins.architectures.llama import HUGGINGFACE, Config, Llama
from bestiary_plugins.architectures.mistral import Mistral

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial

MOST_EXPERTS = 1 << 12


def experts(config: Config) -> int:
    return whole(config, "num_local_experts", 8, high=MOST_EXPERTS)


MOE = "model.layers.{}.block_sparse_moe"


class Mixtral(Mistral):
    """Mixtral 8x7B and 8x22B."""

    name = "mixtral"
    called = ("mixtral", "MixtralForCausalLM")
    usual_eps, usual_window = 1e-5, 0
    namings = {"huggingface": (
        *(rule for rule in HUGGINGFACE if ".mlp." not in rule.sources),
        Rule(f"{MOE}.gate.weight", "blk.{}.ffn_gate_inp.weight"),
        *(Rule(f"{MOE}.experts.{{}}.{theirs}.weight", f"blk.{{}}.ffn_{ours}_exps.weight",
               lambda config: Stack(experts(config))) for theirs, ours in (
            ("w1", "gate"), ("w2", "down"), ("w3", "up"))),
    ), CANONICAL: tuple(  # as llama.cpp wrote it before April 2024
        Rule(f"blk.{{}}.ffn_{part}.{{}}.weight", f"blk.{{}}.ffn_{part}_exps.weight",
             lambda config: Stack(experts(config))) for part in ("gate", "down", "up"))}
    keys = (*Llama.keys, Key("num_local_experts", "{arch}.expert_count", "u32"),
            Key("num_experts_per_tok", "{arch}.expert_used_count", "u32"))

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        filed = config.get("model_type") == self.filed_as and config.get("num_local_experts")
        return 70 if filed else Llama.claims(self, config, tokenizer)

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        used = whole(config, "num_experts_per_tok", 2, high=experts(config))
        theta = real(section(config, "rope_parameters"), "rope_theta", 1e6)
        normal = super().normalise({**config, "rope_theta": config.get("rope_theta", theta)}, shapes)
        if normal["mlp_bias"]:
            raise BestiaryError("mlp_bias = True is not implemented for experts; known: False")
        return {**normal, "num_local_experts": experts(config), "num_experts_per_tok": used}

    def feed_forward(self, g: Trace, c: Config, h: Value, i: int) -> Value:
        parts = (f"blk.{i}.ffn_{part}.weight" for part in ("gate_inp", "gate_exps", "up_exps", "down_exps"))
        return g.moe(h, *parts, experts=c["num_local_experts"], width=c["intermediate_size"],
                     top_k=c["num_experts_per_tok"])

    def example_config(self) -> dict[str, Any]:
        return {**super().example_config(), "model_type": "mixtral", "sliding_window": None, "num_local_experts": 4,
                "num_experts_per_tok": 2, "intermediate_size": 64}
