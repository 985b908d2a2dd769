"""The built-in plugins keep the contracts that others are tested with; a new one is tested by being there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bestiary.architecture import Architecture
from bestiary.host import Host, HostSettings
from bestiary.loader import Loader
from bestiary.testing import (
    ArchitectureContract,
    BackendContract,
    LoaderContract,
    QuantizerContract,
    WriterContract,
)
from bestiary.testing.contract import imports_of
from bestiary.testing.tiny import Ids, Model
from tests.contracts.samples import HEADERS, REFUSING, SAMPLES

HOST = Host(HostSettings(names=()))
OPENING = [loader for loader in HOST.loaders.values() if loader.name not in REFUSING]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
RW = {"new_decoder_architecture": False, "num_kv_heads": None, "multi_query": False, "alibi": True, "bias": True,
      "parallel_attn": False}
CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": (
        {"rope_parameters": LLAMA3}, {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": YARN},
        {"attention_bias": True}, {"mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 10, "num_key_value_heads": 6}),
    "mistral": ({"sliding_window": None},),
    "mixtral": ({"sliding_window": 9, "num_local_experts": 5, "num_experts_per_tok": 1},),
    "qwen2": ({"use_sliding_window": False, "tie_word_embeddings": True, "rope_scaling": YARN},),
    "qwen3": ({"attention_bias": True, "head_dim": 20},),
    "gemma2": ({"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"sliding_window": 5}),
    "phi3": ({"rope_scaling": None, "partial_rotary_factor": None}, {"original_max_position_embeddings": 256}),
    "gpt2": ({"tie_word_embeddings": False, "activation_function": "gelu"},),
    "gptneox": ({"use_parallel_residual": False, "tie_word_embeddings": True},),
    "bloom": ({"num_attention_heads": 8}, {"apply_residual_connection_post_layernorm": True},
              {"tie_word_embeddings": False}),
    "falcon": ({"new_decoder_architecture": False, "num_kv_heads": None, "tie_word_embeddings": False},
               RW, {**RW, "num_attention_heads": 8}, {"num_ln_in_parallel_attn": 1}),
    "chatglm": ({"pre_seq_len": 5}, {"multi_query_attention": False, "add_qkv_bias": False},
                {"tie_word_embeddings": True, "rope_ratio": 2.0}),
    "chatglm1": ({"pre_seq_len": 5},),
    "glm4": ({"attention_bias": False},),
}
"""What to change in a family's example, to go other ways through it."""


def by_name(item: Any) -> str:
    return str(item.name)


@pytest.fixture(params=HOST.architectures.values(), ids=by_name)
def architecture(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=OPENING, ids=by_name)
def loader(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.writers.values(), ids=by_name)
def writer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.quantizers.values(), ids=by_name)
def quantizer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.backends.values(), ids=by_name)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestArchitectures(ArchitectureContract):
    def models(self, architecture: Architecture) -> Iterator[tuple[str, Model]]:
        example = architecture.example_config()
        self.configs = [{**example, **changes} for changes in CONFIGS.get(architecture.name, ())]
        return super().models(architecture)

    def ids(self, config: Mapping[str, Any], count: int, seed: int) -> Ids:
        """Of a family whose prompts have an end, with that end."""
        ids = super().ids(config, count, seed)
        if "gmask_token_id" in config and count > 4:
            ids[count // 2:count // 2 + 2] = config["gmask_token_id"], config["bos_token_id"]
        return ids


class TestLoaders(LoaderContract):
    damages = 100  # more of them are opened elsewhere, with what is known of each format

    @pytest.fixture
    def path(self, loader: Loader, tmp_path: Path) -> Path:
        self.header, self.writer = HEADERS.get(loader.name), HOST.writers.get(loader.name)
        folder = tmp_path / "sample"
        folder.mkdir()
        return SAMPLES[loader.name](folder)


class TestWriters(WriterContract):
    pass


class TestQuantizers(QuantizerContract):
    pass


class TestBackends(BackendContract):
    pass


@pytest.mark.parametrize("module", ["bestiary.cli.main", "bestiary.model", "bestiary.plugin", "bestiary_plugins"])
def test_nothing_but_tests_needs_pytest(module: str) -> None:
    assert "numpy" in imports_of("bestiary.model")
    assert "pytest" not in imports_of(module)
