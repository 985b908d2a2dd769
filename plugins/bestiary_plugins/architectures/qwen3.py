"""Qwen 3: as Qwen 2, with norms over each head of queries and keys in place of biases.

Source: Yang et al. 2025 (arXiv 2505.09388).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary.graph import Trace, Value
from bestiary.plugin import Rule
from bestiary_plugins.architectures.llama import Config, Llama
from bestiary_plugins.architectures.qwen2 import NOT_PERMUTED, Qwen2


class Qwen3(Qwen2):
    """Qwen3 with a feed forward; those with experts are another family."""

    name = "qwen3"
    called = ("qwen3", "Qwen3ForCausalLM")
    own_keys = Llama.own_keys
    namings = {"huggingface": (*NOT_PERMUTED, *(
        Rule(f"model.layers.{{}}.self_attn.{part}_norm.weight", f"blk.{{}}.attn_{part}_norm.weight") for part in "qk"))}

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().normalise({"head_dim": 128, **config}, shapes)

    def biases(self, config: Config, normal: Config) -> dict[str, Any]:
        return {"mlp_bias": False}

    def queries_keys_values(self, g: Trace, c: Config, h: Value, i: int) -> tuple[Value, ...]:
        q, k, v = super().queries_keys_values(g, c, h, i)
        eps, d = c["rms_norm_eps"], c["head_dim"]
        return (g.rms_norm(q, f"blk.{i}.attn_q_norm.weight", eps, group=d),
                g.rms_norm(k, f"blk.{i}.attn_k_norm.weight", eps, group=d), v)

    def example_config(self) -> dict[str, Any]:
        return {**super().example_config(), "model_type": "qwen3", "head_dim": 24, "use_sliding_window": False}
