"""GPT-NeoX and Pythia: attention and feed forward beside one another, a part of each head rotated.

Source: Black et al. 2022 (arXiv 2204.06745); Biderman et al. 2023 (arXiv 2304.01373).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, one_of, real, section, whole, words
from bestiary.graph import Graph, Trace, Value
from bestiary.plugin import Architecture, Key, PreTokenizer, Rule
from bestiary_plugins.architectures.fused_rows import by_part, width_and_heads
from bestiary_plugins.architectures.gpt2 import GELUS
from bestiary_plugins.architectures.llama import WIDEST, Config, linear
from bestiary_plugins.architectures.pre_tokenizers import GPT2
from bestiary_plugins.architectures.published import published, share

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

PARTS = (("input_layernorm", "attn_norm"), ("attention.dense", "attn_output"),
         ("post_attention_layernorm", "ffn_norm"), ("mlp.dense_h_to_4h", "ffn_up"), ("mlp.dense_4h_to_h", "ffn_down"))


class GptNeoX(Architecture):
    """GPT-NeoX 20B, Pythia, and what was tuned from them."""

    name = "gptneox"
    namings = {"huggingface": (
        Rule("gpt_neox.embed_in.weight", "token_embd.weight"),
        *(Rule(f"gpt_neox.layers.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}") for theirs, ours in PARTS
          for part in ("weight", "bias")),
        *(Rule(f"gpt_neox.layers.{{}}.attention.query_key_value.{part}", f"blk.{{}}.attn_qkv.{part}", by_part)
          for part in ("weight", "bias")),
        *(Rule(f"gpt_neox.final_layer_norm.{part}", f"output_norm.{part}") for part in ("weight", "bias")),
        Rule("embed_out.weight", "output.weight"))}
    ignorable = (r"gpt_neox\.layers\.[0-9]+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)", r"output\.weight")
    pre_tokenizers = {"olmo": PreTokenizer((GPT2,))}
    keys = (Key("rotary_dim", "{arch}.rope.dimension_count", "u32"),
            Key("use_parallel_residual", "{arch}.use_parallel_residual", "bool"),
            Key("rope_factor", "{arch}.rope.scaling.factor", "f32"))

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        named = config.get("model_type") in ("gpt_neox", "gptneox")
        return 50 if named or "GPTNeoXForCausalLM" in words(config, "architectures") else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, heads = width_and_heads(config)
        scaling = {**section(config, "rope_parameters"), **section(config, "rope_scaling")}
        kind = one_of({"rope_scaling": scaling.get("rope_type") or scaling.get("type")}, "rope_scaling",
                      ("default", "linear"), "default")
        share = real(scaling, "partial_rotary_factor", real(config, "rotary_pct", 0.25, high=1.0), high=1.0)
        factor = real(config, "rope_factor", real(scaling, "factor", 1.0) if kind == "linear" else 1.0)
        theta = real(config, "rope_theta", real(config, "rotary_emb_base", real(scaling, "rope_theta", 10000.0)))
        return {
            **{key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")},
            "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads,
            "num_hidden_layers": whole(config, "num_hidden_layers", high=10_000),
            "intermediate_size": whole(config, "intermediate_size", 4 * width, high=WIDEST),
            "max_position_embeddings": whole(config, "max_position_embeddings", 2048),
            "vocab_size": whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None),
                                high=WIDEST),
            "layer_norm_eps": real(config, "layer_norm_eps", 1e-5),
            "hidden_act": one_of(config, "hidden_act", GELUS, "gelu"),
            "rotary_pct": share, "rotary_emb_base": theta, "rope_theta": theta, "rope_factor": factor,
            "rotary_dim": whole(config, "rotary_dim", int(width // heads * share), low=2, high=width // heads),
            "use_parallel_residual": flag(config, "use_parallel_residual", True),
            "attention_bias": flag(config, "attention_bias", not shapes or "blk.0.attn_qkv.bias" in shapes),
            "tie_word_embeddings": flag(config, "tie_word_embeddings", bool(shapes) and "output.weight" not in shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        turned, size = config["rotary_dim"], config["hidden_size"] // config["num_attention_heads"]
        factor = config["rope_factor"]
        own = ("num_key_value_heads", "rotary_dim", "rope_factor")
        return published(config, ("gpt_neox", "GPTNeoXForCausalLM"), own,
                         rotary_pct=share(turned, size, config["rotary_pct"]),
                         rope_scaling=None if factor == 1 else {"type": "linear", "factor": factor})

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width, heads, bias = c["hidden_size"], c["num_attention_heads"], c["attention_bias"]

        def norm(x: Value, name: str) -> Value:
            return g.layer_norm(x, f"{name}.weight", f"{name}.bias", c["layer_norm_eps"])

        def turned(x: Value) -> Value:
            return g.rope(x, width // heads, c["rope_theta"], count=c["rotary_dim"], pairing="halves",
                          scaling=1 / c["rope_factor"])

        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            rows = linear(g, norm(x, f"blk.{i}.attn_norm"), f"blk.{i}.attn_qkv", 3 * width, bias)
            q, k, v = (g.slice(rows, part * width, (part + 1) * width) for part in range(3))
            a = linear(g, g.attention(turned(q), turned(k), v, heads, heads), f"blk.{i}.attn_output", width, bias)
            added = g.add(x, a)
            h = norm(x if c["use_parallel_residual"] else added, f"blk.{i}.ffn_norm")
            h = g.gelu(linear(g, h, f"blk.{i}.ffn_up", c["intermediate_size"], True), GELUS[c["hidden_act"]])
            x = g.add(added, linear(g, h, f"blk.{i}.ffn_down", width, True))
        h = norm(x, "output_norm")
        return g.finish(g.linear(h, "token_embd.weight" if c["tie_word_embeddings"] else "output.weight",
                                 c["vocab_size"]), hidden=h)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "gpt_neox", "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vocab_size": 199, "max_position_embeddings": 128, "rotary_pct": 0.25}
