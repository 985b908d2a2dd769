"""`inspect` and `convert` of files of 2023: what they are, in words, and what becomes of them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import bestiary

from .conftest import Cli


@pytest.fixture
def old(data: Path, tmp_path: Path) -> Path:
    """In a folder whose name wants quotes."""
    folder = tmp_path / "old files"
    folder.mkdir()
    return Path(shutil.copy(data / "legacy-models" / "llama-ggjt1-q4_0-amax7.bin", folder / "model.bin"))


def test_inspect_says_in_words_what_an_old_file_is_and_the_command_it_gives_converts_it(cli: Cli, old: Path) -> None:
    said = cli("inspect", old)
    assert said.status == 0 and not said.err
    facts = dict(line.strip().split("  ", 1) for line in said.out.split("\n\n")[0].splitlines() if "  " in line.strip())
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["program"] == "llama.cpp" and "2023" in facts["era"] and facts["container"] == "ggjt v1"
    assert facts["architecture"] == "llama" and facts["runs"] == "as it is, in its own types"
    assert "rms_norm_eps = 1e-06" in facts["not in the file"] and facts["not in the file"].endswith(": taken for it")
    assert facts["then"] == "37 tensors of q4_0_v1 become q4_0, code by code"
    assert "problem" not in facts
    (row,) = [line.split() for line in said.out.splitlines() if line.startswith("layers.*.feed_forward.w2.weight ")]
    assert row[1:] == ["5", "q4_0_v1", "64", "x", "192"]
    program, *words = shlex.split(facts["to convert it"])
    assert program == "bestiary"
    done = cli(*words)
    assert done.status == 0 and old.with_suffix(".gguf").is_file()
    assert done.err.splitlines() == [
        f"bestiary: not in {old}, and taken: max_position_embeddings = 2048, rms_norm_eps = 1e-06, "
        "rope_theta = 10000.0, bos_token_id = 1, eos_token_id = 2; `convert --config KEY=VALUE` sets another",
        "bestiary: 37 tensors of q4_0_v1 become q4_0, code by code",
        "bestiary: 8697 of 10368 scales and minimums were rounded, by at most 0.042 %"]
    again = cli("inspect", old.with_suffix(".gguf")).out
    assert not any(word in again for word in ("program", "runs", "to convert it", "not in the file", "q4_0_v1"))


def test_programs_get_the_same_as_json(cli: Cli, old: Path) -> None:
    facts: dict[str, Any] = json.loads(cli("inspect", old, "--json").out)
    assert facts["provenance"]["program"] == "llama.cpp" and facts["provenance"]["container"] == "ggjt v1"
    assert facts["provenance"]["assumed"]["rope_theta"] == 10000.0 and facts["provenance"]["lacks"] == []
    assert facts["runs"] is True
    assert shlex.split(facts["convert"]) == ["bestiary", "convert", str(old), str(old.with_suffix(".gguf"))]
    assert facts["becomes"] == ["37 tensors of q4_0_v1 become q4_0, code by code"]
    assert {"name": "layers.*.attention_norm.weight", "tensors": 5, "type": "f32", "shape": [64]} in facts["kinds"]
    assert sum(kind["tensors"] for kind in facts["kinds"]) == len(facts["tensors"])


def test_files_of_today_have_nothing_to_be_said_of_them(cli: Cli, model: Path, stories: Path) -> None:
    facts: dict[str, Any] = json.loads(cli("inspect", model, "--json").out)
    assert (facts["provenance"], facts["runs"], facts["convert"], facts["becomes"]) == (None, True, None, [])
    facts = json.loads(cli("inspect", stories, "--json").out)
    assert shlex.split(facts["convert"]) == ["bestiary", "convert", str(stories), str(stories.with_suffix(".gguf"))]


def test_a_command_names_what_is_still_wanted_and_the_options_that_were_given(
        cli: Cli, data: Path, stories: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(stories, tmp_path / "alone.bin"))
    facts: dict[str, Any] = json.loads(cli("inspect", alone, "--json", "--architecture", "llama").out)
    assert facts["runs"] is False and "tokenizer" in facts["problems"][0]
    assert shlex.split(facts["convert"])[4:] == ["--architecture", "llama", "--tokenizer", "FILE"]
    vocabulary = cli("inspect", data / "legacy" / "ggml-vocab-ggjt1.bin").out
    assert "to convert it" not in vocabulary and "runs" not in vocabulary and "lacks" in vocabulary


def test_what_a_file_does_not_say_is_set_by_options(cli: Cli, old: Path) -> None:
    done = cli("convert", old, old.parent / "a.gguf", "-eps", "1e-5", "-c", "512", "--rope-freq-base", "20000",
               "--config", "eos_token_id=5", "--config", "bos_token_id=1", "-gqa", "8")
    assert done.status == 0
    assert "not in " not in done.err and "no use for -gqa" in done.err
    facts: dict[str, Any] = json.loads(cli("inspect", old.parent / "a.gguf", "--json").out)
    assert facts["config"]["rms_norm_eps"] == pytest.approx(1e-5) and facts["config"]["rope_theta"] == 20000
    assert facts["config"]["max_position_embeddings"] == 512 and facts["tokenizer"]["eos"] == 5


def test_the_command_of_the_script_that_did_this_before_does_it(cli: Cli, old: Path) -> None:
    new = old.parent / "new.gguf"
    words = ["--input", old, "--output", new, "--eps", "1e-5", "--context-length", "512", "--gqa", "1"]
    assert cli("convert", *words).status == 0
    assert "max_position_embeddings  512" in cli("inspect", new).out
    assert "two checkpoints" in cli("convert", old, *words).err


@pytest.mark.parametrize("words, said", [
    (["-c", "0"], "context = 0; it must be 1 or more"),
    (["--config", "rope_theta"], "--config 'rope_theta': KEY=VALUE is wanted"),
    (["--config", "=3"], "--config '=3': KEY=VALUE is wanted"),
    (["--config", "a=1", "--config", "a=2"], "--config a is given twice"),
    (["--config", "rope_base=1"], "'rope_base' is no key of this config; known: "),
    (["--config", "rms_norm_eps=tiny"], "rms_norm_eps = 'tiny' in the config; it must be a number above 0"),
    (["--config", "rms_norm_eps=NaN"], "rms_norm_eps = nan in the config; it must be a number above 0"),
    (["--config", "rope_factor=2"], "rope_factor = 2 is not taken: None follows from the rest"),
    (["--config", "num_hidden_layers=4"], "llama has no use for tensors blk.4."),
    (["-eps", "0"], "-eps 0.0: a number above 0 is wanted")])
def test_a_value_that_cannot_be_is_one_line(cli: Cli, old: Path, words: list[str], said: str) -> None:
    result = cli("convert", old, old.parent / "a.gguf", *words)
    assert result.status == 1 and said in result.err and result.err.count("\n") == 1
    assert not (old.parent / "a.gguf").exists()


def test_what_no_program_wrote_is_one_line(cli: Cli, old: Path) -> None:
    """A file that begins as none does, and an old one that was cut off."""
    (old.parent / "noise.bin").write_bytes(bytes(range(7, 250)) * 9)
    for path, said in ((old.parent / "noise.bin", "no loader recognises"), (old, "truncated or damaged")):
        if path == old:
            old.write_bytes(old.read_bytes()[:-4096])
        for words in (["inspect", path], ["convert", path, old.parent / "a.gguf"], ["run", "-m", path]):
            result = cli(*words)
            assert result.status == 1 and said in result.err and str(path) in result.err
            assert result.err.count("\n") == 1 and result.err.startswith("bestiary: error: ")


def test_a_tokenizers_own_file_leaves_the_ids_that_end_a_text(cli: Cli, data: Path, tmp_path: Path) -> None:
    old, file = data / "legacy-models/bloom-bloomzcpp-q4_0.bin", data / "legacy-models/bloom-hf/tokenizer.json"
    assert cli("convert", old, tmp_path / "new.gguf", "--tokenizer", file).status == 0
    assert "bos 1, ends 2" in cli("inspect", tmp_path / "new.gguf").out
    with bestiary.load(old, tokenizer=file) as model:
        assert model.tokenizer is not None and model.tokenizer.eos == 2 and 2 in model.tokenizer.ends


def test_an_option_reaches_the_key_that_a_family_has_for_it(cli: Cli, data: Path, tmp_path: Path) -> None:
    old = data / "legacy-models/bloom-bloomzcpp-q4_0.bin"
    assert cli("convert", old, tmp_path / "new.gguf", "-eps", "1e-6").status == 0
    config = json.loads(cli("inspect", tmp_path / "new.gguf", "--json").out)["config"]
    assert config["layer_norm_epsilon"] == pytest.approx(1e-6) and "rms_norm_eps" not in config
    run = ("run", "-m", old, "-p", "Once", "-n", "1", "--temp", "0")
    assert "positions are not rotated" in cli(*run, "--rope-freq-base", "5").err
    assert "positions" not in cli(*run, "--config", "layer_norm_epsilon=1e-6").err
    refused = cli(*run, "--config", "layer_norm_epsilom=1e-6")
    assert refused.status == 1 and "'layer_norm_epsilom' is no key of this config" in refused.err


def test_a_type_that_is_named_may_be_the_one_that_would_be_chosen(cli: Cli, data: Path, tmp_path: Path) -> None:
    old = data / "legacy-models/llama-ggjt1-q4_2.bin"
    assert cli("convert", old, tmp_path / "a.gguf").status == cli(
        "convert", old, tmp_path / "b.gguf", "--outtype", "q8_0").status == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert "--allow-requantize" in cli("convert", old, tmp_path / "c.gguf", "--outtype", "q5_1").err
