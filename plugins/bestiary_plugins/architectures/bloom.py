"""BLOOM, BLOOMZ and Phoenix: linear biases in place of positions, layer norms, one matrix for queries, keys, values.

Source: the BLOOM paper (arXiv 2211.05100); the reference implementation in transformers, models/bloom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, real, whole, words
from bestiary.plugin import Architecture, Graph, PreTokenizer, Rule, Trace
from bestiary_plugins.architectures.alibi import slopes
from bestiary_plugins.architectures.fused_rows import by_part, width_and_heads
from bestiary_plugins.architectures.published import published
from bestiary_plugins.templates import PHOENIX

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]


NAMES = (("self_attention.dense", "attn_output"), ("mlp.dense_h_to_4h", "ffn_up"), ("mlp.dense_4h_to_h", "ffn_down"),
         ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
# Checkpoints are found with and without the prefix.
HUGGINGFACE = tuple(rule for prefix in ("transformer.", "") for rule in (
    Rule(f"{prefix}word_embeddings.weight", "token_embd.weight"),
    *(Rule(f"{prefix}{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias") for theirs, ours in (
        ("word_embeddings_layernorm", "token_embd_norm"), ("ln_f", "output_norm"))),
    *(Rule(f"{prefix}h.{{}}.self_attention.query_key_value.{part}", f"blk.{{}}.attn_qkv.{part}", by_part)
      for part in ("weight", "bias")),
    *(Rule(f"{prefix}h.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}")
      for part in ("weight", "bias") for theirs, ours in NAMES),
)) + (Rule("lm_head.weight", "output.weight"),)
# Meta's names where LLaMA has such a tensor; "norm" is the one after the embedding. All queries come first, then all
# keys, then all values.
BLOOMZ_CPP = (
    Rule("tok_embeddings.weight", "token_embd.weight"),
    *(Rule(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias") for theirs, ours in (
        ("norm", "token_embd_norm"), ("output_norm", "output_norm"))),
    *(Rule(f"layers.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}")
      for part in ("weight", "bias") for theirs, ours in (
        ("attention_norm", "attn_norm"), ("attention.query_key_value", "attn_qkv"), ("attention.wo", "attn_output"),
        ("ffn_norm", "ffn_norm"), ("feed_forward.w1", "ffn_up"), ("feed_forward.w2", "ffn_down"))),
    Rule("output.weight", "output.weight"),
)


class Bloom(Architecture):
    """BLOOM and what was made of it."""

    name = "bloom"
    namings = {"huggingface": HUGGINGFACE, "bloomz.cpp": BLOOMZ_CPP}
    ignorable = (r"output\.weight",)  # a second copy of the embedding, where the two are tied
    pre_tokenizers = {"bloom": PreTokenizer((r" ?[^(\s|[.,!?…。，、।۔،])]+",))}
    templates = {PHOENIX.name: PHOENIX}

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        named = config.get("model_type") == "bloom" or "BloomForCausalLM" in words(config, "architectures")
        return 90 if named else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, heads = width_and_heads(config)
        return {
            **config,
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": whole(config, "num_key_value_heads", heads, low=heads, high=heads),
            "head_dim": width // heads,
            "num_hidden_layers": whole(config, "num_hidden_layers", config.get("n_layer"), high=10_000),
            "intermediate_size": whole(config, "intermediate_size", config.get("n_inner") or 4 * width, high=1 << 26),
            "vocab_size": whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None),
                                high=1 << 24),
            "max_position_embeddings": whole(config, "max_position_embeddings", config.get("seq_length") or 2048),
            "layer_norm_eps": real(config, "layer_norm_eps", config.get("layer_norm_epsilon") or 1e-5),
            "apply_residual_connection_post_layernorm": flag(config, "apply_residual_connection_post_layernorm"),
            "tie_word_embeddings": flag(config, "tie_word_embeddings", "output.weight" not in shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        usual = config["intermediate_size"] == 4 * config["hidden_size"]  # no reader takes another
        return published(config, ("bloom", "BloomForCausalLM"),
                         ("num_key_value_heads", "head_dim", *(["intermediate_size"] if usual else ())),
                         {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                          "layer_norm_eps": "layer_norm_epsilon", "max_position_embeddings": "seq_length"})

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width, heads, eps = c["hidden_size"], c["num_attention_heads"], c["layer_norm_eps"]

        def norm(x: Any, name: str) -> Any:
            return g.layer_norm(x, f"{name}.weight", f"{name}.bias", eps)

        def linear(x: Any, name: str, columns: int) -> Any:
            return g.linear(x, f"{name}.weight", columns, bias=f"{name}.bias")

        x = norm(g.embed("token_embd.weight", c["vocab_size"], width), "token_embd_norm")
        for i in g.layers(c["num_hidden_layers"]):
            h = norm(x, f"blk.{i}.attn_norm")
            x = h if c["apply_residual_connection_post_layernorm"] else x
            qkv = linear(h, f"blk.{i}.attn_qkv", 3 * width)
            q, k, v = (g.slice(qkv, part * width, (part + 1) * width) for part in range(3))
            a = g.attention(q, k, v, heads, heads, slopes=slopes(heads))
            x = g.add(x, linear(a, f"blk.{i}.attn_output", width))
            h = norm(x, f"blk.{i}.ffn_norm")
            x = h if c["apply_residual_connection_post_layernorm"] else x
            h = g.gelu(linear(h, f"blk.{i}.ffn_up", c["intermediate_size"]), "tanh")
            x = g.add(x, linear(h, f"blk.{i}.ffn_down", width))
        h = norm(x, "output_norm")
        output = "token_embd.weight" if c["tie_word_embeddings"] else "output.weight"
        return g.finish(g.linear(h, output, c["vocab_size"]), hidden=h)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "num_attention_heads": 6, "vocab_size": 199,
                "seq_length": 128}
