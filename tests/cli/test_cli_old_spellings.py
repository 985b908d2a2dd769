"""Old command lines: built-in prompt texts, options that replace config values, files under their old names, and words
for what is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bestiary import BestiaryError, load
from bestiary.cli.not_here import WORDS
from bestiary.cli.options import overrides

from .conftest import Cli

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def test_a_prompt_text_that_guides_use_is_built_in(cli: Cli, model: Path, data: Path) -> None:
    assert cli("run", "-m", model, "-f", "alpaca", "-n", "0").out == ALPACA + "\n"
    assert (data / "prompts/llama.cpp/alpaca.txt").read_text("utf-8").strip() == ALPACA


def test_a_file_of_that_name_is_the_users_own(cli: Cli, model: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = cli("run", "-m", model, "-f", "./prompts/alpaca.txt", "-n", "0")
    assert missing.status == 1
    assert "no such file" in missing.err and "-f alpaca takes the built-in text" in missing.err
    assert "built in: alpaca" in cli("run", "-m", model, "-f", "prompts/nowhere.txt").err
    Path("prompts").mkdir()
    Path("prompts/alpaca.txt").write_text("Mine.\n")
    Path("alpaca").write_text("Mine too.\n")
    assert cli("run", "-m", model, "-f", "./prompts/alpaca.txt", "-n", "0").out == "Mine.\n"
    assert cli("run", "-m", model, "-f", "alpaca", "-n", "0").out == "Mine too.\n"


@pytest.mark.parametrize(("command", "option"), [(command, option) for command in WORDS for option in WORDS[command]])
def test_what_is_not_there_is_refused_in_words(cli: Cli, command: str, option: str) -> None:
    for spelling in (option, option[:2] + option[2:].replace("-", "_") + "=1"):
        result = cli(command, "-x", spelling, "1")
        assert result.status == 2
        assert WORDS[command][option] in result.err
        assert len(result.err.splitlines()) == 1


def test_only_options_are_refused(cli: Cli, model: Path) -> None:
    assert cli("run", "-m", model, "-n", "0", "-p", "mirostat").status == 0


def test_options_replace_values_of_the_config(model: Path) -> None:
    values = overrides(1e-6, 20000.0, 0.25)
    with load(model, backend="numpy", config=values) as changed, load(model, backend="numpy") as plain:
        assert changed.config["rms_norm_eps"] == 1e-6 and changed.config["rope_theta"] == 20000
        assert changed.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
        assert plain.config["rope_theta"] == 10000 and plain.config["rope_scaling"] is None
        assert abs(changed.logits([1, 403, 407]) - plain.logits([1, 403, 407])).max() > 1e-3
    with pytest.raises(BestiaryError, match="--rope-freq-scale 0"):
        overrides(None, None, 0.0)


def test_old_options_of_run_are_taken_with_a_line(cli: Cli, model: Path) -> None:
    words = ("run", "-m", model, "-p", "Once", "-n", "4", "--temp", "0")
    plain = cli(*words)
    old = cli(*words, "-gqa", "8", "--n_parts", "1", "--prompt-cache", "p.bin", "--prompt-cache-all", "--keep", "48",
              "-no-cnv", "--rope-freq-scale", "1.0", "-eps", "1e-5")
    assert old.out == plain.out
    assert sum(line.startswith("bestiary: no use for") for line in old.err.splitlines()) == 3


def test_old_options_of_convert_are_taken(cli: Cli, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "7B"
    shutil.copytree(data / "legacy-models/meta-pth", folder)
    (tmp_path / "vocabulary").mkdir()
    shutil.move(folder / "tokenizer.model", tmp_path / "vocabulary")
    result = cli("convert", folder, "--vocab-dir", tmp_path / "vocabulary", "--vocabtype", "spm", "--concurrency", "4",
                 "--pad-vocab", "--ctx", "256", "--outtype", "auto")
    assert result.status == 0
    assert result.err.count("no use for") == 2
    with load(folder / "ggml-model-f16.gguf") as model:
        assert model.tokenizer.size == 512 and model.config["max_position_embeddings"] == 256


def test_a_file_is_found_under_the_name_that_convert_gives_it(cli: Cli, stories: Path, tmp_path: Path) -> None:
    assert cli("convert", stories, tmp_path / "ggml-model-f16.gguf").status == 0
    result = cli("quantize", tmp_path / "ggml-model-f16.bin", tmp_path / "ggml-model-q4_0.bin", "2")
    assert result.status == 0
    assert "ggml-model-f16.gguf is taken" in result.err
    assert cli("run", "-m", tmp_path / "ggml-model-q4_0.bin", "-n", "2").status == 0
    assert "nowhere.bin" in cli("quantize", tmp_path / "nowhere.bin", tmp_path / "out.bin", "2").err
