"""GPT-2: learned positions, layer norms, biases everywhere, matrices stored transposed.

Source: Radford et al. 2019, and its weights as transformers keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, one_of, real, whole, words
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace, Value
from bestiary.plugin import Architecture, PreTokenizer, Rule
from bestiary.transform import Transpose
from bestiary_plugins.architectures.llama import MOST_HEADS, WIDEST, Config, linear
from bestiary_plugins.architectures.pre_tokenizers import GPT2
from bestiary_plugins.architectures.published import published

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

PREFIXES = ("transformer.", "")
"""The first checkpoints have none."""
NORMS = (("ln_1", "attn_norm"), ("ln_2", "ffn_norm"))
MATRICES = (("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"), ("mlp.c_fc", "ffn_up"),
            ("mlp.c_proj", "ffn_down"))
OLDER = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
         "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
         "layer_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"}
"""How its configs call what others call so."""
GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "erf"}


class Gpt2(Architecture):
    """GPT-2 of all sizes."""

    name = "gpt2"
    namings = {"huggingface": tuple(rule for prefix in PREFIXES for rule in (
        Rule(f"{prefix}wte.weight", "token_embd.weight"),
        Rule(f"{prefix}wpe.weight", "position_embd.weight"),
        *(Rule(f"{prefix}h.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}") for theirs, ours in NORMS
          for part in ("weight", "bias")),
        *(Rule(f"{prefix}h.{{}}.{theirs}.weight", f"blk.{{}}.{ours}.weight", lambda config: Transpose())
          for theirs, ours in MATRICES),
        *(Rule(f"{prefix}h.{{}}.{theirs}.bias", f"blk.{{}}.{ours}.bias") for theirs, ours in MATRICES),
        Rule(f"{prefix}ln_f.weight", "output_norm.weight"),
        Rule(f"{prefix}ln_f.bias", "output_norm.bias"))) + (Rule("lm_head.weight", "output.weight"),)}
    ignorable = (r"(transformer\.)?h\.[0-9]+\.attn\.(masked_)?bias", r"output\.weight")
    pre_tokenizers = dict.fromkeys(("gpt-2", "phi-2", "mpt", "jais"), PreTokenizer((GPT2,)))

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        named = config.get("model_type") == "gpt2" or "GPT2LMHeadModel" in words(config, "architectures")
        return 50 if named else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        called = {key: key if config.get(key) is not None else theirs for key, theirs in OLDER.items()}
        width = whole(config, called["hidden_size"], high=WIDEST)
        heads = whole(config, called["num_attention_heads"], high=MOST_HEADS)
        if width % heads:
            raise BestiaryError(f"{called['hidden_size']} = {width} in the config; it must be a multiple of "
                                f"the {heads} heads")
        if flag(config, "add_cross_attention"):
            raise BestiaryError("add_cross_attention = True is not implemented; known: False")
        places = next(iter(shapes.get("position_embd.weight", ())), None)
        return {
            **{key: value for key, value in config.items() if key not in OLDER.values()},
            "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads,
            "num_hidden_layers": whole(config, called["num_hidden_layers"], high=10_000),
            "intermediate_size": whole(config, called["intermediate_size"], 4 * width, high=WIDEST),
            "max_position_embeddings": whole(config, called["max_position_embeddings"], places, high=WIDEST),
            "vocab_size": whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None),
                                high=WIDEST),
            "layer_norm_eps": real(config, called["layer_norm_eps"], 1e-5),
            "hidden_act": one_of(config, called["hidden_act"], GELUS, "gelu_new"),
            "scale_attn_weights": flag(config, "scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": flag(config, "scale_attn_by_inverse_layer_idx"),
            "tie_word_embeddings": flag(config, "tie_word_embeddings", "output.weight" not in shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return published(config, ("gpt2", "GPT2LMHeadModel"), ("num_key_value_heads",), OLDER)

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width, heads = c["hidden_size"], c["num_attention_heads"]

        def norm(x: Value, name: str) -> Value:
            return g.layer_norm(x, f"{name}.weight", f"{name}.bias", c["layer_norm_eps"])

        x = g.add(g.embed("token_embd.weight", c["vocab_size"], width),
                  g.embed("position_embd.weight", c["max_position_embeddings"], width, index="position"))
        for i in g.layers(c["num_hidden_layers"]):
            rows = linear(g, norm(x, f"blk.{i}.attn_norm"), f"blk.{i}.attn_qkv", 3 * width, True)
            q, k, v = (g.slice(rows, part * width, (part + 1) * width) for part in range(3))
            scale = (width // heads) ** -0.5 if c["scale_attn_weights"] else 1.0
            a = g.attention(q, k, v, heads, heads,
                            scale / (i + 1) if c["scale_attn_by_inverse_layer_idx"] else scale)
            x = g.add(x, linear(g, a, f"blk.{i}.attn_output", width, True))
            h = linear(g, norm(x, f"blk.{i}.ffn_norm"), f"blk.{i}.ffn_up", c["intermediate_size"], True)
            x = g.add(x, linear(g, g.gelu(h, GELUS[c["hidden_act"]]), f"blk.{i}.ffn_down", width, True))
        h = norm(x, "output_norm")
        return g.finish(g.linear(h, "token_embd.weight" if c["tie_word_embeddings"] else "output.weight",
                                 c["vocab_size"]), hidden=h)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "gpt2", "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 128, "vocab_size": 199}
