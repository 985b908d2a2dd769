"""`run`, its options, and the other commands that look at a model."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from bestiary import load
from bestiary.cli.options import sampler_names
from bestiary.cli.run import unescape
from bestiary.readahead import usable_cpus

from .conftest import Cli

GREEDY = ("--temp", "0")


def test_run_prints_the_prompt_and_what_follows(cli: Cli, model: Path, story: str) -> None:
    result = cli("run", "-m", model, "-p", "Once upon a", "-n", "30", *GREEDY)
    assert story.startswith(result.out.rstrip("\n"))
    assert result.out.startswith("Once upon a time")
    without = cli("run", "-m", model, "-p", "Once upon a", "-n", "30", *GREEDY, "--no-display-prompt")
    assert "Once upon a" + without.out == result.out


def test_figures_stand_on_stderr(cli: Cli, model: Path) -> None:
    result = cli("run", "-m", model, "-p", "Once upon a", "-n", "5", "--seed", "17")
    lines = [line for line in result.err.splitlines() if line]
    assert [line.split()[0] for line in lines[:3]] == ["load", "prefill", "decode"]
    assert "tokens/s" in lines[1] and "tokens/s" in lines[2]
    assert "seed 17" in lines[3] and "context 512" in lines[3] and "cache f32" in lines[3]


def test_bench_says_once_what_it_loads_several_times(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.readahead.usable_cpus", lambda: 2)
    for _ in range(2):  # and again in another run
        result = cli("bench", "-m", model, "-p", "513", "-n", "0", "-r", "1", "-t", "1,2")
        assert result.status == 0 and result.out.count("prefill") == 2
        assert result.err.count("made for a context of 512 tokens") == 1


def test_a_seed_gives_the_same_text_again(cli: Cli, model: Path) -> None:
    texts = {cli("run", "-m", model, "-n", "40", "-s", seed).out for seed in ("1", "1", "2")}
    assert len(texts) == 2


def test_no_tokens_is_the_prompt_alone(cli: Cli, model: Path) -> None:
    assert cli("run", "-m", model, "-p", "Hello", "-n", "0").out == "Hello\n"


def test_a_full_context_is_said(cli: Cli, model: Path) -> None:
    result = cli("run", "-m", model, "-c", "20", "-n", "-1", "--ignore-eos", *GREEDY)
    assert result.status == 0
    assert "context of 20 tokens is full" in result.err


def test_more_threads_than_cpus_are_fewer_and_said(cli: Cli, model: Path) -> None:
    result = cli("run", "-m", model, "-n", "1", "-t", "4096")
    assert result.status == 0
    assert "-t 4096" in result.err


def test_a_reverse_prompt_ends_the_text(cli: Cli, model: Path, story: str) -> None:
    result = cli("run", "-m", model, "-n", "200", "-r", "park", *GREEDY)
    assert result.out.startswith(story[:story.index("park") + 4])
    assert len(result.out) <= story.index("park") + 8


def test_the_prompt_comes_from_a_file_or_stdin(cli: Cli, model: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("Once upon a\n")  # the editor's last end of line is no part of it
    wanted = cli("run", "-m", model, "-p", "Once upon a", "-n", "9", *GREEDY).out
    assert cli("run", "-m", model, "-f", tmp_path / "p.txt", "-n", "9", *GREEDY).out == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a\n")))
    assert cli("run", "-m", model, "-f", "-", "-n", "9", *GREEDY).out == wanted
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "no UTF-8" in cli("run", "-m", model, "-f", tmp_path / "latin.txt").err


def test_the_prompts_tokens_are_shown(cli: Cli, model: Path) -> None:
    assert "403  '▁Once'" in cli("run", "-m", model, "-p", "Once", "-n", "1", "--verbose-prompt").err


def test_escapes_are_read_when_asked_for() -> None:
    assert unescape(r"a\nb\t\"\x41\\n\q") == 'a\nb\t"A\\n\\q'


def test_samplers_are_named_in_old_ways_too() -> None:
    assert sampler_names("penalties;top-k, TEMP") == ("penalties", "top_k", "temperature")


def test_run_quantizes_while_it_loads(cli: Cli, stories: Path) -> None:
    result = cli("run", "-m", stories, "--type", "q8_0", "-n", "5", *GREEDY)
    assert result.status == 0
    assert "q8_0" in result.err


def test_cache_types_are_chosen(cli: Cli, model: Path) -> None:
    both = cli("run", "-m", model, "-n", "1", "--cache-type-k", "q8_0", "--cache-type-v", "f32")
    assert "cache q8_0/f32" in both.err
    assert "cache f32" in cli("run", "-m", model, "--type", "q8_0", "-n", "1", "--memory-f32").err


@pytest.mark.parametrize(("words", "said"), [
    (["-ngl", "256"], "-ngl"), (["--n-gpu-layers", "1"], "-ngl"), (["-mg", "0"], "-ngl"), (["--mlock"], "--mlock"),
    (["--no-mmap"], "--no-mmap"), (["--keep", "48"], "--keep"), (["-ub", "64"], "-ub")])
def test_what_has_no_use_here_is_accepted_and_said_in_a_line(cli: Cli, model: Path, words: list[str],
                                                             said: str) -> None:
    result = cli("run", "-m", model, "-n", "1", *words)
    assert result.status == 0
    line = result.err.partition("\n")[0]
    assert line.startswith("bestiary: ") and f" {said}" in line


def test_run_without_a_model_takes_the_one_that_comes_with_it(cli: Cli) -> None:
    result = cli("run", "-p", "Once upon a time", "-n", "8", *GREEDY)
    assert result.status == 0
    assert len(result.out) > len("Once upon a time\n")


WITH_VALUE = (
    "-m", "-p", "-f", "-n", "-c", "-b", "-t", "-s", "-r", "-tb", "-ngl", "-ctk", "-ctv", "--seed", "--temp", "--top_k",
    "--top-k", "--top_p", "--top-p", "--min_p", "--min-p", "--repeat_penalty", "--repeat-penalty", "--repeat_last_n",
    "--repeat-last-n", "--reverse-prompt", "--in-prefix", "--in-suffix", "--n-gpu-layers", "--gpu-layers", "--threads",
    "--n_predict", "--n-predict", "--ctx_size", "--ctx-size", "--batch_size", "--batch-size", "--prompt", "--file",
    "--model", "--frequency-penalty", "--presence-penalty", "--threads-batch", "--keep", "--cache-type-k",
    "--cache-type-v", "--samplers")
FLAGS = (
    "-i", "-if", "-ins", "-e", "-h", "--instruct", "--interactive", "--interactive-first", "--color", "--ignore-eos",
    "--mlock", "--no-mmap", "--memory_f32", "--memory-f32", "--escape", "--verbose-prompt", "--no-display-prompt",
    "--simple-io", "--log-disable", "--no-penalize-nl")


@pytest.mark.parametrize("option", (*WITH_VALUE, *FLAGS))
def test_old_spellings_are_understood(cli: Cli, option: str) -> None:
    """-h comes last, so nothing runs."""
    result = cli("run", option, *([] if option in FLAGS else ["1"]), "-h")
    assert result.status == 0 and result.err == ""


OLD_LINES = [
    'run -m {m} -p "Building a website can be done in 10 simple steps:" -n 512',
    "run -m {m} -n -1 -ngl 256 -t 12 --color -r User: --in-prefix ' ' -i -p 'Transcript of a dialog.'",
    "run -m {m} --color -f {prompt} -ins -c 512 --temp 0.2 -n 256 --repeat_penalty 1.3",
    """run -m {m} -p 'Translate "Hi, how are you?" in French:' -t 8 -n 256""",
    "quantize {m} {dir}/ggml-model-q4_0.bin 2",
    "quantize {m} {dir}/out q4_0",
    "quantize --allow-requantize {m} {dir}/out-q8_0.gguf Q8_0",
    "convert {hf} --outfile {dir}/X.gguf --outtype q8_0",
    "convert {hf}/ 1 --force",
    "convert {hf}/ --force",
]


@pytest.mark.parametrize("line", OLD_LINES)
def test_lines_of_guides_work_with_the_programs_name_replaced(
        cli: Cli, model: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex
    import shutil

    from bestiary_plugins.demo.command import model as demo_model

    folder = shutil.copytree(demo_model(), tmp_path / "7B")
    (tmp_path / "alpaca.txt").write_text("Below is an instruction that describes a task.\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    words = shlex.split(line.format(m=model, hf=folder, dir=tmp_path, prompt=tmp_path / "alpaca.txt"))
    result = cli(*words)
    assert result.status == 0, result.err
    assert "error" not in result.err


def test_inspect_gives_facts_as_text_and_json(cli: Cli, model: Path) -> None:
    text = cli("inspect", model, "--tensors").out
    for part in ("llama", "gguf", "vocab_size", "512", "32.00 bits per weight", "blk.4.ffn_up.weight", "172 x 64"):
        assert part in text
    facts: dict[str, Any] = json.loads(cli("inspect", model, "--json").out)
    assert facts["architecture"] == "llama" and facts["format"] == "gguf" and facts["problems"] == []
    assert facts["types"]["f32"]["tensors"] == len(facts["tensors"]) == 47
    assert facts["tokenizer"]["size"] == 512 and facts["config"]["hidden_size"] == 64
    assert math.isclose(facts["bits_per_weight"], 32)


def test_inspect_takes_the_model_by_option_too(cli: Cli, model: Path) -> None:
    assert cli("inspect", "-m", model).out == cli("inspect", model).out


def test_tokenize_gives_ids_and_pieces(cli: Cli, model: Path) -> None:
    text, ids = "Once upon a time, 你好", cli("tokenize", "-m", model, "-p", "Once upon a time, 你好", "--json")
    listed = json.loads(ids.out)
    with load(model, backend="numpy") as loaded:
        assert listed == loaded.tokenizer.encode(text, bos=True)
    lines = cli("tokenize", "-m", model, "-p", text).out.splitlines()
    assert [int(line.split()[0]) for line in lines] == listed
    assert "'▁Once'" in lines[1]
    assert json.loads(cli("tokenize", "-m", model, "-p", text, "--json", "--no-bos").out) == listed[1:]
    assert cli("tokenize", "-m", model).status == 1


def test_bench_gives_a_table_and_json(cli: Cli, model: Path) -> None:
    rows = json.loads(cli("bench", "-m", model, "-p", "8,16", "-n", "4", "-t", "1", "-r", "2", "-d", "5", "--json").out)
    assert [(row["test"], row["tokens"]) for row in rows] == [("prefill", 8), ("prefill", 16), ("decode", 4)]
    for row in rows:
        assert row["threads"] == 1 and row["depth"] == 5 and row["sequences"] == 1 and row["type"] == "f32"
        assert len(row["runs"]) == 2 and min(row["runs"]) <= row["tokens_per_second"] <= max(row["runs"])
        assert {"model", "backend", "isa"} <= row.keys()
        assert row["batch"] == 21 and row["cache_type_k"] == row["cache_type_v"] == "f32"
    table = cli("bench", "-m", model, "-p", "0", "-n", "4", "-r", "1", "--sequences", "3").out
    assert "decode" in table and "prefill" not in table and "tokens/s" in table and "cache f32" in table
    mixed = cli("bench", "-m", model, "-p", "4", "-n", "0", "-r", "1", "-ctk", "q8_0", "-ctv", "f16").out
    assert "cache q8_0/f16\n" in mixed


def test_bench_takes_threads_for_prompts(cli: Cli, model: Path, tmp_path: Path) -> None:
    rows = json.loads(cli("bench", "-m", model, "-p", "8", "-n", "4", "-t", "1", "-tb", "2", "-r", "1", "--json").out)
    assert [(row["test"], row["threads"]) for row in rows] == [("prefill", min(2, usable_cpus())), ("decode", 1)]
    assert "-tb 0: 1 or more is wanted" in cli("bench", "-m", model, "-tb", "0").err
    plot = tmp_path / "a.svg"
    assert "-tb: a plot runs" in cli("bench", "-m", model, "-tb", "1", "--plot", plot).err and not plot.exists()


def test_plugins_gives_json(cli: Cli) -> None:
    (own,) = json.loads(cli("plugins", "--json").out)
    assert own["distribution"] == "bestiary" and own["reason"] is None
    assert "llama" in own["provides"]["architectures"] and "demo" in own["provides"]["commands"]
    assert own["seconds"] >= 0


def test_the_demo_tells_stories_and_shows_the_table(cli: Cli) -> None:
    result = cli("demo")
    assert result.status == 0 and result.err == ""
    assert "Once upon a time" in result.out and "从前" in result.out
    table = result.out.partition("decode tokens/s")[2].partition("\n\n")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert {"f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"} <= rows.keys()
    bits = [float(row[3]) for row in rows.values()]
    assert bits == sorted(bits, reverse=True) and len(set(bits)) == len(bits)
    perplexities = {kind: float(row[4]) for kind, row in rows.items()}
    assert 1 < perplexities["f16"] < 20
    assert all(perplexities[kind] < 1.02 * perplexities["f16"] for kind in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0"))


@pytest.mark.parametrize("word", ["-fa", "-mli", "-cb", "-np", "-st"])
def test_a_word_that_the_parser_would_cut_up_is_refused_whole(cli: Cli, model: Path, word: str) -> None:
    result = cli("run", "-m", model, "-p", "x", word)
    assert result.status == 2 and f"no such option: {word}" in result.err


def test_values_that_look_like_options_are_values(cli: Cli, model: Path) -> None:
    assert cli("run", "-m", model, "-p", "-fa", "-n2", "--temp", "0", "-r", "-nothing").status == 0
