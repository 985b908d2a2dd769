"""ChatGLM-6B: a prompt that sees itself in both directions, two streams of positions, residuals of normed values.

Sources: Du et al. 2022 (GLM, arXiv 2103.10360); modeling_chatglm.py and tokenization_chatglm.py as published with the
weights. The keys of our GGUF files of this family are ours: no other program runs them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import Vocabulary
from bestiary.config import flag, real, whole
from bestiary.errors import BestiaryError
from bestiary.plugin import Architecture, Graph, Key, PromptLayout, Rule, Segment, Tokenizer, Trace, WrappedTokenizer
from bestiary.sentencepiece_model import BYTE, CONTROL, UNUSED, USER_DEFINED, read_model
from bestiary_plugins.architectures import p_tuning
from bestiary_plugins.architectures.chatglm import by_author
from bestiary_plugins.architectures.fused_rows import by_part, width_and_heads
from bestiary_plugins.architectures.published import published
from bestiary_plugins.templates import Rounds

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.tensor import Tensor

Config = Mapping[str, Any]
ALPHA = math.sqrt(2 * 28)
"""Of the residuals. It is that of 28 layers whatever the model has: the reference never passes its own count on."""


def sizes(config: Config) -> tuple[int, int]:
    width, heads = width_and_heads(config)
    if width % (4 * heads):
        raise BestiaryError(f"hidden_size = {width} in the config; it must be a multiple of 4 x {heads} heads")
    return width, heads


def prompt_tokens(config: Config) -> tuple[int, int, int]:
    """[MASK], [gMASK], <sop>. The first release's config names <sop> only; the others stand before it."""
    most = whole(config, "vocab_size", high=1 << 24) - 1
    sop = whole(config, "bos_token_id", most, low=0, high=most)
    return (whole(config, "mask_token_id", max(sop - 4, 0), low=0, high=most),
            whole(config, "gmask_token_id", max(sop - 3, 0), low=0, high=most), sop)


HUGGINGFACE = (
    Rule("transformer.word_embeddings.weight", "token_embd.weight"),
    *(Rule(f"transformer.layers.{{}}.attention.query_key_value.{part}", f"blk.{{}}.attn_qkv.{part}", by_part)
      for part in ("weight", "bias")),
    *(Rule(f"transformer.layers.{{}}.{theirs}.{part}", f"blk.{{}}.{ours}.{part}") for part in ("weight", "bias")
      for theirs, ours in (("attention.dense", "attn_output"), ("input_layernorm", "attn_norm"),
                           ("post_attention_layernorm", "ffn_norm"), ("mlp.dense_h_to_4h", "ffn_up"),
                           ("mlp.dense_4h_to_h", "ffn_down"))),
    *(Rule(f"transformer.final_layernorm.{part}", f"output_norm.{part}") for part in ("weight", "bias")),
    Rule("lm_head.weight", "output.weight"),
    *p_tuning.rules("transformer.prefix_encoder"),
)


IMAGES = 20_000
SPECIAL = (*((name, CONTROL) for name in (
    "[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")), ("<|tab|>", USER_DEFINED),
    *((f"<|blank_{count}|>", USER_DEFINED) for count in range(2, 81)), *((f"<0x{i:02X}>", BYTE) for i in range(256)))
"""What the published code adds to the first release's file; in the second's it stands already, from id 130000 on."""
MARKS = {"\n": "<n>", "\t": "<|tab|>", **{" " * count: f"<|blank_{count}|>" for count in range(80, 1, -1)}}


class ChatGlm1Tokenizer(WrappedTokenizer):
    """White space has tokens of its own: line ends, tabs, runs of 2 to 80 spaces. A prompt ends in [gMASK] <sop>."""

    def segment(self, segment: Segment) -> list[int]:
        known = set(self._spaces.values())  # of a vocabulary without them the text stays as it is
        text = re.sub("\n|\t| {2,80}", lambda match: MARKS[match[0]] if match[0] in known else match[0], segment.text)
        return super().segment(Segment(text, segment.special))

    def piece(self, token: int) -> bytes:
        return self._spaces[token].encode() if token in self._spaces else self.inner.piece(token)

    def first(self, token: int) -> tuple[bytes, bool]:
        return (self._spaces[token].encode(), False) if token in self._spaces else self.inner.first(token)

    @cached_property
    def _spaces(self) -> dict[int, str]:
        found = {self.inner.find(mark): text for text, mark in MARKS.items()}
        return {token: text for token, text in found.items() if token is not None}


class ChatGlm1(Architecture):
    """ChatGLM-6B of both vocabularies."""

    name = "chatglm1"
    namings = {"huggingface": HUGGINGFACE}
    ignorable = (r"output\.weight", r".*rotary_emb\.inv_freq")  # the output matrix is the embedding
    templates = {"chatglm-6b": Rounds("chatglm-6b", 0, "[Round {}]\n问：", "\n答：", "\n", bare=True)}
    keys = (Key("gmask_token_id", "{arch}.gmask_token_id", "u32"), Key("mask_token_id", "{arch}.mask_token_id", "u32"),
            Key("bos_token_id", "{arch}.sop_token_id", "u32"), *p_tuning.KEYS)

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        first = by_author(config) and "inner_hidden_size" in config
        return 90 if first or config.get("model_type") == self.name else 0

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, heads = sizes(config)
        if not flag(config, "position_encoding_2d", True):
            raise BestiaryError("position_encoding_2d = False is not implemented; only True is")
        vocabulary = whole(config, "vocab_size", next(iter(shapes.get("token_embd.weight", ())), None), high=1 << 24)
        mask, gmask, sop = prompt_tokens({"vocab_size": vocabulary, **config})
        return {
            **config,
            "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads,
            "head_dim": width // heads,
            "num_hidden_layers": whole(config, "num_hidden_layers", config.get("num_layers"), high=10_000),
            "intermediate_size": whole(config, "intermediate_size", config.get("inner_hidden_size") or 4 * width,
                                       high=1 << 26),
            "vocab_size": vocabulary,
            "max_position_embeddings": whole(config, "max_position_embeddings",
                                             config.get("max_sequence_length") or 2048),
            "layer_norm_eps": real(config, "layer_norm_eps", config.get("layernorm_epsilon") or 1e-5),
            "mask_token_id": mask, "gmask_token_id": gmask, "bos_token_id": sop,
            **p_tuning.sizes(config, shapes),
        }

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return published(
            config, ("chatglm", "ChatGLMModel"), ("head_dim", "num_key_value_heads", *p_tuning.own_keys(config)),
            {"num_hidden_layers": "num_layers", "intermediate_size": "inner_hidden_size",
             "max_position_embeddings": "max_sequence_length", "layer_norm_eps": "layernorm_epsilon"},
            position_encoding_2d=True, **p_tuning.published_keys(config))

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width, heads, d = c["hidden_size"], c["num_attention_heads"], c["head_dim"]

        def norm(x: Any, name: str) -> Any:
            return g.layer_norm(x, f"{name}.weight", f"{name}.bias", c["layer_norm_eps"])

        def linear(x: Any, name: str, columns: int) -> Any:
            return g.linear(x, f"{name}.weight", columns, bias=f"{name}.bias")

        def rope(x: Any) -> Any:
            """The first half of a head turns by the token's place in the prompt, the second by that in the answer."""
            for stream in range(2):
                x = g.rope(x, d, 10000.0, start=stream * d // 2, count=d // 2, pairing="halves", stream=stream)
            return x

        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            h = norm(x, f"blk.{i}.attn_norm")
            qkv = linear(h, f"blk.{i}.attn_qkv", 3 * width)
            q, k, v = (g.slice(qkv, part * width, (part + 1) * width) for part in range(3))
            a = g.attention(rope(q), rope(k), v, heads, heads, mask="prefix")
            x = g.add(g.scale(h, ALPHA), linear(a, f"blk.{i}.attn_output", width))
            h = norm(x, f"blk.{i}.ffn_norm")
            f = g.gelu(linear(h, f"blk.{i}.ffn_up", c["intermediate_size"]), "tanh")
            x = g.add(g.scale(h, ALPHA), linear(f, f"blk.{i}.ffn_down", width))
        h = norm(x, "output_norm")
        return g.finish(g.linear(h, "token_embd.weight", c["vocab_size"]), hidden=h, prefix_mask=True,
                        past=p_tuning.past(c, heads, d))

    def layout(self, ids: list[int], config: Config) -> PromptLayout:
        """What stands before <sop> is the prefix. From <sop> on the first stream stays at the mask token, and the
        second counts from 1."""
        sop = config["bos_token_id"]
        if sop not in ids:
            return PromptLayout((tuple(range(len(ids))), (0,) * len(ids)), next=(len(ids), 0), step=(1, 0))
        end = ids.index(sop)
        mask = next((ids.index(token) for token in (config["gmask_token_id"], config["mask_token_id"]) if token in ids),
                    max(end - 1, 0))
        after = len(ids) - end
        return PromptLayout(((*range(end), *(mask,) * after), (*(0,) * end, *range(1, after + 1))),
                            next=(mask, after + 1), step=(0, 1), prefix=end)

    def material(self, material: TokenizerMaterial, config: Config) -> TokenizerMaterial:
        """The first release's file has no special pieces, and its vocabulary begins with the tokens of images."""
        data = material.files.get("tokenizer.model")
        if data is None or config.get("vocab_size") != IMAGES + 130_528:
            return material
        model = read_model(data)
        ours = SPECIAL[max(len(model.names) - 130_000, 0):]
        return replace(material, files={}, vocabulary=Vocabulary(
            "unigram", [*(b"<image_%d>" % i for i in range(IMAGES)), *(name.encode() for name in model.names),
                        *(name.encode() for name, _ in ours)],
            [*[0.0] * IMAGES, *model.scores, *[0.0] * len(ours)],
            [*[UNUSED] * IMAGES, *model.kinds, *(kind for _, kind in ours)],
            unknown=IMAGES, charsmap=model.charsmap, squeeze_spaces=model.squeeze_spaces))

    def wrap(self, tokenizer: Tokenizer, config: Config) -> Tokenizer:
        return ChatGlm1Tokenizer(tokenizer, after=prompt_tokens(config)[1:])

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "chatglm", "hidden_size": 96, "num_layers": 2, "num_attention_heads": 3,
                "inner_hidden_size": 160, "vocab_size": 199, "bos_token_id": 198, "gmask_token_id": 195,
                "mask_token_id": 194, "max_sequence_length": 128}
