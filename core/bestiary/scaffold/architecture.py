"""The model family gecko: learned positions, layer norms, GELU, one matrix for the embedding and the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import whole
from bestiary.plugin import Architecture, Graph, Rule, Trace, hookimpl

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial

bestiary_api = 1  # the version of the hooks that this is written for

# Their names for the parts of a layer, and the canonical ones, which stand in the files that are written.
PARTS = {"norm1": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
         "norm2": "ffn_norm", "up": "ffn_up", "down": "ffn_down"}


class Gecko(Architecture):
    name = "gecko"
    namings = {"huggingface": (
        Rule("embed.weight", "token_embd.weight"),
        Rule("positions.weight", "position_embd.weight"),
        *(Rule(f"layers.{{}}.{theirs}.weight", f"blk.{{}}.{ours}.weight") for theirs, ours in PARTS.items()),
        Rule("norm.weight", "output_norm.weight"),
    )}

    def claims(self, config: Mapping[str, Any], tokenizer: TokenizerMaterial) -> int:
        return 90 if config.get("model_type") == "gecko" else 0

    def normalise(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                "max_position_embeddings")
        return {**config, **{key: whole(config, key) for key in keys}, "layer_norm_eps": 1e-5}

    def graph(self, config: Mapping[str, Any], context: int) -> Graph:
        g, c = Trace(), config
        width, heads, eps = c["hidden_size"], c["num_attention_heads"], c["layer_norm_eps"]
        x = g.add(g.embed("token_embd.weight", c["vocab_size"], width),
                  g.embed("position_embd.weight", c["max_position_embeddings"], width, index="position"))
        for i in g.layers(c["num_hidden_layers"]):
            h = g.layer_norm(x, f"blk.{i}.attn_norm.weight", None, eps)
            q, k, v = (g.linear(h, f"blk.{i}.attn_{part}.weight", width) for part in "qkv")
            x = g.add(x, g.linear(g.attention(q, k, v, heads, heads), f"blk.{i}.attn_output.weight", width))
            h = g.layer_norm(x, f"blk.{i}.ffn_norm.weight", None, eps)
            h = g.gelu(g.linear(h, f"blk.{i}.ffn_up.weight", c["intermediate_size"]))
            x = g.add(x, g.linear(h, f"blk.{i}.ffn_down.weight", width))
        h = g.layer_norm(x, "output_norm.weight", None, eps)
        return g.finish(g.linear(h, "token_embd.weight", c["vocab_size"]), hidden=h)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "gecko", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vocab_size": 101, "max_position_embeddings": 48}


@hookimpl
def bestiary_architectures() -> Iterable[Architecture]:
    return [Gecko()]
