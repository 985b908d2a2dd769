"""`run -i` and `-ins`: in a real terminal, and with lines from a pipe."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bestiary import load
from bestiary.cli.session import Session, Turns
from bestiary.sampling import Sampling

from .conftest import Cli

pexpect = pytest.importorskip("pexpect")


@pytest.fixture
def terminal(model: Path) -> Iterator[Callable[..., Any]]:
    """Starts `bestiary run -m MODEL ...` in a terminal."""
    started = []

    def start(*words: str) -> Any:
        child = pexpect.spawn(sys.executable, ["-m", "bestiary", "run", "-m", str(model), *words], encoding="utf-8",
                              timeout=60, env=None, dimensions=(40, 200))
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def test_turns_are_taken_at_a_reverse_prompt(terminal: Callable[..., Any]) -> None:
    child = terminal("-i", "-r", "Lily", "--in-prefix", " ", "-p", "Once upon a time", "--temp", "0", "-n", "40")
    child.expect("Once upon a time")
    child.expect("girl named Lily ")  # the model fell silent, the prefix is shown, the user may type
    child.sendline("and Tom")
    child.expect("Lily ")  # the prefix is the prompt of readline: an end of input sent before it would be lost
    child.sendeof()
    child.expect("prefill")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_instructions_have_a_marker(terminal: Callable[..., Any]) -> None:
    child = terminal("--color", "-ins", "-c", "512", "--temp", "0.2", "-n", "10", "--repeat_penalty", "1.3")
    child.expect(r"> ")
    child.sendline("Tell me a story")
    child.expect("### Response:")
    child.expect(r"> ")
    child.sendeof()
    child.expect("decode")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_hands_the_turn_to_the_user_and_then_ends(terminal: Callable[..., Any]) -> None:
    child = terminal("-i", "--ignore-eos", "-p", "Once upon", "--temp", "0", "-n", "-1", "--in-prefix", "<you>")
    child.expect("little")
    child.sendintr()
    child.expect("<you>")
    child.sendintr()
    child.expect("prefill")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_colours_are_for_terminals(terminal: Callable[..., Any], cli: Cli, model: Path) -> None:
    child = terminal("--color", "-p", "Once upon", "--temp", "0", "-n", "5")
    child.expect(re.escape("\033[33mOnce upon\033[0m"))
    child.expect(pexpect.EOF)
    assert "\033" not in cli("run", "-m", model, "--color", "-p", "Once upon", "-n", "5").out


def test_ctrl_c_ends_a_text_with_its_figures(model: Path) -> None:
    child = subprocess.Popen([sys.executable, "-m", "bestiary", "run", "-m", str(model), "-c", "200000", "-n", "-1",
                              "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.read(20)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "decode" in err and "Traceback" not in err


def test_lines_from_a_pipe_are_turns_and_its_end_is_the_end(cli: Cli, model: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n\nA long \\\nline/\n")))
    result = cli("run", "-m", model, "-i", "-r", "Lily", "-p", "Once upon a time", "-n", "12", "--temp", "0")
    assert result.status == 0
    assert result.out.startswith("Once upon a time, there was a little girl named Lily")
    assert "prefill" in result.err


def test_each_turn_computes_only_what_is_new(model: Path) -> None:
    with load(model, backend="numpy") as loaded:
        lines = iter(["Hello", "there", None])
        session = Session(loaded, Sampling(temperature=0), max_tokens=8)
        session.give("Once upon a time")
        assert session.converse(Turns(), lambda marker: next(lines)) == "input"
        figures = session.figures
        # Every token went through the model once, but for the last one.
        assert figures.prefill_tokens + figures.decode_tokens == len(session.ids) - 1


def test_a_full_context_ends_a_conversation(model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n" * 50)))
    result = cli("run", "-m", model, "-i", "-p", "Once", "-c", "40", "-n", "-1", "--ignore-eos", "--temp", "0")
    assert result.status == 0
    assert "context of 40 tokens is full" in result.err
