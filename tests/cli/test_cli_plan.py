"""`bestiary inspect --plan`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary.host import Host
from bestiary_plugins.demo.beasts import publish
from tests.cli.conftest import Cli
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_gptq as gptq


@pytest.fixture
def folder(host: Host, tmp_path: Path) -> Path:
    """A published model whose weights are not there."""
    publish(host.architectures["llama"], tmp_path / "m", 3)
    (tmp_path / "m" / "model.safetensors").unlink()
    return tmp_path / "m"


def test_it_prints_a_line_a_type(cli: Cli, host: Host, folder: Path) -> None:
    result = cli("inspect", "--plan", folder, "-c", "4096")
    assert result.status == 0 and not result.err
    lines = result.out.splitlines()
    assert {line.split()[0] for line in lines[lines.index("") + 2:]} == set(host.quantizers)
    assert re.search(r"context +4096 tokens, made for 128", result.out)
    assert "estimated" not in result.out
    for name in folder.glob("tok*"):
        name.unlink()
    assert re.search(r"tokenizer +about .* estimated: it is not here", cli("inspect", "--plan", folder).out)


def test_it_takes_the_config_itself_and_gives_json(cli: Cli, folder: Path) -> None:
    facts = [json.loads(cli("inspect", "--plan", path, "--json").out) for path in (folder, folder / "config.json")]
    assert facts[0]["types"] == facts[1]["types"] and facts[0]["context"] == 128


def test_where_a_conversion_makes_other_types_than_run_the_plan_says_so(cli: Cli, tmp_path: Path) -> None:
    for order in (True, False):
        made = folders.write(tmp_path / str(order), gptq.packer(4, 32, True, True, order),
                             gptq.section(4, 32, True, True, order))
        result = cli("inspect", "--plan", made.quantized)
        line = ("as it is: it runs as 5 tensors f32, 7 q4_0; `convert` without a type makes a file of 9 tensors f16, "
                "3 f32")
        assert result.status == 0 and (line in result.out.splitlines()) == order


def test_bench_names_the_type_that_runs_and_inspect_the_one_that_is_held(cli: Cli, tmp_path: Path) -> None:
    made = folders.write(tmp_path, gptq.packer(4, 32, True, True, True), gptq.section(4, 32, True, True, True))
    (row,) = json.loads(cli("bench", "-m", made.quantized, "-p", "1", "-n", "0", "-r", "1", "--json").out)
    assert row["type"] == ("q4_0" if row["backend"] == "cpu" else "f16")
    assert re.search(r"^q4_0 +7 ", cli("inspect", made.quantized).out, re.MULTILINE)


def test_it_takes_a_model_that_is_there(cli: Cli, model: Path, tmp_path: Path) -> None:
    facts = json.loads(cli("inspect", "--plan", model, "--json").out)
    sizes = {row["type"]: row["bytes"] for row in facts["types"]}
    assert cli("quantize", model, tmp_path / "small.gguf", "q4_0").status == 0
    assert sizes["q4_0"] == pytest.approx((tmp_path / "small.gguf").stat().st_size, abs=32)


@pytest.mark.parametrize("changed", [{"vocab_size": None}, {"model_type": "\x1b[1mun\nicorn"}, {"hidden_size": -1}])
def test_what_is_wrong_is_one_line(cli: Cli, folder: Path, changed: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    result = cli("inspect", "--plan", folder)
    assert result.status == 1 and not result.out
    assert result.err.count("\n") == 1 and result.err.rstrip("\n").isprintable()


@pytest.mark.parametrize(("sizes", "said"), [
    ((1000, 40), "heads of 25 cannot be rotated; head_dim, or hidden_size / num_attention_heads, must be even"),
    ((4096, 7), "hidden_size = 4096 in the config; without head_dim it must be a multiple of the 7 heads"),
    ((4097, 40), "hidden_size = 4097 in the config; without head_dim it must be a multiple of the 40 heads")])
def test_heads_that_there_cannot_be_are_said_by_key(cli: Cli, folder: Path, sizes: tuple[int, int], said: str) -> None:
    config = {"model_type": "llama", "hidden_size": sizes[0], "num_attention_heads": sizes[1], "num_hidden_layers": 2,
              "intermediate_size": 64, "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    result = cli("inspect", "--plan", folder)
    assert result.status == 1 and result.err.count("\n") == 1 and said in result.err


def test_an_adapter_is_no_model_to_plan_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    save_file({f"base_model.model.x.lora_{side}.weight": np.ones(shape, np.float32)
               for side, shape in (("A", (1, 4)), ("B", (4, 1)))}, tmp_path / "adapter_model.safetensors")
    result = cli("inspect", "--plan", tmp_path)
    assert result.status == 1 and "is an adapter and no model by itself" in result.err


def test_without_the_option_the_weights_are_missed_as_before(cli: Cli, folder: Path, tmp_path: Path) -> None:
    result = cli("inspect", folder)
    assert result.status == 1 and "no weights in" in result.err and "`inspect --plan`" in result.err
    result = cli("inspect", folder, "-c", "64")
    assert result.status == 1 and "-c goes with --plan" in result.err
    shutil.copytree(folder, tmp_path / "empty", ignore=shutil.ignore_patterns("config.json"))
    result = cli("inspect", "--plan", tmp_path / "empty")
    assert result.status == 1 and result.err.count("\n") == 1
