"""Qwen 1.5, 2 and 2.5: LLaMA's graph with biases of queries, keys and values, and a window in the later layers.

Source: Yang et al. 2024 (arXiv 2407.10671).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary.config import flag, whole
from bestiary.plugin import PreTokenizer, Rule, TurnTemplate
from bestiary_plugins.architectures.llama import HUGGINGFACE, Config, Llama
from bestiary_plugins.architectures.pre_tokenizers import QWEN2
from bestiary_plugins.architectures.windows import layer_types, sliding_window, window_of

NOT_PERMUTED = tuple(Rule(rule.sources, rule.targets) for rule in HUGGINGFACE)
"""Rows of queries and keys stay in the order of halves."""


CHATML = TurnTemplate("chatml", "<|im_start|>system\n{system}<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
                      "<|im_start|>assistant\n", "<|im_end|>\n", strips_answers=False, stop=("<|im_end|>",))


class Qwen2(Llama):
    """Qwen2 and Qwen2.5."""

    name = "qwen2"
    called = ("qwen2", "Qwen2ForCausalLM")
    namings = {"huggingface": NOT_PERMUTED}
    pairing = "halves"
    scalings = ("linear", "yarn")
    usual_context = 32768
    pre_tokenizers = dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), PreTokenizer((QWEN2,)))
    rank_lists = ()
    vocabularies = ()
    prompts = {}
    templates = {CHATML.name: CHATML}

    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        normal = super().normalise(config, shapes)
        first = whole(config, "max_window_layers", 28, low=0)
        uses = flag(config, "use_sliding_window")
        return {**normal, **self.biases(config, normal), "use_sliding_window": uses, "max_window_layers": first,
                "sliding_window": sliding_window(config, 4096) if uses else None,
                "layer_types": layer_types(config, lambda i: uses and i >= first)}

    own_keys = (*Llama.own_keys, "attention_bias")

    def biases(self, config: Config, normal: Config) -> dict[str, Any]:
        return {"attention_bias": True, "attention_output_bias": False, "mlp_bias": False}

    def window(self, c: Config, i: int) -> int:
        return window_of(c, i)

    def example_config(self) -> dict[str, Any]:
        return {**super().example_config(), "model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True,
                "sliding_window": 24, "max_window_layers": 1}
