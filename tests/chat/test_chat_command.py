"""`bestiary chat` and `tokenize --chat`: in a terminal, from a pipe, with the model that is shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bestiary import load
from bestiary.errors import BestiaryError
from bestiary.model import Model
from bestiary_plugins.demo.command import model as demo

pexpect = pytest.importorskip("pexpect")
BESTIARY = [sys.executable, "-m", "bestiary"]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Model]:
    with load(demo(), backend="numpy") as found:
        yield found


def bestiary(*words: str, given: str = "") -> Any:
    return subprocess.run([*BESTIARY, *words], input=given, text=True, capture_output=True, timeout=120)


def test_a_pipe_gives_one_answer_a_line_of_input() -> None:
    done = bestiary("chat", "--temp", "0", "-n", "12", given="What is a dog?\n\nWho \\\nare you?\n/exit\nno more\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and ">" not in done.stdout
    assert "prefill" in done.stderr
    assert bestiary("chat", "--temp", "0", "-n", "12", given="What is a dog?").stdout == done.stdout.splitlines(True)[0]


def test_a_terminal_shows_a_marker_and_ctrl_d_ends() -> None:
    child = pexpect.spawn(BESTIARY[0], [*BESTIARY[1:], "chat", "--temp", "0", "-n", "20"], encoding="utf-8", timeout=60)
    child.expect("> ")
    child.sendline("What is a dog?")
    child.expect("[A-Za-z]+.*\r\n> ")
    child.sendeof()
    child.expect("prefill")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_interrupts_an_answer_only() -> None:
    child = pexpect.spawn(BESTIARY[0], [*BESTIARY[1:], "chat", "--temp", "1", "-s", "1", "--ignore-eos", "-c", "200000",
                                        "--backend", "numpy"], encoding="utf-8", timeout=60)
    child.expect("> ")
    child.sendline("Tell me a story")
    child.expect("Tell me a story")  # the echo, then some of the answer
    child.expect("[a-z]{3}")
    child.sendintr()
    child.expect("> ")
    child.sendline("/exit")
    child.expect("prefill")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_model_without_a_template_names_the_known_ones(data: Path) -> None:
    model = str(data / "tiny-llama" / "stories260K.bin")
    done = bestiary("chat", "-m", model, given="Hi\n")
    assert done.returncode == 1 and "--chat-template" in done.stderr and "vicuna-v1.1" in done.stderr
    done = bestiary("chat", "-m", model, "--chat-template", "alpaca", "--temp", "0", "-n", "8", given="Hi\n")
    assert done.returncode == 0 and done.stdout.strip()


def test_tokenize_shows_the_strings_and_ids(tmp_path: Path, loaded: Model) -> None:
    messages = [{"role": "user", "content": "Hi <s>"}, {"role": "assistant", "content": "Yes"},
                {"role": "user", "content": "你好"}]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    found = json.loads(bestiary("tokenize", "--chat", "-f", str(tmp_path / "m.json"), "--json").stdout)
    assert found["text"] == "<s>Question: Hi <s>\nAnswer: Yes</s><s>Question: 你好\nAnswer:"
    assert [part["text"] for part in found["segments"] if not part["special"]] == ["Hi <s>", "Yes", "你好"]
    segments = loaded.template().render(messages)
    assert found["ids"] == loaded.tokenizer.encode_segments(segments, bos=True)
    assert found["ids"].count(1) == 2 and found["ids"].count(2) == 1
    plain = bestiary("tokenize", "--chat", "-p", "Hi").stdout
    assert "template  '<s>Question: '" in plain and "message  'Hi'" in plain
    done = bestiary("tokenize", "--chat", "-f", str(demo() / "config.json"))
    assert done.returncode == 1 and "list of messages" in done.stderr


def test_a_chat_reuses_what_the_cache_holds(loaded: Model) -> None:
    messages = [{"role": "user", "content": "What is a dog?"}]
    stream = loaded.chat(messages, max_tokens=10, temperature=0)
    answer = "".join(stream)
    held = len(stream.generation.ids)
    messages += [{"role": "assistant", "content": answer.strip()}, {"role": "user", "content": "And a cat?"}]
    again = loaded.chat(messages, max_tokens=1, temperature=0)
    "".join(again)
    assert again.generation.reused >= held - 2
    with pytest.raises(BestiaryError, match="unknown sampling option"):
        loaded.chat(messages, heat=1)


def test_a_templates_end_stops_the_answer(loaded: Model) -> None:
    template = loaded.host.templates["phoenix"] if loaded.host else None
    stream = loaded.chat([{"role": "user", "content": "Hi"}], template, max_tokens=4)
    stream.close()
    assert stream.generation.request.ends >= {2}
    with pytest.raises(BestiaryError, match="roles user and assistant only"):
        loaded.chat([{"role": "system", "content": "x"}])


def test_a_full_context_forgets_the_oldest_turns_and_goes_on() -> None:
    done = bestiary("chat", "--temp", "0", "-n", "12", "-c", "60",
                    given="What is a dog?\n" * 6 + "What is a very long question? " * 20 + "\nWhat is a dog?\n")
    assert done.returncode == 0, done.stderr
    assert "the oldest message and its answer are forgotten" in done.stderr and "was not sent" in done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_messages_that_are_none_are_refused(loaded: Model) -> None:
    for wrong in ("hi", [1], [{"role": "user"}]):
        with pytest.raises(BestiaryError):
            loaded.chat(wrong)  # type: ignore[arg-type]


def test_a_system_message_without_a_place_is_refused_in_words_for_the_command_line() -> None:
    done = bestiary("chat", "--chat-template", "chatglm2-6b", "--system", "Be kind.", given="Hello\n")
    assert done.returncode == 1 and not done.stdout
    assert "chatglm2-6b has no place for a system's message: leave --system out" in done.stderr
    assert len(done.stderr.splitlines()) == 1
