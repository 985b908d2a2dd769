"""Gemma 2: norms before and after each step, soft-caps, a window in every other layer.

Source: Gemma Team 2024 (arXiv 2408.00118). The embedding is scaled by the root of its width, which the authors' code
rounds to the type of the weights; here it is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, real, words
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace, Value
from bestiary.plugin import Key, Rule, TurnTemplate
from bestiary.transform import Add
from bestiary_plugins.architectures.llama import Config, Llama
from bestiary_plugins.architectures.qwen2 import NOT_PERMUTED
from bestiary_plugins.architectures.windows import layer_types, sliding_window, window_of

if TYPE_CHECKING:
    from bestiary.tensor import Tensor

NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm"),
         ("pre_feedforward_layernorm", "ffn_norm"), ("post_feedforward_layernorm", "post_ffw_norm"))


def plus_one(config: Config) -> Add:
    """What is stored is by how much a norm's weight exceeds 1."""
    return Add(1.0)


def cap(config: Config, key: str, usual: float) -> float | None:
    """null means none; a config that says nothing means the usual."""
    return None if key in config and config[key] is None else real(config, key, usual)


TURNS = TurnTemplate("gemma", "<start_of_turn>user\n{system}\n\n", "<start_of_turn>user\n", "<end_of_turn>\n",
                     "<start_of_turn>model\n", "<end_of_turn>\n", first_user="", strips=True,
                     stop=("<end_of_turn>",))
# The authors' template has no place for a system's message; it begins the user's, as in llama.cpp.


class Gemma2(Llama):
    """Gemma 2 2B, 9B and 27B."""

    name = "gemma2"
    called = ("gemma2", "Gemma2ForCausalLM")
    namings = {"huggingface": (
        *(rule for rule in NOT_PERMUTED if "norm" not in str(rule.sources)),
        *(Rule(f"model.layers.{{}}.{theirs}.weight", f"blk.{{}}.{ours}.weight", plus_one) for theirs, ours in NORMS),
        Rule("model.norm.weight", "output_norm.weight", plus_one))}
    activations = {"gelu_pytorch_tanh": lambda g, x: g.gelu(x, "tanh")}
    pairing = "halves"
    scalings = ("linear",)
    usual_context = 8192
    pre_tokenizers = {}
    rank_lists = ()
    vocabularies = ()
    prompts = {}
    templates = {TURNS.name: TURNS}
    keys = (*Llama.keys, Key("attn_logit_softcapping", "{arch}.attn_logit_softcapping", "f32"),
            Key("final_logit_softcapping", "{arch}.final_logit_softcapping", "f32"))

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        normal = super().normalise({"head_dim": 256, "tie_word_embeddings": True, **config,
                                    "hidden_act": config.get("hidden_activation")}, shapes)
        if flag(config, "use_bidirectional_attention"):
            raise BestiaryError("use_bidirectional_attention = True is not implemented; known: False")
        if words(config, "architectures"):  # a config of transformers, where a class has its own default
            usual = 256
        else:  # files of llama.cpp do not say; the 27B is told by its layers
            large = normal["num_hidden_layers"] == 46
            usual = normal["hidden_size"] // normal["num_attention_heads"] if large else normal["head_dim"]
        return {**normal, "hidden_activation": normal["hidden_act"], "mlp_bias": False,
                "query_pre_attn_scalar": real(config, "query_pre_attn_scalar", usual),
                "attn_logit_softcapping": cap(config, "attn_logit_softcapping", 50.0),
                "final_logit_softcapping": cap(config, "final_logit_softcapping", 30.0),
                "sliding_window": sliding_window(config, 4096),
                "layer_types": layer_types(config, lambda i: i % 2 == 0)}

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        scalar = config["query_pre_attn_scalar"]  # a float is refused, where it means the same
        return {**super().published_config(config, tensors),
                "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar}

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        rotation, scores = self.rotation(g, c, context), {
            "scale": c["query_pre_attn_scalar"] ** -0.5, "soft_cap": c["attn_logit_softcapping"] or 0.0}

        def norm(x: Value, name: str) -> Value:
            return g.rms_norm(x, f"{name}.weight", c["rms_norm_eps"])

        x = g.scale(g.embed("token_embd.weight", c["vocab_size"], c["hidden_size"]), c["hidden_size"] ** 0.5)
        for i in g.layers(c["num_hidden_layers"]):
            h = self.attention(g, c, norm(x, f"blk.{i}.attn_norm"), i, rotation, **scores)
            x = g.add(x, norm(h, f"blk.{i}.post_attention_norm"))
            h = self.feed_forward(g, c, norm(x, f"blk.{i}.ffn_norm"), i)
            x = g.add(x, norm(h, f"blk.{i}.post_ffw_norm"))
        h = norm(x, "output_norm")
        logits, last = self.output(g, c, h), c["final_logit_softcapping"]
        return g.finish(g.soft_cap(logits, last) if last else logits, hidden=h)

    def window(self, c: Config, i: int) -> int:
        return window_of(c, i)

    def example_config(self) -> dict[str, Any]:
        return {**super().example_config(), "model_type": "gemma2", "head_dim": 24, "query_pre_attn_scalar": 24,
                "sliding_window": 24, "hidden_activation": "gelu_pytorch_tanh"}
