"""ChatGLM2, ChatGLM3 and GLM-4-9B: RMS norm, half of every head rotated, few key heads, gated SiLU in one matrix.

Sources: modeling_chatglm.py as published with THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b; the reference implementation
of GLM-4 in transformers, models/glm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bestiary.config import flag, one_of, real, section, whole, words
from bestiary.errors import BestiaryError
from bestiary.plugin import Architecture, Graph, Key, PreTokenizer, RankList, Rule, Tokenizer, Trace, WrappedTokenizer
from bestiary.rank_list import is_rank_list
from bestiary.sentencepiece_model import read_model
from bestiary.tokenizer_settings import settings
from bestiary.transform import Join
from bestiary_plugins.architectures import p_tuning
from bestiary_plugins.architectures.pre_tokenizers import LLAMA3
from bestiary_plugins.architectures.published import published, share
from bestiary_plugins.templates import Roles, Rounds

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]


def heads_of(config: Config) -> tuple[int, int, int]:
    """Heads, key heads, and the width of one."""
    heads = whole(config, "num_attention_heads", high=1 << 16)
    groups = config.get("multi_query_group_num") if flag(config, "multi_query_attention", True) else heads
    kv_heads = whole(config, "num_key_value_heads", groups or heads, high=heads)
    if heads % kv_heads:
        raise BestiaryError(f"num_key_value_heads = {kv_heads} in the config; it must divide the {heads} heads")
    width = config.get("kv_channels") or whole(config, "hidden_size", high=1 << 24) // heads
    return heads, kv_heads, whole(config, "head_dim", width, low=4, high=1 << 16)


def joined(config: Config) -> Join:
    heads, kv_heads, d = heads_of(config)
    return Join((heads * d, kv_heads * d, kv_heads * d))


def rules(prefix: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{prefix}.{{}}.{theirs}.weight", f"blk.{{}}.{ours}.weight") for theirs, ours in names.items())


PUBLISHED = (
    Rule("transformer.embedding.word_embeddings.weight", "token_embd.weight"),
    Rule("transformer.encoder.layers.{}.self_attention.query_key_value.bias", "blk.{}.attn_qkv.bias"),
    *rules("transformer.encoder.layers", {
        "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}),
    Rule("transformer.encoder.final_layernorm.weight", "output_norm.weight"),
    Rule("transformer.output_layer.weight", "output.weight"),
    *p_tuning.rules("transformer.prefix_encoder"),
    *(Rule(f"transformer.encoder.layers.{{}}.self_attention.query_key_value.{kind}",
           tuple(f"blk.{{}}.attn_{part}.{kind}" for part in "qkv"), lambda config: joined(config).inverse)
      for kind in ("weight", "bias")),  # for the way back of files in which they are separate
)
TRANSFORMERS = (
    Rule("model.embed_tokens.weight", "token_embd.weight"),
    *(Rule(tuple(f"model.layers.{{}}.self_attn.{part}_proj.{kind}" for part in "qkv"), f"blk.{{}}.attn_qkv.{kind}",
           joined) for kind in ("weight", "bias")),
    *rules("model.layers", {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
                            "post_attention_layernorm": "ffn_norm", "mlp.gate_up_proj": "ffn_up",
                            "mlp.down_proj": "ffn_down"}),
    Rule("model.norm.weight", "output_norm.weight"),
    Rule("lm_head.weight", "output.weight"),
    *(Rule(f"model.layers.{{}}.self_attn.{part}_proj.{kind}", f"blk.{{}}.attn_{part}.{kind}") for part in "qkv"
      for kind in ("weight", "bias")),  # for the way back of files in which they are separate
)


ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PIECES = 64_789
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *ROLES)
"""What the published code of ChatGLM2 and 3 adds to the pieces of their file; in 2 those of the roles are unused."""
RANKS = 151_329
SPECIAL_OF_RANKS = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES, "<|begin_of_image|>",
                    "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
MARKS = {"system": ROLES[0], "user": ROLES[1], "assistant": ROLES[2], "tool": ROLES[3], "observation": ROLES[3]}


def by_author(config: Config) -> bool:
    """Whether it is for the modelling files published with the weights, of whichever generation."""
    names = {"ChatGLMModel", "ChatGLMForConditionalGeneration"}
    return config.get("model_type") == "chatglm" or bool(names & {*words(config, "architectures")})


class ChatGlm(Architecture):
    """ChatGLM2 and 3, GLM-4-9B."""

    name = "chatglm"
    called = ("glm", "GlmForCausalLM")
    """Its `model_type` and its class in transformers."""
    namings = {"huggingface": (*PUBLISHED, *TRANSFORMERS)}
    ignorable = (r".*rotary_pos_emb\.inv_freq", r".*rotary_emb\.inv_freq")
    rank_lists = (RankList(RANKS, "chatglm-bpe", SPECIAL_OF_RANKS, "[gMASK]", "<|endoftext|>", (ROLES[1], ROLES[3])),)
    pre_tokenizers = {"chatglm-bpe": PreTokenizer((LLAMA3,)), "glm4": PreTokenizer((LLAMA3,), ignore_merges=True)}
    templates = {
        "chatglm2-6b": Rounds("chatglm2-6b", 1, "[Round {}]\n\n问：", "\n\n答：", "\n\n"),
        "chatglm3-6b": Roles("chatglm3-6b", MARKS, ROLES[2], (ROLES[1], ROLES[3])),
    }
    keys = (Key("rotary_dim", "{arch}.rope.dimension_count", "u32"), *p_tuning.KEYS)

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        published = by_author(config) and "inner_hidden_size" not in config
        return 90 if published or self.of_transformers(config) else 0

    def of_transformers(self, config: Config) -> bool:
        model_type, model_class = self.called
        return config.get("model_type") == model_type or model_class in words(config, "architectures")

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        heads, kv_heads, d = heads_of(config)
        rope = {**section(config, "rope_parameters"), **section(config, "rope_scaling")}
        one_of({"rope_scaling": rope.get("rope_type") or rope.get("type")}, "rope_scaling", ("default",), "default")
        one_of(config, "hidden_act", ("silu",), "silu")
        for key, wanted in (("add_bias_linear", False), ("rmsnorm", True), ("post_layer_norm", True),
                            ("apply_residual_connection_post_layernorm", False)):
            if flag(config, key, wanted) is not wanted:
                raise BestiaryError(f"{key} = {config[key]} is not implemented; only {wanted} is")
        share = real(config, "partial_rotary_factor", rope.get("partial_rotary_factor") or 0.5, high=1)
        bias = not shapes or not {"blk.0.attn_qkv.bias", "blk.0.attn_q.bias"}.isdisjoint(shapes)
        base = rope.get("rope_theta") or 10000.0 * real(config, "rope_ratio", 1.0)
        return {
            **config,
            "hidden_size": whole(config, "hidden_size", high=1 << 24),
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": d,
            "num_hidden_layers": whole(config, "num_hidden_layers", config.get("num_layers"), high=10_000),
            "intermediate_size": whole(config, "intermediate_size", config.get("ffn_hidden_size"), high=1 << 26),
            "vocab_size": whole(config, "vocab_size", config.get("padded_vocab_size")
                                or next(iter(shapes.get("token_embd.weight", ())), None), high=1 << 24),
            "max_position_embeddings": whole(config, "max_position_embeddings", config.get("seq_length") or 8192),
            "rms_norm_eps": real(config, "rms_norm_eps", config.get("layernorm_epsilon")
                                 or (1.5625e-7 if self.of_transformers(config) else 1e-5)),
            "rope_theta": real(config, "rope_theta", base),
            "rotary_dim": whole(config, "rotary_dim", int(d * share) // 2 * 2, low=2, high=d),
            "attention_bias": flag(config, "attention_bias", flag(config, "add_qkv_bias", bias)),
            "separate": "blk.0.attn_q.weight" in shapes,  # in some files of others
            "tie_word_embeddings": flag(config, "tie_word_embeddings", bool(shapes) and "output.weight" not in shapes),
            **p_tuning.sizes(config, shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        own = ("separate", "rotary_dim", *p_tuning.own_keys(config))
        if self.of_transformers(config):
            factor = share(config["rotary_dim"], config["head_dim"], config.get("partial_rotary_factor"))
            said = published(config, self.called, own, partial_rotary_factor=factor)
            said.setdefault("pad_token_id", None)  # else transformers takes one that a small vocabulary does not have
            return said
        ratio = config.get("rope_ratio") or 1.0
        return published(
            config, ("chatglm", "ChatGLMModel"), (*own, "rope_theta"),
            {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size", "head_dim": "kv_channels",
             "intermediate_size": "ffn_hidden_size", "num_key_value_heads": "multi_query_group_num",
             "max_position_embeddings": "seq_length", "rms_norm_eps": "layernorm_epsilon",
             "attention_bias": "add_qkv_bias"},
            multi_query_attention=flag(config, "multi_query_attention", True), rmsnorm=True, post_layer_norm=True,
            add_bias_linear=False, apply_residual_connection_post_layernorm=False,
            rope_ratio=ratio if ratio * 10000.0 == config["rope_theta"] else config["rope_theta"] / 10000.0,
            **p_tuning.published_keys(config))

    def spelling(self, naming: str, config: Config) -> tuple[Rule, ...]:
        """GLM-4 is published in two ways."""
        rules = super().spelling(naming, config)
        return rules if by_author(config) else tuple(rule for rule in rules if rule not in PUBLISHED)

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        heads, kv_heads, d, eps = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["rms_norm_eps"]
        width, f = c["hidden_size"], c["intermediate_size"]
        rows = (heads * d, kv_heads * d, kv_heads * d)

        def linear(x: Any, name: str, columns: int) -> Any:
            return g.linear(x, f"{name}.weight", columns, bias=f"{name}.bias" if c["attention_bias"] else None)

        def rope(x: Any) -> Any:
            return g.rope(x, d, c["rope_theta"], count=c["rotary_dim"])

        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            h = g.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
            if c["separate"]:
                q, k, v = (linear(h, f"blk.{i}.attn_{part}", n) for part, n in zip("qkv", rows, strict=True))
            else:
                qkv = linear(h, f"blk.{i}.attn_qkv", sum(rows))
                q, k, v = (g.slice(qkv, sum(rows[:j]), sum(rows[:j + 1])) for j in range(3))
            a = g.attention(rope(q), rope(k), v, heads, kv_heads)
            a = self.after(g, g.linear(a, f"blk.{i}.attn_output.weight", width), f"blk.{i}.post_attention_norm", eps)
            x = g.add(x, a)
            h = g.linear(g.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps), f"blk.{i}.ffn_up.weight", 2 * f)
            h = g.mul(g.silu(g.slice(h, 0, f)), g.slice(h, f, 2 * f))
            h = self.after(g, g.linear(h, f"blk.{i}.ffn_down.weight", width), f"blk.{i}.post_ffw_norm", eps)
            x = g.add(x, h)
        h = g.rms_norm(x, "output_norm.weight", eps)
        output = "token_embd.weight" if c["tie_word_embeddings"] else "output.weight"
        return g.finish(g.linear(h, output, c["vocab_size"]), hidden=h, past=p_tuning.past(c, kv_heads, d))

    def material(self, material: TokenizerMaterial, config: Config) -> TokenizerMaterial:
        data = material.files.get("tokenizer.model")
        if data is None or is_rank_list(data) or len(read_model(data).names) != PIECES:
            return material
        own = settings(material.files, "tokenizer_config.json")
        added = {str(PIECES + i): {"content": name, "special": True} for i, name in enumerate(SPECIAL)}
        return replace(material, add_bos=False, files={**material.files, "tokenizer_config.json": json.dumps(
            {**own, "added_tokens_decoder": added}).encode()})

    def wrap(self, tokenizer: Tokenizer, config: Config) -> Tokenizer:
        """Every prompt begins with two tokens."""
        found = [tokenizer.find("[gMASK]"), tokenizer.find("sop") or tokenizer.find("<sop>")]
        return WrappedTokenizer(tokenizer, before=[token for token in found if token is not None])

    def after(self, g: Trace, x: Any, name: str, eps: float) -> Any:
        """What is done to a layer's contribution before it is added: nothing."""
        return x

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "chatglm", "hidden_size": 96, "num_layers": 2, "num_attention_heads": 6,
                "multi_query_group_num": 2, "multi_query_attention": True, "kv_channels": 16, "ffn_hidden_size": 160,
                "padded_vocab_size": 199, "seq_length": 128}
