"""LLaMA 1, 2, 3, 3.1 and later: RMS norm, rotary positions, grouped heads, gated SiLU.

Sources: Touvron et al. 2023 (arXiv 2302.13971); the Llama 3.1 reference code for the scaling of its frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, one_of, real, section, whole, words
from bestiary.errors import BestiaryError
from bestiary.graph import Value
from bestiary.plugin import Architecture, Graph, Key, KnownVocabulary, PreTokenizer, RankList, Rule, Trace
from bestiary.transform import Regroup
from bestiary_plugins.architectures.pre_tokenizers import LLAMA3
from bestiary_plugins.architectures.prompts import PROMPTS
from bestiary_plugins.architectures.published import published
from bestiary_plugins.architectures.rotary import refuse_partial, yarn, yarn_scaling
from bestiary_plugins.templates import OF_LLAMA

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]


LARGEST_HEAD, MOST_HEADS, WIDEST = 1 << 16, 1 << 16, 1 << 24
"""Far above every model there is; what a config asks for beyond them is damage, found before anything is made of it."""


def interleave(config: Config, heads: int) -> Regroup:
    """Hugging Face rotates columns (j, j + d/2) of a head, the canonical order (2j, 2j + 1): row 2j + c of a head is
    its row c * d/2 + j."""
    size = head_dim(config)
    return Regroup((heads, 2, size // 2), (0, 2, 1))


def head_dim(config: Config) -> int:
    width, heads = whole(config, "hidden_size", high=WIDEST), query_heads(config)
    if config.get("head_dim") is None and width % heads:
        raise BestiaryError(f"hidden_size = {width} in the config; without head_dim it must be a multiple of the "
                            f"{heads} heads")
    size = whole(config, "head_dim", width // heads, high=LARGEST_HEAD)
    if size % 2:
        raise BestiaryError(f"heads of {size} cannot be rotated; head_dim, or hidden_size / num_attention_heads, must "
                            "be even")
    return size


def query_heads(config: Config) -> int:
    return whole(config, "num_attention_heads", high=MOST_HEADS)


def key_heads(config: Config) -> int:
    heads = query_heads(config)
    found = whole(config, "num_key_value_heads", heads, high=heads)
    if heads % found:
        raise BestiaryError(f"num_key_value_heads = {found} in the config; it must divide the {heads} heads")
    return found


def query_rows(config: Config) -> Regroup:
    return interleave(config, query_heads(config))


def key_rows(config: Config) -> Regroup:
    return interleave(config, key_heads(config))


HUGGINGFACE = (
    Rule("model.embed_tokens.weight", "token_embd.weight"),
    Rule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", query_rows),
    Rule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", query_rows),
    Rule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", key_rows),
    Rule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", key_rows),
    *(Rule(f"model.layers.{{}}.{ours}.{part}", f"blk.{{}}.{canonical}.{part}") for part in ("weight", "bias")
      for ours, canonical in (("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
                              ("mlp.gate_proj", "ffn_gate"), ("mlp.down_proj", "ffn_down"), ("mlp.up_proj", "ffn_up"))),
    Rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    Rule("model.norm.weight", "output_norm.weight"),
    Rule("lm_head.weight", "output.weight"),
)

META = (
    Rule("tok_embeddings.weight", "token_embd.weight"),
    *(Rule(f"layers.{{}}.{meta}.weight", f"blk.{{}}.{canonical}.weight") for meta, canonical in (
        ("attention.wq", "attn_q"), ("attention.wk", "attn_k"), ("attention.wv", "attn_v"),
        ("attention.wo", "attn_output"),
        ("feed_forward.w1", "ffn_gate"), ("feed_forward.w2", "ffn_down"), ("feed_forward.w3", "ffn_up"),
        ("attention_norm", "attn_norm"), ("ffn_norm", "ffn_norm"))),
    Rule("norm.weight", "output_norm.weight"),
    Rule("output.weight", "output.weight"),
)

LLAMA3_SCALING: dict[str, Any] = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                  "original_max_position_embeddings": 8192}
"""Of all models of it that were published; the factor differs."""

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)))
"""From id 128000 on; the first release named some of the reserved ones otherwise."""


VOCABULARIES = (
    KnownVocabulary(32000, "LLaMA's own tokenizer", (32000, 32001)),  # a last row for padding needs no piece
    KnownVocabulary(32001, "LLaMA's tokenizer with one token more, for padding (Chimera, Vicuna v0, Alpaca)",
                    (32001,)),
    KnownVocabulary(49953, "Chinese-LLaMA's tokenizer", (49953,)),
    KnownVocabulary(49954, "Chinese-Alpaca's tokenizer", (49954,)),
    KnownVocabulary(55296, "the tokenizer of Chinese-LLaMA-2 and Chinese-Alpaca-2", (55296,)),
)


def linear(g: Trace, x: Value, name: str, width: int, bias: bool) -> Value:
    return g.linear(x, f"{name}.weight", width, bias=f"{name}.bias" if bias else None)


class Llama(Architecture):
    """LLaMA and what has its graph. Its kin differ in an attribute or a step of the graph, each a method here."""

    name = "llama"
    called: tuple[str, str] = ("llama", "LlamaForCausalLM")
    """Its `model_type` and its class in transformers."""
    activations: Mapping[str, Callable[[Trace, Value], Value]] = {"silu": Trace.silu}
    scalings: tuple[str, ...] = ("linear", "llama3", "yarn")
    """Kinds of rope scaling that such models come with."""
    usual_context, usual_eps = 2048, 1e-6
    """What transformers takes where a config says nothing."""
    pairing = "adjacent"
    own_keys: tuple[str, ...] = ("rope_factor", "rope_original_context", "rope_factors", "attention_output_bias")
    """What only a normalised config has."""
    namings = {"huggingface": HUGGINGFACE, "meta": META}
    ignorable = (r".*rotary_emb\.inv_freq", r"rope\.freqs",
                 r"output\.weight")  # a second copy of the embedding, where the two are tied
    prompts: Mapping[str, str] = PROMPTS
    pre_tokenizers = {  # of rules with several names, the usual one comes first
        **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), PreTokenizer((LLAMA3,), True)),
        **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((LLAMA3,)))}
    rank_lists: tuple[RankList, ...] = (RankList(128000, "llama-bpe", LLAMA3_SPECIAL, "<|begin_of_text|>",
                                                 "<|end_of_text|>", ("<|eot_id|>", "<|eom_id|>")),)
    vocabularies: tuple[KnownVocabulary, ...] = VOCABULARIES
    templates = OF_LLAMA
    keys: tuple[Key, ...] = (
        Key("head_dim", "{arch}.rope.dimension_count", "u32"),
        Key("rope_scaling", "{arch}.rope.scaling.type", "str",
            to_file=lambda scaling: scaling["rope_type"] if scaling["rope_type"] in ("linear", "yarn") else None,
            from_file=lambda kind: {"rope_type": kind}),
        Key("rope_factor", "{arch}.rope.scaling.factor", "f32"),
        Key("rope_original_context", "{arch}.rope.scaling.original_context_length", "u32"),
    )

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        model_type, model_class = self.called
        return 50 if config.get("model_type") == model_type or model_class in words(config, "architectures") else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        scaling = {**section(config, "rope_parameters"), **section(config, "rope_scaling")}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        kind = one_of({"rope_scaling": kind}, "rope_scaling", ("default", "none", *self.scalings), "default")
        refuse_partial(config, scaling)
        bias = flag(config, "attention_bias", "blk.0.attn_q.bias" in shapes)
        normal = {
            **config,
            "hidden_size": whole(config, "hidden_size", high=WIDEST),
            "intermediate_size": whole(config, "intermediate_size", high=WIDEST),
            "num_hidden_layers": whole(config, "num_hidden_layers", high=10_000),
            "num_attention_heads": query_heads(config),
            "head_dim": head_dim(config),
            "num_key_value_heads": key_heads(config),
            "vocab_size": whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None),
                                high=WIDEST),
            "max_position_embeddings": whole(config, "max_position_embeddings", self.usual_context),
            "rms_norm_eps": real(config, "rms_norm_eps", self.usual_eps),
            "rope_theta": real(config, "rope_theta", real(scaling, "rope_theta", 10000.0)),
            "hidden_act": one_of(config, "hidden_act", self.activations, next(iter(self.activations))),
            "attention_bias": bias,
            "attention_output_bias": bias,
            "mlp_bias": flag(config, "mlp_bias", "blk.0.ffn_up.bias" in shapes),
            "tie_word_embeddings": flag(config, "tie_word_embeddings", bool(shapes) and "output.weight" not in shapes),
            "rope_scaling": None,
            "rope_factor": None,
            "rope_original_context": None,
        }
        if kind == "linear":
            normal["rope_factor"] = real(config, "rope_factor", real(scaling, "factor", 1.0))
            normal["rope_scaling"] = {"rope_type": "linear", "factor": normal["rope_factor"]}
        if kind == "yarn":
            normal.update(yarn_scaling(config, scaling, normal["rope_theta"], normal["max_position_embeddings"]))
        if kind == "llama3":
            real(scaling, "high_freq_factor", low=real(scaling, "low_freq_factor", low=1e-9) + 1e-9)
            normal["rope_scaling"] = {"rope_type": "llama3", **{key: real(scaling, key, low=1e-9) for key in (
                "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}}
        normal["rope_factors"] = kind == "llama3" or "rope_freqs.weight" in shapes
        return normal

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        said = published(config, self.called, self.own_keys)
        scaling = config.get("rope_scaling")
        if scaling is None and "rope_freqs.weight" in tensors:
            said["rope_scaling"] = self.scaling_of(config, tensors["rope_freqs.weight"])
        elif scaling is not None and scaling["rope_type"] == "linear":
            said["rope_scaling"] = {"type": "linear", "factor": scaling["factor"]}  # what the oldest readers take too
        return said

    def scaling_of(self, config: Config, factors: Tensor) -> dict[str, Any] | None:
        """The scaling of Llama 3.1 and later by which these factors follow from the config: files of others hold only
        them. None where they do not."""
        import numpy as np

        given = factors.array()
        scaling = {**LLAMA3_SCALING, "factor": float(str(given.max()))}
        factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
        if (mixed := np.flatnonzero((given > 1) & (given < factor))).size:
            j = int(mixed[0])
            length = 2 * math.pi * config["rope_theta"] ** (2 * j / config["head_dim"])
            smooth = (1 / float(given[j]) - 1 / factor) / (1 - 1 / factor)
            scaling["original_max_position_embeddings"] = round(length * (smooth * (high - low) + low))
        again = self.derived({**config, "rope_factors": True, "rope_scaling": scaling})["rope_freqs.weight"].array()
        return scaling if given.shape == again.shape and np.allclose(given, again, rtol=1e-5) else None

    def derived(self, config: Config) -> Mapping[str, Tensor]:
        if not config["rope_factors"] or config["rope_scaling"] is None:
            return {}
        import numpy as np

        from bestiary.tensor import ArrayTensor

        scaling, count = config["rope_scaling"], config["head_dim"]
        low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
        length = 2 * math.pi * config["rope_theta"] ** (2 * np.arange(count // 2) / count)  # wavelengths in tokens
        smooth = np.clip((scaling["original_max_position_embeddings"] / length - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": ArrayTensor((1 / ((1 - smooth) / factor + smooth)).astype(np.float32))}

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        rotation, eps = self.rotation(g, c, context), c["rms_norm_eps"]
        x = g.embed("token_embd.weight", c["vocab_size"], c["hidden_size"])
        for i in g.layers(c["num_hidden_layers"]):
            x = g.add(x, self.attention(g, c, g.rms_norm(x, f"blk.{i}.attn_norm.weight", eps), i, rotation))
            x = g.add(x, self.feed_forward(g, c, g.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps), i))
        h = g.rms_norm(x, "output_norm.weight", eps)
        return g.finish(self.output(g, c, h), hidden=h)

    def rotation(self, g: Trace, c: Config, context: int) -> dict[str, Any]:
        """How `rope` turns, for all layers: its keywords."""
        if (c["rope_scaling"] or {}).get("rope_type") == "yarn":
            return {"pairing": self.pairing, **yarn(c["head_dim"], c["rope_theta"], c["rope_scaling"])}
        return {"pairing": self.pairing, "scaling": 1 / (c["rope_factor"] or 1),
                "factors": "rope_freqs.weight" if c["rope_factors"] else None}

    def attention(self, g: Trace, c: Config, h: Value, i: int, rotation: Mapping[str, Any], **scores: Any) -> Value:
        heads, kv_heads, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q, k, v = self.queries_keys_values(g, c, h, i)
        q, k = (g.rope(x, d, c["rope_theta"], **rotation) for x in (q, k))
        a = g.attention(q, k, v, heads, kv_heads, window=self.window(c, i), **scores)
        return linear(g, a, f"blk.{i}.attn_output", c["hidden_size"], c["attention_output_bias"])

    def queries_keys_values(self, g: Trace, c: Config, h: Value, i: int) -> tuple[Value, ...]:
        rows, bias = c["head_dim"] * c["num_key_value_heads"], c["attention_bias"]
        return (linear(g, h, f"blk.{i}.attn_q", c["head_dim"] * c["num_attention_heads"], bias),
                linear(g, h, f"blk.{i}.attn_k", rows, bias), linear(g, h, f"blk.{i}.attn_v", rows, bias))

    def window(self, c: Config, i: int) -> int:
        """How many positions layer i sees; 0 for all."""
        return 0

    def feed_forward(self, g: Trace, c: Config, h: Value, i: int) -> Value:
        width, bias = c["intermediate_size"], c["mlp_bias"]
        gate = self.activations[c["hidden_act"]](g, linear(g, h, f"blk.{i}.ffn_gate", width, bias))
        return linear(g, g.mul(gate, linear(g, h, f"blk.{i}.ffn_up", width, bias)), f"blk.{i}.ffn_down",
                      c["hidden_size"], bias)

    def output(self, g: Trace, c: Config, h: Value) -> Value:
        return g.linear(h, "token_embd.weight" if c["tie_word_embeddings"] else "output.weight", c["vocab_size"])

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "llama", "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
                "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 128}
