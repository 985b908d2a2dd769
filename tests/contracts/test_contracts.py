"""The built-in plugins keep the contracts that others are tested with; a new one is tested by being there."""

from __future__ import annotations

from collections.abc import Iterator
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
from bestiary.testing.tiny import Model
from tests.contracts.samples import HEADERS, SAMPLES

HOST = Host(HostSettings(names=()))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {"llama": (
    {"rope_parameters": LLAMA3}, {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"attention_bias": True},
    {"mlp_bias": True, "tie_word_embeddings": True}, {"head_dim": 10, "num_key_value_heads": 6})}
"""What to change in a family's example, to go other ways through it."""


@pytest.fixture(params=HOST.architectures.values(), ids=HOST.architectures.names)
def architecture(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.loaders.values(), ids=HOST.loaders.names)
def loader(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.writers.values(), ids=HOST.writers.names)
def writer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.quantizers.values(), ids=HOST.quantizers.names)
def quantizer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=HOST.backends.values(), ids=HOST.backends.names)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestArchitectures(ArchitectureContract):
    def models(self, architecture: Architecture) -> Iterator[tuple[str, Model]]:
        example = architecture.example_config()
        self.configs = [{**example, **changes} for changes in CONFIGS.get(architecture.name, ())]
        return super().models(architecture)


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
