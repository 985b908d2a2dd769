"""`bestiary bench --plot`: what the picture holds, and what is refused before anything is measured."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bestiary import benchmark
from bestiary.benchmark import Measurement
from bestiary.readahead import usable_cpus
from bestiary.speed_plot import advice, best, draw, swept_length, thread_counts

from .conftest import Cli

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")  # which cannot work here
    monkeypatch.setattr(benchmark, "SHORTEST", 0.001)


def texts(file: Path) -> list[str]:
    """All that can be read in a picture."""
    return ["".join(text.itertext()).strip() for text in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def timed(speeds: dict[int, float], test: str = "decode", tokens: int = 64) -> list[tuple[int, Measurement]]:
    return [(threads, Measurement(test, tokens, 0, 1, (0.9 * speed, speed, 1.1 * speed)))
            for threads, speed in speeds.items()]


def test_the_picture_says_what_was_measured(cli: Cli, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.svg"
    result = cli("bench", "-m", model, "-n", "4", "-r", "2", "-t", "1", "--plot", file)
    assert result.status == 0, result.err
    assert "fastest: -t 1 for generation, -tb 1 for prompts" in result.out
    rows = [line.split() for line in result.out.splitlines() if line.startswith(("prefill", "decode"))]
    assert sorted((row[0], row[1]) for row in rows) == [
        ("decode", "4"), ("prefill", "128"), ("prefill", "32"), ("prefill", "512")]  # 2048 are beyond its context
    said = texts(file)
    assert any(text.startswith("s.gguf: f32, cpu (") for text in said)
    assert {"over threads", "threads", "tokens/s", "over the prompt's length", "tokens of the prompt",
            "32", "128", "512", "generation (-t)", "prompts of 512 tokens (-tb)", "prompts, 1 thread"} <= set(said)
    figures = [float(text) for text in said if re.fullmatch(r"[\d.]+", text)]
    for row in rows:
        assert any(figure == pytest.approx(float(row[5]), rel=0.01) for figure in figures), row


def test_by_default_threads_are_doubled_up_to_all(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("bench", "-m", model, "-p", "8", "-n", "2", "-r", "1", "--plot", tmp_path / "a.PNG", "--json")
    rows = json.loads(result.out)  # nothing else is on stdout
    assert [(row["test"], row["threads"]) for row in rows] == [
        (test, count) for count in thread_counts(usable_cpus()) for test in ("prefill", "decode")]
    assert "fastest: -t" in result.err
    data = (tmp_path / "a.PNG").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", data[16:24]) == (1200, 600)
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]


@pytest.mark.parametrize(("words", "said", "unsaid"), [
    (("-p", "0", "-n", "2"), "-t 1 for generation", "prompts"),
    (("-p", "8", "-n", "0"), "-tb 1 for prompts", "generation")])
def test_one_kind_of_work_is_enough(cli: Cli, model: Path, tmp_path: Path, words: list[str], said: str,
                                    unsaid: str) -> None:
    result = cli("bench", "-m", model, *words, "-t", "1", "-r", "1", "--plot", tmp_path / "a.svg")
    assert result.status == 0 and said in result.out
    assert not any(unsaid in text for text in [result.out.splitlines()[-1], *texts(tmp_path / "a.svg")])


@pytest.mark.parametrize(("words", "said"), [
    (("--plot", "a.jpg"), ".png or .svg"), (("--plot", "png"), ".png or .svg"),
    (("--plot", "no-such-folder/a.png"), "no folder"), (("--plot", "there.svg"), "--force replaces it"),
    (("--plot", "a.svg", "-n", "8,16"), "-n 8,16"), (("--plot", "a.svg", "-d", "0,16"), "-d 0,16"),
    (("--plot", "a.svg", "-p", "0", "-n", "0"), "nothing to plot")])
def test_what_cannot_be_drawn_is_one_line_before_anything_is_measured(
        cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("bestiary.model.load", never)
    monkeypatch.chdir(tmp_path)
    Path("there.svg").write_text("old")
    result = cli("bench", "-m", model, *words)
    assert result.status == 1 and said in result.err and result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"] and Path("there.svg").read_text() == "old"


def test_without_matplotlib_the_command_that_brings_it_is_named(
        cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = cli("bench", "-m", model, "--plot", tmp_path / "a.png")
    assert result.status == 1 and "pip install 'bestiary[plot]'" in result.err and result.err.count("\n") == 1
    assert cli("bench", "-m", model, "-p", "4", "-n", "0", "-r", "1").status == 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_the_old_picture(cli: Cli, model: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.svg"
    file.write_text("old")
    result = cli("bench", "-m", model, "-ctk", "q9_9", "--plot", file, "--force")
    assert result.status == 1 and "q9_9" in result.err
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_of_equals_the_least_number_of_threads_is_advised() -> None:
    assert best(dict(timed({1: 50.0, 2: 98.5, 4: 100.0, 8: 60.0}))) == 2
    runs = timed({1: 40.0, 2: 30.0}) + timed({1: 400.0, 2: 700.0}, "prefill", 512)
    assert advice(runs) == "fastest: -t 1 for generation, -tb 2 for prompts"


def test_thread_counts_double_and_end_with_all() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 6, 8)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert [swept_length(lengths) for lengths in ([32, 512, 2048], [600, 900], [7])] == [512, 600, 7]


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    with (tmp_path / "a.svg").open("wb") as file:  # a warning would be an error here
        draw(timed({1: 3.0}), Path("a$\\frac$_模型_\x1b\udcff<&>.gguf"), "q4_0", ".svg", file)
    assert "a$\\frac$_模型_\\x1b\\udcff<&>.gguf: q4_0" in texts(tmp_path / "a.svg")
    with (tmp_path / "a.png").open("wb") as file:
        draw(timed({1: 3.0}), Path("模" * 200), "q4_0", ".png", file)


@pytest.mark.parametrize("counts", [[1], [1, 2], thread_counts(96), list(range(1, 33))], ids=len)
def test_no_two_figures_overlap(counts: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *words: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", kept)
    runs = timed({n: 60.0 * n ** 0.8 for n in counts}, "prefill", 512) + timed({n: 9.0 * n ** 0.3 for n in counts})
    threads = best(dict(runs[:len(counts)]))
    runs += [(threads, Measurement("prefill", n, 0, 1, (1000.0, 2000.0))) for n in (32, 100, 128)]
    with (tmp_path / "a.png").open("wb") as file:
        draw(runs, Path("m.gguf"), "q4_0, cpu (avx2)", ".png", file)
    (figure,) = figures
    for axes in figure.axes:
        boxes = [(text.get_text(), text.get_window_extent()) for text in (*axes.texts, *axes.get_xticklabels())]
        assert len(boxes) >= 2
        for i, (text, box) in enumerate(boxes):
            assert not [other for other, its in boxes[i + 1:] if box.overlaps(its)], text
        assert all(axes.bbox.containsy(text.get_window_extent().y1) for text in axes.texts)
