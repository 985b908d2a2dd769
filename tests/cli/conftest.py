"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bestiary.cli.main import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line, without third parties' plugins; what it printed and its exit status. What is said where
    the kernels are not compiled is left out."""
    monkeypatch.setenv("BESTIARY_PLUGINS", "")

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(status, out, "".join(line for line in err.splitlines(True) if "does not run here" not in line))

    return run


@pytest.fixture(scope="session")
def stories(data: Path) -> Path:
    """A model of 260 thousand weights that tells stories, as llama2.c keeps it."""
    return data / "tiny-llama" / "stories260K.bin"


@pytest.fixture(scope="session")
def story(data: Path) -> str:
    """What that model says first when it always takes the likeliest token."""
    text = (data / "tiny-llama" / "stories260K.md").read_text("utf-8")
    return text[text.index("Once upon a time"):].partition("\n```")[0]


@pytest.fixture(scope="session")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in one file, f32."""
    file = tmp_path_factory.mktemp("model") / "s.gguf"
    assert main(["convert", str(stories), "--outfile", str(file), "--outtype", "f32"]) == 0
    return file
