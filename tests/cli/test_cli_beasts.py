"""`bestiary demo --beasts`: every family that is there, from a checkpoint to what its files are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bestiary.scaffold
from bestiary.host import Host
from bestiary.model import load
from bestiary.plugin import Architecture
from bestiary_plugins.demo.beasts import FIGURES, TEXT, publish
from tests.cli.conftest import Cli

GECKO = Path(bestiary.scaffold.__file__).parent / "architecture.py"


def rows(out: str) -> dict[str, list[str]]:
    """The table's rows by their family; cells without what the model says."""
    table = out.partition("says\n")[2].partition("\n\n")[0]
    return {line.split()[0]: line.replace(" kB", "").split(maxsplit=len(FIGURES) - 1) for line in table.splitlines()}


MERGES = ["chimera", "chinese-llama"]
"""Models that were published as differences."""


def test_every_family_is_a_row_and_a_plugins_too(cli: Cli, host: Host) -> None:
    result = cli("--plugin", GECKO, "demo", "--beasts")
    assert result.status == 0 and "error" not in result.err
    found = rows(result.out)
    assert [*found] == [*sorted([*host.architectures, "gecko"]), *MERGES]
    for family, row in found.items():
        weights, plain, small = (float(cell.replace(",", "")) for cell in row[1:4])
        assert weights > 10_000 and small < plain, family
        assert 2e-3 * weights < plain < 4e-3 * weights, family  # kilobytes: two bytes each, and the tokenizer
        assert 80 <= int(row[4].removesuffix("%")) <= 100, family
        assert all(float(cell.replace(",", "")) > 0 for cell in row[5:7]), family


def test_the_models_are_kept_where_that_is_asked_for(cli: Cli, tmp_path: Path, host: Host) -> None:
    kept = tmp_path / "new/tiny"
    assert cli("demo", "--beasts", "--keep", kept).status == 0
    assert sorted(path.name for path in kept.iterdir()) == sorted([*host.architectures, *MERGES])
    for name in host.architectures:
        assert sorted(path.name for path in (kept / name).iterdir()) == ["f16.gguf", "published", "q8_0.gguf"]
    assert sorted(path.name for path in (kept / "chimera").iterdir()) == ["base", "delta", "f16.gguf", "q8_0.gguf"]
    assert sorted(path.name for path in (kept / "chinese-llama").iterdir()) == ["adapter", "base", "f16.gguf",
                                                                                "q8_0.gguf"]
    grown = [load(kept / name / "q8_0.gguf", "numpy", host=host).plan.graph.vocabulary for name in MERGES]
    rows = host.architectures["llama"].example_config()["vocab_size"]
    assert grown == [rows + 1, rows + 31]
    result = cli("demo", "--beasts", "--keep", kept)
    assert result.status == 1 and f"{kept} is there already; remove it, or choose another" in result.err


def test_what_fails_is_a_line_and_the_others_run(cli: Cli, tmp_path: Path, host: Host) -> None:
    broken = GECKO.read_text("utf-8").replace('"layers.{{}}.{theirs}.weight"', '"layers.{{}}.{theirs}"').replace(
        'Rule("norm.weight", "output_norm.weight"),', "")
    (tmp_path / "broken.py").write_text(broken)
    result = cli("--plugin", tmp_path / "broken.py", "demo", "--beasts")
    assert result.status == 1
    assert "gecko: " in result.out and "have no name for tensor output_norm.weight" in result.out
    assert "1 of the beasts did not run: gecko" in result.err
    assert len(rows(result.out)) == len(host.architectures) + 1 + len(MERGES)


@pytest.mark.parametrize("name", sorted(Host().architectures))
def test_what_is_published_is_a_folder_as_of_their_authors(name: str, host: Host, tmp_path: Path) -> None:
    architecture: Architecture = host.architectures[name]
    publish(architecture, tmp_path / "here", 1)
    opened = host.open(tmp_path / "here")
    assert opened.naming == "huggingface" and host.architecture_of(opened.config, opened.tokenizer).name == name
    assert not any(tensor.startswith(("blk.", "token_embd")) for tensor in opened.tensors)
    with load(tmp_path / "here", "numpy", host=host) as model:
        ids = model.tokenizer.encode(TEXT, bos=True)
        assert len(ids) > 30 and model.tokenizer.size == model.plan.graph.vocabulary
        assert np.isfinite(model.logits(ids)).all()


def test_the_names_of_one_model_are_of_one_kind(host: Host, tmp_path: Path) -> None:
    """Not some as its first program has them and some as a later one."""
    first = {"falcon": "transformer.h.0.ln_attn.weight", "glm4": "model.layers.0.post_mlp_layernorm.weight",
             "chatglm": "transformer.encoder.layers.0.input_layernorm.weight"}
    never = {"falcon": "input_layernorm", "glm4": "encoder", "chatglm": "model."}
    for name, tensor in first.items():
        publish(host.architectures[name], tmp_path / name, 1)
        names = host.open(tmp_path / name).tensors
        assert tensor in names and not any(never[name] in found for found in names), name
