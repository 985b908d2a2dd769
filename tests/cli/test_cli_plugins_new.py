"""`bestiary plugins new`: a package that installs and passes its tests as it was written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bestiary.scaffold import EXAMPLES, package

from ..installing import Place
from .conftest import Cli

ROOT = Path(__file__).parents[2]


def name_of(kind: str) -> str:
    """A name with the example's in it."""
    return f"my-{EXAMPLES[kind].name}2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where a package of each kind is written and installed."""
    place = Place(tmp_path_factory.mktemp("new") / "place")
    for kind in EXAMPLES:
        done = place.run("plugins", "new", kind, name_of(kind), "--folder", place.folder / kind)
        assert done.returncode == 0, done.stderr
        steps = [line.strip() for line in done.stdout.splitlines()[1:]]
        assert steps == [f"cd {place.folder / kind}", "pip install -e '.[test]'", "pytest"]
    place.pip_install(*(place.folder / kind for kind in EXAMPLES))
    return place


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_new_package_passes_its_tests_as_it_is(place: Place, kind: str) -> None:
    done = place.python_words("-m", "pytest", "-q", "-p", "no:cacheprovider", place.folder / kind)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_new_packages_give_what_they_are_called(place: Place) -> None:
    done = place.run("plugins", "--json")
    reports = {each["distribution"]: each for each in json.loads(done.stdout)}
    for kind in EXAMPLES:
        report = reports[f"bestiary-{name_of(kind)}"]
        assert report["reason"] is None
        assert report["provides"] == {f"{kind}s": [name_of(kind)]}


def test_the_command_lines_of_the_readmes_run(place: Place, tmp_path: Path) -> None:
    for kind in ("quantizer", "backend"):
        readme = (place.folder / kind / "README.md").read_text()
        line = next(line for line in readme.splitlines() if line.startswith("bestiary run"))
        words = line.replace("TEXT", "Once").split()[1:]
        assert name_of(kind) in words
        done = place.run(*words, "-n", "4")
        assert done.returncode == 0 and done.stdout.startswith("Once"), done.stderr
    written = tmp_path / f"model.{name_of('writer')}"
    done = place.run("convert", ROOT / "plugins/bestiary_plugins/demo/model", "--outfile", written)
    assert done.returncode == 0, done.stderr
    assert written.read_bytes().startswith(b'{"config": {')


def test_what_is_asked_for_to_build_with_makes_wheels_by_itself() -> None:
    """setuptools before 70.1 asks for another package, which is missing where nothing is downloaded for a build."""
    wanted = re.search(r'requires = \["(.*)"\]', package("loader", "lizard")["pyproject.toml"])
    assert wanted is not None
    assert "70.1" in Requirement(wanted[1]).specifier and "70.0" not in Requirement(wanted[1]).specifier


def test_names_of_two_words_are_spelt_as_each_place_wants_them() -> None:
    files = package("command", "my_tool")
    assert '{"my-tool": "bestiary_my_tool:main"}' in files["bestiary_my_tool.py"]
    assert 'name = "bestiary-my-tool"' in files["pyproject.toml"]
    assert 'name = "my_tool"' in package("quantizer", "my_tool")["bestiary_my_tool.py"]
    assert "class MyTool(Quantizer)" in package("quantizer", "my_tool")["bestiary_my_tool.py"]


@pytest.mark.parametrize(("kind", "name", "said"), [
    ("arch", "lizard", "unknown kind of plugin 'arch'; known: architecture, loader, writer, "),
    ("loader", "my--format", "cannot be called 'my--format': a word"),
    ("loader", "my.format", "single - or _"),
    ("loader", "../up", "a word"),
    ("loader", "2nd", "a letter first"),
    ("loader", "Upper", "lower-case"),
    ("loader", "", "a word"),
    ("loader", "x" * 65, "up to 64"),
    ("loader", "none", "uses the word None otherwise"),
    ("architecture", "rule", "uses the word Rule otherwise"),
    ("quantizer", "q4_0", "quantizer 'q4_0' is provided by bestiary"),
    ("command", "run", "command 'run' is provided by bestiary already"),
    ("command", "demo", "command 'demo' is provided by bestiary"),
    ("backend", "kernels", "a module bestiary_kernels is installed already"),
])
def test_what_cannot_be_begun_is_said_in_a_line_and_nothing_is_written(
        cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("plugins", "new", kind, name)
    assert result.status == 1
    assert said in result.err and len(result.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_the_name_of_an_installed_distribution_is_not_taken_again(place: Place) -> None:
    name = name_of("loader")
    done = place.run("plugins", "new", "quantizer", name)
    assert done.returncode == 1
    assert f"a distribution bestiary-{name} is installed already" in done.stderr


def test_what_is_there_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    file.write_text("mine")
    link.symlink_to("nowhere")
    for there in (folder, file, link):
        result = cli("plugins", "new", "loader", "lizard", "--folder", there)
        assert result.status == 1 and f"{there} is there already" in result.err
    assert file.read_text() == "mine" and not any(folder.iterdir()) and link.is_symlink()
    assert "there is no folder" in cli("plugins", "new", "loader", "lizard", "--folder", tmp_path / "a/b").err


def test_a_disk_that_is_full_leaves_nothing_behind(
        cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_text

    def full(path: Path, text: str, encoding: str | None = None) -> int:
        if path.suffix == ".py":
            raise OSError(28, "No space left on device")
        return written(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    result = cli("plugins", "new", "loader", "lizard", "--folder", tmp_path / "lizard")
    assert result.status == 1 and "No space left on device" in result.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["new"], ["new", "loader"], ["new", "loader", "a", "b"], ["old"], ["--folder", "x"]])
def test_other_words_are_wrong_usage(cli: Cli, words: list[str]) -> None:
    result = cli("plugins", *words)
    assert result.status == 2
    assert "new KIND NAME" in result.err and "architecture, loader" in result.err


def test_json_says_what_was_written(cli: Cli, tmp_path: Path) -> None:
    said = json.loads(cli("plugins", "new", "loader", "lizard", "--json", "--folder", tmp_path / "lizard").out)
    assert said["folder"] == str(tmp_path / "lizard")
    assert said["files"] == ["pyproject.toml", "README.md", "bestiary_lizard.py", "tests/test_bestiary_lizard.py"]
    assert all((tmp_path / "lizard" / file).is_file() for file in said["files"])
    assert len(said["next"]) == 3
