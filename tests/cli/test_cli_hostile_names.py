"""Names that a file or the user gives: none moves the cursor, fills the screen, or waits for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary import BestiaryError, load
from bestiary.cli.session import Session
from bestiary.model import Model
from bestiary.sampling import Chooser, Sampling
from bestiary.tokenizer import Tokenizer
from bestiary_plugins.demo.command import model as demo_model
from tests.hostile.formats.gguf import PIECES, Parts, keys, sentencepiece_keys, tensors, written

from .conftest import Cli

EVIL = "evil\x1b[2J\x1b]0;owned\x07\nbestiary: all is well\u202e\x9b"


@pytest.fixture(autouse=True)
def _hangups_are_not_ignored() -> Iterator[None]:
    """As under nohup: what is started would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder whose files hold such names."""
    folder = Path(shutil.copytree(demo_model(), tmp_path / "hf"))
    save_file({EVIL: np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


def test_a_name_in_a_file_does_not_speak_to_the_terminal(cli: Cli, evil: Path) -> None:
    for words in (["run", "-m", evil], ["inspect", "--tensors", evil], ["tokenize", "-m", evil, "-p", EVIL]):
        result = cli(*words)
        said = result.out + result.err
        assert said.replace("\n", "").isprintable()
        assert not any(line.startswith("bestiary: all is well") for line in said.splitlines())


@pytest.mark.parametrize("key", ["num_key_value_heads", "rope_scaling", "model_type"])
def test_a_value_of_a_megabyte_is_quoted_in_few_words(cli: Cli, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(demo_model(), tmp_path / "hf"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None, key: "a" * (1 << 20)}))
    result = cli("run", "-m", folder)
    assert result.status == 1 and len(result.err.splitlines()) == 1 and len(result.err) < 1100


def test_pipes_devices_and_names_that_are_none_are_one_line(cli: Cli, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bad, said in (("pipe", "no regular file"), ("/dev/zero", "no regular file"), ("n" * 300, "name too long")):
        for words in (["run", "-m", tmp_path / bad], ["run", "-m", model, "--tokenizer", tmp_path / bad, "-n", "1"],
                      ["convert", tmp_path / bad, tmp_path / "out.gguf"]):
            result = cli(*words)
            assert result.status == 1 and said in result.err and len(result.err.splitlines()) == 1
    with pytest.raises(BestiaryError, match="no name of a file"):
        load("a\0b")


def test_an_output_without_a_name_or_with_too_long_a_one_is_one_line(cli: Cli, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir()), sorted(model.parent.iterdir())
    for words in (["convert", model, ""], ["convert", model, "--outfile", ""], ["quantize", model, "", "q4_0"]):
        result = cli(*words)
        assert result.status == 1 and "name is empty" in result.err
    result = cli("convert", model, tmp_path / ("n" * 300 + ".gguf"))
    assert result.status == 1 and "name too long" in result.err and len(result.err.splitlines()) == 1
    assert (sorted(tmp_path.iterdir()), sorted(model.parent.iterdir())) == before
    assert cli("convert", model, tmp_path / ("n" * 250 + ".gguf")).status == 0


def test_tokens_that_are_none_are_refused_in_words(model: Path) -> None:
    with load(model, backend="numpy") as loaded:
        for ids in ([2 ** 63], [2 ** 31], [-1], ["a"], [float("nan")], [[1, 2]], None, 5, np.ones((2, 2), int), "ab"):
            with pytest.raises(BestiaryError):
                loaded.logits(ids)
            if not isinstance(ids, str):
                with pytest.raises(BestiaryError):
                    loaded.generate(ids)
        for stop in (5, [5], [None], b"a"):
            with pytest.raises(BestiaryError, match="stop = "):
                loaded.generate("a", stop=stop)


def test_what_a_model_says_is_raw_in_a_pipe_and_spelled_out_on_a_terminal(
        model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Model.__new__(Model), Sampling())
    session.show("a\x1b[2J\tb\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    session.show("a\x1b[2J\tb\n\x9b")
    assert capsys.readouterr().out == "a\x1b[2J\tb\n" "a\\x1b[2J\tb\n\\x9b"


def test_a_model_cannot_write_over_its_line_or_turn_it_around(
        model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    session = Session(Model.__new__(Model), Sampling())
    for text in ("a\rb\r\n", "\u202eevil\u2066", "\u200f\u05e9\u200f"):
        session.show(text)
    assert capsys.readouterr().out == "a\\rb\n" "\\u202eevil\\u2066" "\u200f\u05e9\u200f"


def test_json_about_a_file_is_ascii(cli: Cli, evil: Path) -> None:
    result = cli("inspect", "--json", evil)
    assert result.out.isascii() and all(line.isprintable() for line in result.out.splitlines())
    assert EVIL in [tensor["name"] for tensor in json.loads(result.out)["tensors"]]


def test_a_tokenizer_that_cannot_be_used_is_said_when_it_is_converted(cli: Cli, tmp_path: Path) -> None:
    good = [*keys(), *sentencepiece_keys()]
    bad = [key._replace(value=[struct.pack("<i", 6)] * len(key.value)) if key.name == b"tokenizer.ggml.token_type"
           else key for key in good]
    for listed, said in ((good, 0), (bad, 1)):
        (tmp_path / "in.gguf").write_bytes(bytes(written(Parts(3, listed, tensors(8, len(PIECES)))).data))
        result = cli("convert", tmp_path / "in.gguf", tmp_path / "out.gguf", "--outtype", "q8_0", "--allow-requantize",
                     "--force")
        assert result.status == 0
        assert result.err.count("its tokenizer cannot be used") == said
    assert cli("run", "-m", tmp_path / "out.gguf", "-p", "H", "-n", "1").status == 1


def test_an_error_in_the_middle_of_a_text_is_all_that_is_said(
        cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = Chooser.choose, []

    def choose(self: Chooser, logits: Any, tokens: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise BestiaryError("the model's logits are not finite")
        return whole(self, logits, tokens)

    monkeypatch.setattr(Chooser, "choose", choose)
    result = cli("run", "-m", model, "-p", "Once", "-n", "8", "--temp", "0")
    assert result.status == 1 and result.err.splitlines() == ["bestiary: error: the model's logits are not finite"]


def test_a_row_that_no_piece_belongs_to_is_never_chosen(model: Path) -> None:
    class Short(Tokenizer):
        """The tokenizer without its last pieces."""
        def __init__(self, whole: Tokenizer) -> None:
            self._whole, self.bos, self.ends = whole, whole.bos, whole.ends

        @property
        def size(self) -> int:
            return 100

        def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
            return self._whole.encode(text, bos, special)

        def piece(self, token: int) -> bytes:
            return self._whole.piece(token)

    with load(model, backend="numpy") as loaded:
        ids = loaded.tokenizer.encode("Once upon a time", bos=True)
        stream = loaded.generate(ids, max_tokens=12, temperature=0)
        list(stream)
        assert max(stream.generation.tokens) >= 100
        loaded._tokenizer = Short(loaded.tokenizer)
        stream = loaded.generate(ids, max_tokens=12, temperature=0)
        list(stream)
        assert len(stream.generation.tokens) == 12 and max(stream.generation.tokens) < 100


def test_a_command_called_in_a_program_leaves_its_signals_as_they_were(cli: Cli) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert cli("plugins").status == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    assert not any("_terminated" in repr(handler) for handler in before)


@pytest.mark.parametrize(("number", "ignored"), [(signal.SIGTERM, False), (signal.SIGHUP, False),
                                                 (signal.SIGHUP, True)])
def test_a_signal_takes_back_what_is_half_written_unless_it_is_ignored(
        model: Path, tmp_path: Path, number: signal.Signals, ignored: bool) -> None:
    script = ("import signal, sys, time\nfrom bestiary import files\nfrom bestiary.cli import main\n"
              f"{f'signal.signal({int(number)}, signal.SIG_IGN)' if ignored else ''}\n"
              "made = files.create\n"
              "def slow(*arguments):\n    found = made(*arguments)\n    print('open', flush=True)\n"
              "    time.sleep(1 if IGNORED else 30)\n    return found\n"
              "files.create = slow\nsys.exit(main.main(sys.argv[1:]))\n").replace("IGNORED", str(ignored))
    child = subprocess.Popen([sys.executable, "-c", script, "convert", str(model), str(tmp_path / "o.gguf")],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"open\n"
    started = time.monotonic()
    child.send_signal(number)
    assert child.wait(20) == (0 if ignored else 128 + number)
    child.communicate()
    assert time.monotonic() - started < 20
    assert os.listdir(tmp_path) == (["o.gguf"] if ignored else [])
