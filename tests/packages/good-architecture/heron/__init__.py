"""The family heron: a gated transformer whose gate is an operation of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import real, whole
from bestiary.plugin import (
    Architecture,
    BestiaryError,
    Graph,
    Key,
    PreTokenizer,
    Rule,
    Tokenizer,
    Trace,
    TurnTemplate,
    Value,
    hookimpl,
)

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial

bestiary_api = 1  # the version of the hooks that this is written for

LARGEST = 1 << 24  # of any size in a config; what is beyond is damage

PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


class Heron(Architecture):
    """Like LLaMA, but that a head's columns turn in pairs (j, j + half), and that its gate has a slope."""

    name = "heron"
    namings = {"huggingface": (
        Rule("model.embed_tokens.weight", "token_embd.weight"),
        *(Rule(f"model.layers.{{}}.{theirs}.weight", f"blk.{{}}.{ours}.weight") for theirs, ours in PARTS.items()),
        Rule("model.norm.weight", "output_norm.weight"),
    )}
    keys = (Key("gate_slope", "{arch}.gate_slope", "f32"),)
    pre_tokenizers = {"heron": PreTokenizer((r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",))}
    templates = {"heron": TurnTemplate(
        "heron", system="{system}\n", before_user="Question: ", after_user="\n", before_answer="Answer:",
        after_answer="\n", stop=("\nQuestion:",), strips=True)}

    def claims(self, config: Mapping[str, Any], tokenizer: TokenizerMaterial) -> int:
        return 90 if config.get("model_type") == "heron" else 0

    def normalise(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        def size(key: str, default: int | None = None) -> int:
            return whole(config, key, default, high=LARGEST)

        heads = size("num_attention_heads")
        normal = {**config, "model_type": "heron", "architectures": ["HeronForCausalLM"],  # also where it is asked for
                  "hidden_size": size("hidden_size"), "intermediate_size": size("intermediate_size"),
                  "num_hidden_layers": whole(config, "num_hidden_layers", high=10_000),
                  "num_attention_heads": heads, "num_key_value_heads": size("num_key_value_heads", heads),
                  "vocab_size": size("vocab_size"),
                  "max_position_embeddings": whole(config, "max_position_embeddings", 512),
                  "rms_norm_eps": real(config, "rms_norm_eps", 1e-5), "rope_theta": real(config, "rope_theta", 10000.0),
                  "gate_slope": real(config, "gate_slope", 1.0)}
        for key, divisor in (("hidden_size", 2 * heads), ("num_attention_heads", normal["num_key_value_heads"])):
            if normal[key] % divisor:
                raise BestiaryError(f"{key} = {normal[key]} in the config; it must be a multiple of {divisor}")
        return normal

    def graph(self, config: Mapping[str, Any], context: int) -> Graph:
        g, c = Trace(), config
        width, heads, kv_heads, eps = (c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"],
                                       c["rms_norm_eps"])
        size = width // heads

        def rope(x: Value) -> Value:
            return g.rope(x, size, c["rope_theta"], pairing="halves")

        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            h = g.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
            q = rope(g.linear(h, f"blk.{i}.attn_q.weight", width))
            k = rope(g.linear(h, f"blk.{i}.attn_k.weight", kv_heads * size))
            v = g.linear(h, f"blk.{i}.attn_v.weight", kv_heads * size)
            x = g.add(x, g.linear(g.attention(q, k, v, heads, kv_heads), f"blk.{i}.attn_output.weight", width))
            h = g.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
            gate, up = (g.linear(h, f"blk.{i}.ffn_{part}.weight", c["intermediate_size"]) for part in ("gate", "up"))
            h = g.call("heron.gate:gated", gate, up, width=c["intermediate_size"], slope=c["gate_slope"])
            x = g.add(x, g.linear(h, f"blk.{i}.ffn_down.weight", width))
        h = g.rms_norm(x, "output_norm.weight", eps)
        return g.finish(g.linear(h, "token_embd.weight", c["vocab_size"]), hidden=h)

    def wrap(self, tokenizer: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
        from heron.tokenizer import SmallLetters

        return SmallLetters(tokenizer)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "heron", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 131, "max_position_embeddings": 64}


@hookimpl
def bestiary_architectures() -> Iterable[Architecture]:
    return [Heron()]
