"""Falcon: attention and feed forward side by side; in its first models linear biases and one after the other.

Sources: the reference implementation in transformers, models/falcon; the modelling files published with falcon-rw-1b,
falcon-7b and falcon-40b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, one_of, real, section, whole, words
from bestiary.errors import BestiaryError
from bestiary.plugin import Architecture, Graph, PreTokenizer, Rule, Trace, TurnTemplate
from bestiary_plugins.architectures.alibi import nearest, slopes
from bestiary_plugins.architectures.fused_rows import ByPart, width_and_heads
from bestiary_plugins.architectures.pre_tokenizers import DIGITS, GPT2, PUNCTUATION
from bestiary_plugins.architectures.published import published

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]


def layout(config: Config) -> tuple[int, int, int]:
    """Width, heads, key heads; the spellings are those of three generations of modelling files."""
    width, heads = width_and_heads(config)
    if config.get("num_key_value_heads") is not None:
        kv_heads = whole(config, "num_key_value_heads", high=heads)
    elif grouped(config):
        kv_heads = whole(config, "num_kv_heads", config.get("n_head_kv") or heads, high=heads)
    else:
        kv_heads = 1 if flag(config, "multi_query", True) else heads
    if heads % kv_heads:
        raise BestiaryError(f"num_kv_heads = {kv_heads} in the config; it must divide the {heads} heads")
    return width, heads, kv_heads


def grouped(config: Config) -> bool:
    """The architecture of the 40B model, which its first config.json does not name."""
    return flag(config, "new_decoder_architecture", config.get("n_head_kv") is not None)


def rows_by_part(config: Config) -> ByPart:
    width, heads, kv_heads = layout(config)
    return ByPart(heads, kv_heads, width // heads)


NAMES = (("self_attention.dense", "attn_output"), ("mlp.dense_h_to_4h", "ffn_up"), ("mlp.dense_4h_to_h", "ffn_down"),
         ("input_layernorm", "attn_norm"), ("ln_attn", "attn_norm_2"), ("post_attention_layernorm", "ffn_norm"))
HUGGINGFACE = (
    Rule("transformer.word_embeddings.weight", "token_embd.weight"),
    *(Rule(f"transformer.h.{{}}.self_attention.query_key_value.{part}", f"blk.{{}}.attn_qkv.{part}", rows_by_part)
      for part in ("weight", "bias")),
    *(Rule((f"transformer.h.{{}}.ln_mlp.{part}", f"transformer.h.{{}}.ln_attn.{part}"),
           (f"blk.{{}}.attn_norm.{part}", f"blk.{{}}.attn_norm_2.{part}")) for part in ("weight", "bias")),
    *(Rule(f"transformer.h.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}")
      for part in ("weight", "bias") for theirs, ours in NAMES),
    *(Rule(f"transformer.ln_f.{part}", f"output_norm.{part}") for part in ("weight", "bias")),
    Rule("lm_head.weight", "output.weight"),
)
GGLLM_CPP = tuple(replace(rule, transform=None) for rule in HUGGINGFACE)  # all queries, all keys, all values already


class Falcon(Architecture):
    """Falcon 1B, 7B, 11B, 40B, 180B."""

    name = "falcon"
    namings = {"huggingface": HUGGINGFACE, "ggllm.cpp": GGLLM_CPP}
    ignorable = (r"output\.weight", r".*rotary\.inv_freq")  # the output matrix where it is the embedding
    pre_tokenizers = {"falcon": PreTokenizer((PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]"))}
    templates = {"falcon-instruct": TurnTemplate(
        "falcon-instruct", "{system}", "User: ", "\n\n", "Assistant:", "\n\n", " ", stop=("\nUser",))}

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        named = config.get("model_type") in ("falcon", "RefinedWeb", "RefinedWebModel")
        return 90 if named or {"FalconForCausalLM", "RWForCausalLM"} & {*words(config, "architectures")} else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, heads, kv_heads = layout(config)
        rope = {**section(config, "rope_parameters"), **section(config, "rope_scaling")}
        one_of({"rope_scaling": rope.get("rope_type") or rope.get("type")}, "rope_scaling", ("default",), "default")
        one_of(config, "activation", ("gelu",), "gelu")
        parallel = grouped(config) or flag(config, "parallel_attn", "blk.0.ffn_norm.weight" not in shapes)
        norms = "blk.0.attn_norm_2.weight" in shapes if shapes else grouped(config)
        return {
            **config,
            "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": width // heads,
            "num_hidden_layers": whole(config, "num_hidden_layers", config.get("n_layer"), high=10_000),
            "intermediate_size": whole(config, "intermediate_size", config.get("ffn_hidden_size") or 4 * width,
                                       high=1 << 26),
            "vocab_size": whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None),
                                high=1 << 24),
            "max_position_embeddings": whole(config, "max_position_embeddings", 2048),
            "layer_norm_eps": real(config, "layer_norm_eps", config.get("layer_norm_epsilon") or 1e-5),
            "rope_theta": real(config, "rope_theta", rope.get("rope_theta") or 10000.0),
            "alibi": flag(config, "alibi"),
            "bias": flag(config, "bias", "blk.0.attn_qkv.bias" in shapes),
            "parallel_attn": parallel,
            "num_ln_in_parallel_attn": whole(config, "num_ln_in_parallel_attn", 1 + norms, high=2),
            "tie_word_embeddings": flag(config, "tie_word_embeddings", "output.weight" not in shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """In the keys of transformers' own class: those of the first configs need the code that came with them."""
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        new = grouped(config) or config["num_ln_in_parallel_attn"] == 2 or kv_heads not in (1, heads)
        return published(config, ("falcon", "FalconForCausalLM"),
                         ("head_dim", "num_key_value_heads", "n_embed", "n_head", "n_head_kv", "n_layer", "auto_map"),
                         {"intermediate_size": "ffn_hidden_size", "layer_norm_eps": "layer_norm_epsilon"},
                         new_decoder_architecture=new, num_kv_heads=kv_heads, multi_query=kv_heads == 1)

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width, heads, kv_heads, d = (c[key] for key in (
            "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))

        def norm(x: Any, name: str) -> Any:
            return g.layer_norm(x, f"{name}.weight", f"{name}.bias", c["layer_norm_eps"])

        def linear(x: Any, name: str, columns: int) -> Any:
            return g.linear(x, f"{name}.weight", columns, bias=f"{name}.bias" if c["bias"] else None)

        def rope(x: Any) -> Any:
            return x if c["alibi"] else g.rope(x, d, c["rope_theta"], pairing="halves")

        # The models were trained with slopes of 8 significant bits, added before the scores are scaled.
        biases = tuple(nearest(slope) / d ** 0.5 for slope in slopes(heads)) if c["alibi"] else ()
        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            h = norm(x, f"blk.{i}.attn_norm")
            a = norm(x, f"blk.{i}.attn_norm_2") if c["num_ln_in_parallel_attn"] == 2 else h
            qkv = linear(a, f"blk.{i}.attn_qkv", (heads + 2 * kv_heads) * d)
            q = rope(g.slice(qkv, 0, heads * d))
            k = rope(g.slice(qkv, heads * d, (heads + kv_heads) * d))
            v = g.slice(qkv, (heads + kv_heads) * d, (heads + 2 * kv_heads) * d)
            a = linear(g.attention(q, k, v, heads, kv_heads, slopes=biases), f"blk.{i}.attn_output", width)
            x = g.add(x, a)
            h = h if c["parallel_attn"] else norm(x, f"blk.{i}.ffn_norm")
            h = g.gelu(linear(h, f"blk.{i}.ffn_up", c["intermediate_size"]))
            x = g.add(x, linear(h, f"blk.{i}.ffn_down", width))
        h = norm(x, "output_norm")
        output = "token_embd.weight" if c["tie_word_embeddings"] else "output.weight"
        return g.finish(g.linear(h, output, c["vocab_size"]), hidden=h)

    def material(self, material: TokenizerMaterial, config: Config) -> TokenizerMaterial:
        """The first configs give another family's ids for what begins and ends a text; here one token does both."""
        end = 11
        old = config.get("model_type") in ("RefinedWeb", "RefinedWebModel") or material.eos not in (None, end)
        return replace(material, bos=end, eos=end, ends=(end,), add_bos=False) if old else material

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "falcon", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
                "num_kv_heads": 2, "new_decoder_architecture": True, "vocab_size": 199}
