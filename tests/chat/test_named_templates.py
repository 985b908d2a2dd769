"""Chat formats by name: the strings of their authors' programs, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bestiary.chat import template_of
from bestiary.checkpoint import TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load_tokenizer
from bestiary.template import Message, Segment

NAMES = {"alpaca": "alpaca", "chinese-alpaca": "chinese_alpaca", "vicuna-v0": "vicuna_v0", "phoenix": "phoenix",
         "vicuna-v1.1": "vicuna_v1.1", "llama-3": "llama-3-instruct",
         "falcon-instruct": "falcon-instruct"}
"""Ours and the data's names of those that are texts around turns."""
# Where the data does not say what follows an answer, or stands before it:
BETWEEN = {"chinese-alpaca": "\n\n", "falcon-instruct": "\n\n"}
BEFORE = {"falcon-instruct": " "}


def messages(*said: str, system: str | None = None) -> list[Message]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]


@pytest.fixture(scope="module")
def written(data: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((data / "prompts" / "TEMPLATES.json").read_text("utf-8"))
    return found


def rendered(host: Host, name: str, given: list[Message]) -> str:
    return "".join(segment.text for segment in host.templates[name].render(given))


@pytest.mark.parametrize("name", NAMES)
def test_turns_are_as_written(host: Host, written: Mapping[str, Any], name: str) -> None:
    entry = written[NAMES[name]]
    system = "" if name == "llama-3" else entry["system"]
    ask = entry["user_prefix"] + "{}" + entry["user_suffix"] + entry["assistant_prefix"]
    answer = (entry.get("assistant_answer_prefix", BEFORE.get(name, "")) + "{}"
              + entry.get("assistant_suffix", BETWEEN.get(name, "")))
    assert rendered(host, name, messages("One?")) == system + ask.format("One?")
    assert rendered(host, name, messages("One?", " Yes. ", "Two?", "No.", "三?")) == (
        system + ask.format("One?") + answer.format("Yes.") + ask.format("Two?") + answer.format("No.")
        + ask.format("三?"))
    assert host.templates[name].stop == tuple(entry.get("stop_strings", ()))


@pytest.mark.parametrize(("name", "theirs"), [("llama-2", "llama-2-chat"), ("chinese-alpaca-2", "chinese_alpaca_2")])
def test_the_formats_of_llama_2_are_as_written(host: Host, written: Mapping[str, Any], name: str, theirs: str) -> None:
    entry = written[theirs]
    first = entry["first_turn"].replace("{system_block}", entry["system"])
    system = entry.get("default_system", "Be brief.")
    given = messages("One?", " Yes. ", "Two?", system=None if "default_system" in entry else system)
    assert rendered(host, name, given) == first.format(system=system, user="One?") + entry["next_turn"].format(
        answer="Yes.", user="Two?")


def test_without_a_system_message_llama_2_has_no_system_block(host: Host) -> None:
    assert rendered(host, "llama-2", messages("Hi")) == "<s>[INST] Hi [/INST]"


def test_alpaca_takes_an_input(host: Host, written: Mapping[str, Any]) -> None:
    given: list[Message] = [{"role": "user", "content": "Translate {input}", "input": "{instruction} hm"}]
    expected = written["alpaca"]["with_input"].replace("{instruction}", "\1").replace("{input}", "{instruction} hm")
    assert rendered(host, "alpaca", given) == expected.replace("\1", "Translate {input}")


def test_a_system_message_takes_the_place_of_the_default(host: Host, written: Mapping[str, Any]) -> None:
    assert rendered(host, "vicuna-v1.1", messages("Hi", system="Be {system}.")) == "Be {system}. USER: Hi ASSISTANT:"
    assert rendered(host, "llama-3", messages(" Hi ", system=" S ")) == written["llama-3-instruct"]["system"].format(
        system="S") + "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>" + written[
        "llama-3-instruct"]["assistant_prefix"]


@pytest.mark.parametrize("given", [
    [], messages("a", "b"), [{"role": "tool", "content": "x"}], [{"role": "user"}], messages(system="x"),
    [*messages("a"), *messages("b"), *messages("c")], [{"role": "user", "content": 5}]], ids=repr)
def test_messages_without_a_place_are_refused(host: Host, given: Any) -> None:
    for template in host.templates.values():
        if template.name == "chatglm3-6b" and len(given) == 3:
            continue  # its authors' program lets anybody speak twice
        with pytest.raises(BestiaryError, match="chat template"):
            template.render(given)


def test_what_users_spell_is_no_special_token(host: Host, data: Path) -> None:
    for file, names in (("llama-tokenizer.model", ("phoenix", "llama-2", "chinese-alpaca-2", "alpaca", "vicuna-v1.1")),
                        ("llama3-tokenizer.model", ("llama-3",))):
        tokenizer = load_tokenizer(data / "tokenizers" / file, host)
        special = {i for i in range(tokenizer.size) if tokenizer.special(i)}
        for name in names:
            template = host.templates[name]
            plain, hostile = messages("a", "b", "c"), messages("a</s><s><|eot_id|>", "b<|end_header_id|></s>", "c<s>")
            counts = [[i for i in tokenizer.encode_segments(template.render(given), bos=True) if i in special]
                      for given in (plain, hostile)]
            assert counts[0] == counts[1] and counts[0][0] == tokenizer.bos, name
            assert tokenizer.encode_segments(template.render(plain), bos=True)[1] != tokenizer.bos  # once only


def test_there_is_no_silent_default(host: Host, data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(data / "tokenizers" / "llama-tokenizer.model", host)
    nothing = TokenizerMaterial()
    for chosen in (None, "lama-2"):
        with pytest.raises(BestiaryError, match=r"alpaca, .*chinese-alpaca, chinese-alpaca-2, .*llama-2, llama-3, "
                                                r".*phoenix, vicuna-v0, vicuna-v1\.1"):
            template_of(nothing, tokenizer, host, None, chosen)
    (tmp_path / "mine.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    found = template_of(nothing, tokenizer, host, None, str(tmp_path / "mine.jinja")).render(messages("Hi"))
    assert found == [Segment("<s>", True), Segment("Hi", False), Segment("</s>", True)]
    own = template_of(TokenizerMaterial(chat_template="own"), tokenizer, host)
    assert own.render(messages("Hi")) == [Segment("own", True)]
    assert template_of(nothing, tokenizer, host, None, "LLAMA-2") is host.templates["llama-2"]


def test_a_template_whose_tokens_the_vocabulary_lacks_is_named(data: Path, caplog: pytest.LogCaptureFixture,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.host._said", set())  # other tests of this process may have met the same
    tokenizer = load_tokenizer(data / "tokenizers" / "llama-tokenizer.model", Host())
    lacking = {"chatglm3-6b": "<|system|>", "chatml": "<|im_start|>", "gemma": "<start_of_turn>", "phi-3": "<|system|>",
               "llama-3": "<|start_header_id|>"}
    host = Host()
    for name in host.templates.names:
        for _ in range(2):  # and once is enough
            template_of(TokenizerMaterial(), tokenizer, host, None, name)
    lines = [record.message for record in caplog.records]
    assert lines == [f"chat template {name}: the vocabulary has no token {lacking[name]!r}: is it another model's "
                     "template?" for name in host.templates.names if name in lacking]


def test_the_names_of_a_familys_own_templates_come_first(host: Host, data: Path) -> None:
    tokenizer = load_tokenizer(data / "tokenizers" / "llama-tokenizer.model", host)
    with pytest.raises(BestiaryError, match=r"--chat-template: chatglm2-6b, chatglm3-6b \(this family's\); others: a"):
        template_of(TokenizerMaterial(), tokenizer, host, host.architectures["chatglm"])
