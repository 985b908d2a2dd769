"""Mistral: LLaMA's graph with a window over the last positions.

Source: Jiang et al. 2023 (arXiv 2310.06825). llama.cpp files it as LLaMA and does not know the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.plugin import PreTokenizer, TurnTemplate
from bestiary_plugins.architectures.llama import Config, Llama
from bestiary_plugins.architectures.windows import sliding_window

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


INST = TurnTemplate("mistral", "[INST] {system}\n\n", "[INST] ", " [/INST]", "", "</s> ", " ", first_user="")
"""Source: mistralai's cookbook, templates of tokenizer v1; the begin of a text is the tokenizer's."""


class Mistral(Llama):
    """Mistral 7B and Nemo."""

    name = "mistral"
    filed_as = "llama"
    called = ("mistral", "MistralForCausalLM")
    usual_context, usual_window = 131072, 4096
    pre_tokenizers = {"tekken": PreTokenizer((TEKKEN,), ignore_merges=True)}
    rank_lists = ()
    vocabularies = ()
    prompts = {}
    templates = {INST.name: INST}

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        filed = config.get("model_type") == self.filed_as and config.get("sliding_window")
        return 60 if filed else super().claims(config, tokenizer)

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().normalise(config, shapes), "sliding_window": sliding_window(config, self.usual_window)}

    def window(self, c: Config, i: int) -> int:
        return c["sliding_window"] or 0

    def example_config(self) -> dict[str, Any]:
        return {**super().example_config(), "model_type": "mistral", "sliding_window": 24}
