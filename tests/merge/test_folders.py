"""`merge` into every format that is written, a Hugging Face folder where nothing names one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bestiary.host import Host, HostSettings
from bestiary.model import load, load_tokenizer
from tests.cli.conftest import Cli

from .conftest import EMBEDDING, ROWS, Zoo, plain_sum

WRITERS = Host(HostSettings(names=())).writers
SAID = "the same logits"


def test_a_folder_as_its_authors_would_publish_it(zoo: Zoo, host: Host, cli: Cli) -> None:
    out = zoo.folder / "merged"
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out)
    assert done.status == 0 and SAID in done.out and not done.err
    opened = host.open(out)
    wanted = plain_sum(zoo.delta(), zoo.base())
    assert opened.naming == "huggingface" and opened.tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensor.array(), wanted[name].astype(np.float32))
               for name, tensor in opened.tensors.items())
    assert json.loads((out / "config.json").read_text())["vocab_size"] == ROWS + 1
    assert load_tokenizer(out, host).size == ROWS + 1


@pytest.mark.parametrize("words", [
    ("--base-model-path", "--delta-path", "--target-model-path"), ("--base_model_path", "--delta_path",
                                                                   "--target_model_path"),
    ("--base", "--delta", "--target")])
def test_the_spellings_of_the_programs_that_came_with_deltas(zoo: Zoo, cli: Cli, words: tuple[str, str, str]) -> None:
    base, delta, target = words
    out = zoo.folder / "merged"
    assert cli("merge", base, zoo.base(), delta, zoo.delta(), target, out).status == 0
    assert (out / "config.json").is_file()


def test_the_spellings_of_the_program_that_came_with_chinese_llama(zoo: Zoo, cli: Cli) -> None:
    one, two = zoo.adapter("one", 3), zoo.adapter("two", 4)
    out = zoo.folder / "merged"
    done = cli("merge", "--base_model", zoo.base(), "--lora_model", f"{one},{two}", "--output_type", "huggingface",
               "--output_dir", out)
    assert done.status == 0 and (out / "config.json").is_file()
    assert cli("merge", "--base", zoo.base(), "--lora", one, "--lora", two, "--target", zoo.folder / "b").status == 0
    assert (out / "model.safetensors").read_bytes() == (zoo.folder / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("writer", WRITERS)
def test_one_pass_is_two_steps_by_way_of_every_format(zoo: Zoo, host: Host, cli: Cli, writer: str) -> None:
    zoo.values = {"max_position_embeddings": 2048}  # that of LLaMA 1, which Meta's form cannot say
    adapter = zoo.adapter("lora", saved={EMBEDDING: np.ones((ROWS + 2, 96), np.float32) * 0.1,
                                         "lm_head.weight": np.ones((ROWS + 2, 96), np.float32) * 0.2}, pieces=ROWS + 2)
    for i, words in enumerate((("--delta", zoo.delta()), ("--lora", adapter))):
        whole = zoo.folder / f"{writer}{i}{WRITERS[writer].suffix}"
        one, two = zoo.folder / f"{writer}{i}-one.gguf", zoo.folder / f"{writer}{i}-two.gguf"
        done = cli("merge", "--base", zoo.base(), *words, "--target", whole, "--format", writer)
        assert done.status == 0 and SAID in done.out
        source = (zoo.delta(), "--base", zoo.base()) if i == 0 else ("--base", zoo.base(), *words)
        assert cli("convert", *source, "--outfile", one, "--outtype", "q4_0").status == 0
        assert cli("convert", whole, two, "--outtype", "q4_0").status == 0
        first, second = host.open(one).tensors, host.open(two).tensors
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.read(0, tensor.rows).tobytes() == second[name].read(0, tensor.rows).tobytes(), name


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_a_type_may_be_named(zoo: Zoo, host: Host, cli: Cli, kind: str) -> None:
    out = zoo.folder / "merged"
    assert cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out, "--type", kind).status == 0
    assert host.open(out).tensors[EMBEDDING].encoding.name == kind
    with load(out, "numpy", host=host) as model:
        assert np.isfinite(model.logits([1, 2, ROWS])).all()


def test_a_folder_holds_no_quantized_type_and_what_does_is_named(zoo: Zoo, cli: Cli) -> None:
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "out", "--type", "q4_0")
    assert done.status == 1 and done.err.count("\n") == 1 and not (zoo.folder / "out").exists()
    assert "merge: --type f16" in done.err and "a .gguf file holds it" in done.err


def test_what_stands_there_is_kept_and_no_part_of_a_merge_is_overwritten(zoo: Zoo, cli: Cli, tmp_path: Path) -> None:
    base, delta = zoo.base(), zoo.delta()
    before = {path: path.read_bytes() for path in (*base.iterdir(), *delta.iterdir())}
    for out in (base, delta, tmp_path / "not/there"):
        done = cli("merge", "--base", base, "--delta", delta, "--target", out, "--force")
        assert done.status == 1 and done.err.count("\n") == 1
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file").write_text("x")
    assert cli("merge", "--base", base, "--delta", delta, "--target", tmp_path / "here").status == 1
    assert {path: path.read_bytes() for path in (*base.iterdir(), *delta.iterdir())} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta200-1", "here", "target200"]


@pytest.mark.parametrize(("words", "said"), [
    ((), "--delta or --lora: one of the two"), (("--delta", "x", "--lora", "y"), "--delta or --lora"),
    (("--delta", "x", "--type", "q9"), "unknown quantizer 'q9'"), (("--delta", "x", "--format", "zip"), "known: gguf")])
def test_what_is_asked_for_wrongly_is_one_line(zoo: Zoo, cli: Cli, words: tuple[str, ...], said: str) -> None:
    done = cli("merge", "--base", zoo.base(), "--target", zoo.folder / "out", *words)
    assert done.status == 1 and done.err.count("\n") == 1 and said in done.err and not (zoo.folder / "out").exists()
