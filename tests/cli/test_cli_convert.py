"""`convert` and `quantize`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bestiary

from .conftest import Cli


def types_in(line: str) -> set[str]:
    return {word.strip(",;") for word in line.split()} & {"f32", "f16", "bf16", "q8_0", "q4_0"}


def test_the_story_comes_out_word_for_word(cli: Cli, model: Path, story: str) -> None:
    result = cli("run", "-m", model, "-p", "", "-n", "200", "--temp", "0")
    assert result.status == 0
    text = result.out.rstrip("\n")
    assert len(text) > 400
    assert story.startswith(text)


def test_convert_says_what_it_wrote_in_one_line(cli: Cli, stories: Path, tmp_path: Path) -> None:
    result = cli("convert", stories, tmp_path / "s.gguf", "--outtype", "f32")
    assert result.status == 0 and not result.err
    assert result.out.count("\n") == 1
    assert str(tmp_path / "s.gguf") in result.out and "32.00 bits per weight" in result.out and "f32" in result.out


def test_the_default_is_f16_beside_the_source(cli: Cli, stories: Path, tmp_path: Path) -> None:
    for file in ("stories260K.bin", "tok512.bin"):
        (tmp_path / file).write_bytes((stories.parent / file).read_bytes())
    assert cli("convert", tmp_path / "stories260K.bin").status == 0
    assert (tmp_path / "ggml-model-f16.gguf").is_file()
    assert types_in(cli("inspect", tmp_path / "ggml-model-f16.gguf").out) == {"f16", "f32"}


def test_a_quantized_source_keeps_its_types(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("quantize", model, tmp_path / "q.gguf", "q4_0").status == 0
    (tmp_path / "elsewhere").mkdir()
    os.rename(tmp_path / "q.gguf", tmp_path / "elsewhere" / "q.gguf")
    assert cli("convert", tmp_path / "elsewhere" / "q.gguf").status == 0
    made = tmp_path / "elsewhere" / "ggml-model-q4_0.gguf"
    same = [cli("inspect", file).out.partition("\ntype")[2] for file in (made, tmp_path / "elsewhere" / "q.gguf")]
    assert same[0] == same[1] and "q4_0" in same[0]


@pytest.mark.parametrize("words", [
    ["out.gguf", "q4_0"], ["out.gguf", "Q4_0"], ["out.gguf", "2"], ["out.gguf", "q4_0", "8"]])
def test_quantize_takes_names_in_any_case_and_old_numbers(cli: Cli, model: Path, tmp_path: Path, words: list[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("quantize", model, *words)
    assert result.status == 0
    assert (tmp_path / "out.gguf").stat().st_size < model.stat().st_size / 2
    assert "172" in result.err and result.err.count("\n") == 1  # rows that blocks of 32 do not divide are named


def test_quantize_without_an_output_writes_beside_its_input(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(model.read_bytes())
    assert cli("quantize", tmp_path / "in.gguf", "q8_0").status == 0
    assert (tmp_path / "ggml-model-q8_0.gguf").is_file()


def test_pure_quantizes_the_output_matrix_alike(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert "q8_0" in types_in(cli("quantize", model, tmp_path / "a.gguf", "q4_0").out)
    assert "q8_0" not in types_in(cli("quantize", "--pure", model, tmp_path / "b.gguf", "q4_0").out)


def test_quantizing_again_wants_leave(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("quantize", model, tmp_path / "a.gguf", "q8_0").status == 0
    refused = cli("quantize", tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0")
    assert refused.status == 1
    assert "--allow-requantize" in refused.err
    assert not (tmp_path / "b.gguf").exists()
    assert cli("quantize", "--allow-requantize", tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_0").status == 0


@pytest.mark.parametrize("number", ["5", "6"])
def test_the_number_of_a_dead_type_is_an_error_in_words(cli: Cli, model: Path, tmp_path: Path, number: str) -> None:
    for words in ([tmp_path / "out.gguf", number], [number]):
        result = cli("quantize", model, *words)
        assert result.status == 1
        assert "q4_" in result.err
    assert not list(tmp_path.iterdir())


def test_a_second_number_of_an_old_script_is_the_type(cli: Cli, stories: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("stories260K.bin", "tok512.bin"):
        (tmp_path / file).write_bytes((stories.parent / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert cli("convert", "stories260K.bin", "0").status == 0
    assert (tmp_path / "ggml-model-f32.gguf").is_file()


def test_a_name_that_is_no_known_suffix_is_a_gguf_file(cli: Cli, stories: Path, tmp_path: Path) -> None:
    assert cli("convert", stories, tmp_path / "ggml-model-f16.bin").status == 0
    assert (tmp_path / "ggml-model-f16.bin").read_bytes()[:4] == b"GGUF"


def test_the_context_can_be_set(cli: Cli, stories: Path, tmp_path: Path) -> None:
    assert cli("convert", stories, tmp_path / "s.gguf", "--ctx", "64").status == 0
    assert "max_position_embeddings  64" in cli("inspect", tmp_path / "s.gguf").out


def test_a_tokenizer_can_be_named(cli: Cli, stories: Path, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(stories.read_bytes())
    assert cli("convert", tmp_path / "m.bin", tmp_path / "without.gguf").status == 0
    assert cli("convert", tmp_path / "m.bin", tmp_path / "with.gguf", "--tokenizer",
               stories.parent / "tok512.bin").status == 0
    run = ("run", "-n", "1", "-m")
    assert "no tokenizer" in cli(*run, tmp_path / "without.gguf").err
    assert cli(*run, tmp_path / "with.gguf").status == 0
    assert cli(*run, tmp_path / "without.gguf", "--tokenizer", stories.parent / "tok512.bin").status == 0


def test_a_checkpoint_without_a_tokenizer_converts_and_says_so(cli: Cli, stories: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.bin").write_bytes(stories.read_bytes())
    result = cli("convert", tmp_path / "alone.bin", tmp_path / "x.gguf", "--outtype", "f32")
    assert result.status == 0 and "has no tokenizer" in result.err
    assert cli("run", "-m", tmp_path / "x.gguf", "-p", "x").status == 1
    with bestiary.load(tmp_path / "x.gguf") as model:
        assert model.logits([1, 2]).shape == (2, 512)


def test_a_converted_file_keeps_its_types_where_none_is_asked_for(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("convert", model, tmp_path / "again.gguf").status == 0
    said = cli("inspect", tmp_path / "again.gguf").out
    assert "f32" in said and "f16" not in said


def test_a_quantized_file_becomes_a_folder_again(cli: Cli, stories: Path, tmp_path: Path) -> None:
    assert cli("convert", stories, tmp_path / "m.gguf", "--outtype", "q4_0").status == 0
    words = ("convert", tmp_path / "m.gguf", "--outfile", tmp_path / "folder", "--format", "huggingface")
    refused = cli(*words)
    assert refused.status == 1 and refused.err.count("\n") == 1 and "--outtype f16 decodes it" in refused.err
    done = cli(*words, "--outtype", "f16")
    assert done.status == 0 and done.out.startswith(f"{tmp_path / 'folder'}: ") and "f16" in done.out
    assert {path.name for path in (tmp_path / "folder").iterdir()} >= {"config.json", "model.safetensors"}
    assert cli("convert", tmp_path / "folder", tmp_path / "again.gguf", "--outtype", "f32").status == 0
    assert cli(*words, "--outtype", "bf16").status == 1
    assert cli(*words, "--outtype", "bf16", "--force").status == 0
