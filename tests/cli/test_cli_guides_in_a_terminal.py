"""The conversations of guides, in a real terminal, with the model of the demo: who speaks when, and what the model is
given."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bestiary import load
from bestiary.cli.main import main
from bestiary_plugins.demo.command import model as demo_model

pexpect = pytest.importorskip("pexpect")

YELLOW, GREEN, PLAIN = (re.escape(code) for code in ("\033[33m", "\033[1;32m", "\033[0m"))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model in 8 bits."""
    file = tmp_path_factory.mktemp("talker") / "M"
    assert main(["convert", str(demo_model()), "--outfile", str(file), "--outtype", "q8_0"]) == 0
    return file


@pytest.fixture
def terminal(talker: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts `bestiary run -m M ...` in a terminal."""
    started = []

    def start(*words: str) -> Any:
        child = pexpect.spawn(sys.executable, ["-m", "bestiary", "run", "-m", str(talker), *words], encoding="utf-8",
                              timeout=60, cwd=str(tmp_path), dimensions=(40, 200))
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def ended(child: Any) -> None:
    """The user ends the input: figures, status 0."""
    child.sendeof()
    child.expect(r"prefill +\d+ tokens")
    child.expect(r"decode +\d+ tokens")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ins_takes_instructions_and_answers_them(terminal: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/alpaca.txt").write_text("Below is an instruction that describes a task.\n")
    child = terminal("--color", "-f", "./prompts/alpaca.txt", "-ins", "-c", "2048", "--temp", "0.2", "-n", "12",
                     "--repeat_penalty", "1.3", "-s", "1")
    child.expect(f"{YELLOW}Below is an instruction that describes a task.{PLAIN}")
    for text in ("Who is Otto?", "And Wanda?"):
        child.expect(f"{GREEN}> ")  # the user may type
        child.sendline(text)
        child.expect(re.escape(text))  # the terminal's own echo
        child.expect(f"{PLAIN}.*### Response:")
    child.expect(f"{GREEN}> ")
    ended(child)


def test_ins_goes_on_after_a_line_that_ends_in_a_backslash(terminal: Callable[..., Any]) -> None:
    child = terminal("-f", "alpaca", "-ins", "-n", "4", "--temp", "0")
    child.expect("appropriately completes the request")
    child.expect("> ")
    child.sendline("Tell me\\")
    child.sendline("a story")
    child.expect("### Response:")
    child.expect("> ")
    ended(child)


def test_i_with_a_reverse_prompt_takes_turns(terminal: Callable[..., Any], talker: Path) -> None:
    # It is to fall silent at the end of a sentence: what it says up to there.
    prompt = "There once was a small owl named"
    with load(talker, context=512) as model:
        said = prompt + "".join(model.generate(prompt, max_tokens=64, temperature=0))
    reverse = "."
    child = terminal("-n", "-1", "-ngl", "256", "-t", "12", "--color", "-r", reverse, "--in-prefix", " ", "-i", "-p",
                     prompt, "--temp", "0", "-c", "256")
    child.expect("no use for -ngl")
    child.expect(f"{YELLOW}{prompt}{PLAIN}")
    child.expect(re.escape(said[len(prompt):said.index(reverse, len(prompt)) + len(reverse)]))
    child.expect(f"{GREEN} ")  # silent; --in-prefix stands where the user types
    child.sendline("Otto sang")
    child.expect("Otto sang")
    child.expect(rf"{PLAIN}[^.]+\.")  # one more sentence
    child.expect(f"{GREEN} ")
    ended(child)


def test_the_user_is_named_when_the_model_ends(terminal: Callable[..., Any]) -> None:
    child = terminal("-n", "3", "--color", "-r", "User:", "--in-prefix", " ", "-i", "-p", "User: Who is Otto?\nBob:",
                     "--temp", "0")
    child.expect("Who is Otto")
    child.expect(f"{GREEN} ")  # -n tokens are said: the user's turn
    child.sendline("And Wanda?")
    child.expect(f"{GREEN} ")
    ended(child)
