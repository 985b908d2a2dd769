"""The commands on tiny models of every family, as their authors publish them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary.host import Host
from bestiary.model import load
from bestiary_plugins.demo.beasts import TEXT, publish
from tests.cli.conftest import Cli

FAMILIES = sorted(Host().architectures)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_command_takes_every_family(cli: Cli, host: Host, tmp_path: Path, family: str) -> None:
    folder, file, small = tmp_path / "m", tmp_path / "m.gguf", tmp_path / "small.gguf"
    publish(host.architectures[family], folder, 3)
    (tmp_path / "TEXT").write_text(TEXT * 6)
    assert cli("convert", folder, file).status == cli("quantize", file, small, "q8_0").status == 0
    for path in (folder, file, small):
        result = cli("inspect", path, "--json")
        assert result.status == 0 and json.loads(result.out)["architecture"] == family
    said = [cli("run", "-m", path, "-p", "the night", "-n", "8", "--temp", "0", "--ignore-eos")
            for path in (folder, file)]
    assert said[0].status == 0 and said[0].out == said[1].out != ""
    full = cli("run", "-m", small, "-p", "the night", "-c", "20", "--temp", "0", "--ignore-eos")
    assert full.status == 0 and "the context of 20 tokens is full" in full.err
    result = cli("perplexity", "-m", file, "-f", tmp_path / "TEXT", "-c", "32", "--chunks", "3")
    figure = float(result.out.partition("Final estimate: PPL = ")[2].split()[0])
    assert result.status == 0 and 1 < figure < math.inf
    result = cli("bench", "-m", small, "-p", "24", "-n", "4", "-d", "8", "-r", "1", "--json")
    assert result.status == 0, result.err
    result = cli("bench", "-m", small, "-p", "0", "-n", "4", "--sequences", "3", "-r", "1", "--json")
    assert result.status == 0, result.err
    assert len(json.loads(cli("tokenize", "-m", small, "-p", "the night", "--json").out)) >= 5


@pytest.mark.parametrize("family", ["chatglm", "chatglm1"])
def test_a_trained_prefix_is_added_while_a_model_runs(cli: Cli, host: Host, tmp_path: Path, family: str) -> None:
    folder, prefix = tmp_path / "m", tmp_path / "prefix"
    publish(host.architectures[family], folder, 3)
    config = json.loads((folder / "config.json").read_text())
    with load(folder, host=host) as model:
        width = 2 * 2 * model.config["num_key_value_heads"] * model.config["head_dim"]
    prefix.mkdir()
    (prefix / "config.json").write_text(json.dumps({**config, "pre_seq_len": 5, "prefix_projection": False}))
    table = np.random.default_rng(2).standard_normal((5, width)).astype(np.float32)
    save_file({"transformer.prefix_encoder.embedding.weight": 3 * table}, prefix / "model.safetensors")
    (tmp_path / "TEXT").write_text(TEXT * 3)
    assert cli("convert", folder, tmp_path / "both.gguf", "--add", prefix).status == 0
    words = ("-f", tmp_path / "TEXT", "-c", "48")
    figures = [cli("perplexity", "-m", *where, *words).out for where in (
        (folder,), (folder, "--add", prefix), (tmp_path / "both.gguf",))]
    assert figures[0] != figures[1] == figures[2]
    said = [cli("run", "-m", *where, "-p", "the night", "-n", "12", "--temp", "0", "--ignore-eos").out for where in (
        (folder, "--add", prefix), (tmp_path / "both.gguf",))]
    assert said[0] == said[1] != ""


def test_the_perplexity_of_a_model_whose_prompt_ends_in_a_token_is_of_what_comes_after_it(
        cli: Cli, host: Host, tmp_path: Path) -> None:
    """Elsewhere nothing of the text would be what the model was made to say."""
    publish(host.architectures["chatglm1"], tmp_path / "m", 3)
    (tmp_path / "TEXT").write_text(TEXT)
    with load(tmp_path / "m", host=host) as model:
        begins = model.tokenizer.encode("", bos=True)
        assert begins == [195, 198] and model.layout(begins).prefix == 1
        ids = [*begins, *model.tokenizer.encode(TEXT)][:40]
        logits = model.logits(ids[:-1], 20).astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    wanted = np.exp(-np.log(chances[np.arange(19), ids[21:]]).mean())
    result = cli("perplexity", "-m", tmp_path / "m", "-f", tmp_path / "TEXT", "-c", "40", "--chunks", "1")
    assert f"Final estimate: PPL = {wanted:.4f}" in result.out
