"""Commands as processes that halt at a chosen moment, so that what goes wrong goes wrong right then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bestiary.cli.main import main
from bestiary_plugins.demo.command import model as demo_model

HALTING = """
import os, sys
from bestiary import files, readahead

def halt():
    print("here", flush=True)
    sys.stdin.readline()

def halting(owner, name, at=1):
    calls, whole = [], getattr(owner, name)
    def watched(*arguments, **options):
        calls.append(name)
        if len(calls) == at:
            halt()
        return whole(*arguments, **options)
    setattr(owner, name, watched)

for word in sys.argv.pop(1).split():
    {
        "create": lambda: halting(files, "create"),
        "begin": lambda: halting(readahead, "read_exactly"),
        "middle": lambda: halting(readahead, "read_exactly", 20),
        "read": lambda: halting(os, "preadv", 30),
        "sync": lambda: halting(os, "fsync"),
        "rename": lambda: (halting(os, "link"), halting(os, "replace")),
        "unlink": lambda: halting(os, "unlink"),
        "renamed": lambda: halting(os, "fsync", 2),
    }[word]()

from bestiary.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The first word says at which moment: then the process prints a line and waits for one."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Halted:
    """A command that stands still at its moment."""

    def __init__(self, moment: str, *words: str | Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", HALTING, moment, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "BESTIARY_PLUGINS": ""})
        if self.child.stdout is None or self.child.stdout.readline() != "here\n":
            raise RuntimeError(f"{words} never came to {moment}: {self.child.communicate()}")

    def go_on(self) -> Ended:
        """Lets it run to its end. One that hangs is an error of the test, after a minute."""
        out, err = self.child.communicate("\n", timeout=60)
        return Ended(self.child.returncode, out, err)

    def kill(self, number: int) -> Ended:
        self.child.send_signal(number)
        return self.go_on()


Halting = Callable[..., Halted]


@pytest.fixture
def halted() -> Iterator[Halting]:
    """Starts a command that halts at a moment; what a test leaves is ended after it."""
    all_of_them: list[Halted] = []

    def start(moment: str, *words: str | Path) -> Halted:
        all_of_them.append(Halted(moment, *words))
        return all_of_them[-1]

    yield start
    for one in all_of_them:
        one.child.kill()
        one.child.communicate()


def run(*words: str | Path, program: str | None = None) -> Ended:
    """A command in a process of its own, to its end."""
    start = ["-m", "bestiary"] if program is None else ["-c", program]
    done = subprocess.run([sys.executable, *start, *map(str, words)], capture_output=True, text=True, check=False,
                          timeout=120, env={**os.environ, "BESTIARY_PLUGINS": ""})
    return Ended(done.returncode, done.stdout, done.stderr)


def is_one_line(ended: Ended) -> bool:
    """Status 1, and nothing but a line that says why."""
    lines = ended.err.splitlines()
    return ended.status == 1 and not ended.out and len(lines) == 1 and lines[0].startswith("bestiary: error: ")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that comes with the package, in one file, f16. It stays as it is."""
    file = tmp_path_factory.mktemp("model") / "f16.gguf"
    assert main(["convert", str(demo_model()), str(file), "--outtype", "f16"]) == 0
    return file


@pytest.fixture(scope="session")
def quantized(model: Path) -> bytes:
    """What quantizing it to q4_0 writes when nothing goes wrong."""
    file = model.with_name("q4_0.gguf")
    assert main(["quantize", str(model), str(file), "q4_0"]) == 0
    return file.read_bytes()
