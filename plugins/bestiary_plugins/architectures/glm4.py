"""GLM-4-0414: GLM-4 with norms also after attention and feed forward.

Source: the reference implementation in transformers, models/glm4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.plugin import Rule, Trace
from bestiary_plugins.architectures.chatglm import TRANSFORMERS, ChatGlm

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial

Config = Mapping[str, Any]


class Glm4(ChatGlm):
    """GLM-4-9B-0414, GLM-4-32B-0414 and their kin."""

    name = "glm4"
    called = ("glm4", "Glm4ForCausalLM")
    namings = {"huggingface": (
        *TRANSFORMERS,
        Rule("model.layers.{}.post_self_attn_layernorm.weight", "blk.{}.post_attention_norm.weight"),
        Rule("model.layers.{}.post_mlp_layernorm.weight", "blk.{}.post_ffw_norm.weight"),
    )}

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        return 90 if self.of_transformers(config) else 0

    def after(self, g: Trace, x: Any, name: str, eps: float) -> Any:
        return g.rms_norm(x, f"{name}.weight", eps)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "glm4", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
                "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "vocab_size": 199,
                "attention_bias": True, "max_position_embeddings": 128}
