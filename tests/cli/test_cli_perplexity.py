"""`bestiary perplexity`: figures, progress, and texts that will not do."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bestiary import load
from bestiary.perplexity import perplexity

from .conftest import Cli

pexpect = pytest.importorskip("pexpect")


@pytest.fixture
def text(tmp_path: Path, story: str) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(story + "\n")
    return file


def test_the_figure_is_the_librarys(cli: Cli, model: Path, text: Path, story: str) -> None:
    result = cli("perplexity", "-m", model, "-f", text, "-c", "64", "--json")
    with load(model) as loaded:
        wanted = perplexity(loaded, story, 64)
    assert json.loads(result.out) == {"perplexity": wanted.perplexity, "error": wanted.error, "tokens": wanted.tokens}


def test_the_estimate_so_far_stands_on_stderr(cli: Cli, model: Path, text: Path) -> None:
    result = cli("perplexity", "-m", model, "-f", text, "-c", "64", "-t", "1")
    assert re.fullmatch(r"Final estimate: PPL = [\d.]+ \+/- [\d.]+, 124 tokens\n", result.out)
    values = re.findall(r"\[(\d)\](\d+\.\d{4}),", result.err)
    assert [number for number, _ in values] == ["1", "2", "3", "4"]
    assert f"PPL = {values[-1][1]} " in result.out


def test_chunks_limit_the_work(cli: Cli, model: Path, text: Path) -> None:
    one = cli("perplexity", "-m", model, "-f", text, "-c", "64", "--chunks", "1", "--json")
    assert json.loads(one.out)["tokens"] == 31
    both = [cli("perplexity", "-m", model, "-f", text, "-c", "64", "--json", *words).out
            for words in (("--chunks", "-1"), ("--chunks", "99"))]
    assert both[0] == both[1]


def test_it_quantizes_while_it_loads_and_takes_a_batch(cli: Cli, model: Path, text: Path) -> None:
    figures = [json.loads(cli("perplexity", "-m", model, "-f", text, "-c", "128", "--json", *words).out)["perplexity"]
               for words in ((), ("-b", "16"), ("--type", "q8_0"))]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    assert figures[0] != figures[2] == pytest.approx(figures[0], rel=0.01)


@pytest.mark.parametrize(("words", "said"), [
    (("-p", "Hello"), "a chunk has 512"),
    (("-p", "Hello", "-c", "2"), "context = 2"),
    ((), "one text is wanted"),
    (("-p", "Hello", "--chunks", "0"), "--chunks 0"),
    (("-f", "nowhere.txt"), "nowhere.txt"),
])
def test_what_cannot_be_scored_is_one_line(cli: Cli, model: Path, words: tuple[str, ...], said: str) -> None:
    result = cli("perplexity", "-m", model, *words)
    assert result.status == 1
    lines = [line for line in result.err.splitlines() if line.startswith("bestiary: error: ")]
    assert len(lines) == 1 and said in lines[0]
    assert result.out == ""


def test_a_terminal_shows_a_bar(model: Path, text: Path, story: str) -> None:
    text.write_text(20 * story)
    child = pexpect.spawn(sys.executable, ["-m", "bestiary", "perplexity", "-m", str(model), "-f", str(text), "-c", "4",
                                           "--backend", "numpy"], encoding="utf-8", timeout=60, dimensions=(40, 120))
    child.expect("scoring")
    child.expect(r"\d chunks")
    child.expect("Final estimate: PPL = ")
    child.expect(pexpect.EOF)
