"""ChatGLM's ways with text: ids and prompts of the published code, white space that has tokens of its own."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from bestiary.chat import end_ids
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import make_tokenizer
from bestiary.plugin import Tokenizer
from bestiary.tokenizer import Stream

CONFIGS = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b")
FILES = {"chatglm-6b": "chatglm-6b-ice_text.model", "chatglm2-6b": "chatglm2-3-tokenizer.model",
         "chatglm3-6b": "chatglm2-3-tokenizer.model"}


def folder(data: Path, name: str, target: Path) -> Path:
    """A folder as published, without its weights."""
    for file in (data / "configs" / name).iterdir():
        if "index" not in file.name:
            (target / file.name).write_bytes(file.read_bytes())
    own = "ice_text.model" if name.startswith("chatglm-6b") else "tokenizer.model"
    (target / own).write_bytes((data / "tokenizers" / FILES[name.removesuffix("-v0")]).read_bytes())
    return target


def tokenizer_of(data: Path, host: Host, name: str, target: Path) -> Tokenizer:
    from bestiary_plugins.loaders.tokenizer_files import folder_material

    path = folder(data, name, target)
    config = json.loads((path / "config.json").read_text())
    material = folder_material(path)
    family = host.architecture_of(config, material)
    tokenizer = make_tokenizer(material, family, config, host)
    assert tokenizer is not None
    return tokenizer


def vectors(data: Path, name: str) -> list[Any]:
    found = json.loads((data / "tokenizers" / "VECTORS.json").read_text())
    return next(entry["cases"] for key, entry in found.items() if key.startswith(name))


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b"])
def test_ids_are_those_of_the_published_code(data: Path, host: Host, tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(data, host, name, tmp_path)
    for text, ids in vectors(data, name):
        assert tokenizer.encode(text, bos=True) == ids
        stream = Stream(tokenizer)
        said = "".join(stream.push(token) for token in ids) + stream.finish()
        assert said == tokenizer.decode(ids)
        assert said == unicodedata.normalize("NFKC", text) if name == "chatglm-6b" else said == text


def test_messages_are_encoded_apart(data: Path, host: Host, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(data, host, "chatglm3-6b", tmp_path)
    template = host.templates["chatglm3-6b"]
    for messages, ids in vectors(data, "chatglm3-6b"):
        turns = [{"role": role, "content": content} for role, content in messages]
        assert tokenizer.encode_segments(template.render(turns), bos=True) == ids


def test_the_answer_of_a_tool_has_a_role_of_its_own(data: Path, host: Host, tmp_path: Path) -> None:
    """As the published chat(): a role's token, then two encodings of the library, "\\n" and what was said."""
    tokenizer = tokenizer_of(data, host, "chatglm3-6b", tmp_path)
    library = sentencepiece.SentencePieceProcessor(
        model_file=str(data / "tokenizers/chatglm2-3-tokenizer.model"))
    roles = json.loads((data / "prompts/TEMPLATES.json").read_text("utf-8"))["chatglm3-6b"]["roles"]
    said = [("system", "You have tools:\n[]"), ("user", "Weather?"), ("assistant", "tool_call(city='X')"),
            ("tool", '{"t": 20} <|user|>'), ("observation", "sunny"), ("assistant", "Warm."), ("user", "谢谢")]
    wanted = [64790, 64792]
    for role, text in said:
        wanted += [roles["observation" if role == "tool" else role], *library.encode("\n"), *library.encode(text)]
    rendered = host.templates["chatglm3-6b"].render([{"role": role, "content": text} for role, text in said])
    assert tokenizer.encode_segments(rendered, bos=True) == [*wanted, roles["assistant"]]
    assert {roles["user"], roles["observation"]} <= end_ids(host.templates["chatglm3-6b"], tokenizer)


def rounds(first: int, count: int, gap: str) -> tuple[str, list[dict[str, str]]]:
    turns: list[dict[str, str]] = []
    text = ""
    for i in range(count):
        text += f"[Round {first + i}]{gap}问：q{i}{gap}答："
        turns.append({"role": "user", "content": f"q{i}"})
        if i < count - 1:
            text += f"a{i}{gap}"
            turns.append({"role": "assistant", "content": f"a{i}"})
    return text, turns


@pytest.mark.parametrize(("name", "first", "gap"), [("chatglm-6b", 0, "\n"), ("chatglm2-6b", 1, "\n\n")])
@pytest.mark.parametrize("count", [2, 3])
def test_rounds_are_those_of_the_published_code(host: Host, name: str, first: int, gap: str, count: int) -> None:
    text, turns = rounds(first, count, gap)
    segments = host.templates[name].render(turns)
    assert [(segment.text, segment.special) for segment in segments] == [(text, False)]


def test_a_first_question_stands_alone(host: Host) -> None:
    question = [{"role": "user", "content": "hello"}]
    assert [s.text for s in host.templates["chatglm-6b"].render(question)] == ["hello"]
    assert [s.text for s in host.templates["chatglm2-6b"].render(question)] == [rounds(1, 1, "\n\n")[0].replace(
        "q0", "hello")]


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"])
@pytest.mark.parametrize("messages", [[{"role": "robot", "content": "x"}], [{"role": "user"}]])
def test_what_has_no_place_is_refused(host: Host, name: str, messages: Sequence[dict[str, str]]) -> None:
    with pytest.raises(BestiaryError, match=f"chat template {name}"):
        host.templates[name].render(messages)


def published(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """tokenization_chatglm.py of ChatGLM-6B: text before the pieces."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for count in range(80, 1, -1):
        text = text.replace(" " * count, f"<|blank_{count}|>")
    ids: list[int] = processor.encode(text)
    return ids


def plain(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    ids: list[int] = processor.encode(text)
    return ids


@pytest.mark.parametrize(("name", "original"), [("chatglm-6b", published), ("chatglm2-6b", plain)])
def test_random_texts_give_the_ids_of_the_library(data: Path, host: Host, tmp_path: Path, texts: list[str], name: str,
                                                  original: Any) -> None:
    tokenizer = tokenizer_of(data, host, name, tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizers" / FILES[name]))
    for text in texts:
        assert tokenizer.encode(text) == original(processor, text), repr(text)


def test_white_space_comes_back(data: Path, host: Host, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(data, host, "chatglm-6b", tmp_path)
    for text in ("a\nb", "a\t\tb", "a" + " " * 7 + "b", "a" + " " * 200 + "b", "\n\n", "def f():\n    return 1"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_first_release_has_its_text_behind_the_images(data: Path, host: Host, tmp_path: Path,
                                                          texts: list[str]) -> None:
    """Its file ends before the special pieces; the vocabulary is that of the second release, 20,000 ids on."""
    from bestiary.sentencepiece_model import read_model, write_model

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    second = tokenizer_of(data, host, "chatglm-6b", tmp_path / "b")
    model = read_model((data / "tokenizers" / FILES["chatglm-6b"]).read_bytes())
    path = folder(data, "chatglm-6b-v0", tmp_path / "a")
    (path / "ice_text.model").write_bytes(write_model(
        model.names[:130_000], model.scores[:130_000], model.kinds[:130_000], model.rest))
    from bestiary_plugins.loaders.tokenizer_files import folder_material

    config = json.loads((path / "config.json").read_text())
    material = folder_material(path)
    family = host.architecture_of(config, material)
    first = make_tokenizer(material, family, config, host)
    assert first is not None
    for text in texts[:400]:
        ids = first.encode(text)
        assert ids == [token + 20_000 for token in second.encode(text)], repr(text)
        assert first.decode(ids) == second.decode([token - 20_000 for token in ids])
    assert first.encode("x", bos=True)[-2:] == [150_001, 150_004]
    assert 150_005 in first.ends and first.eos == 150_005
    again = family.material(family.material(material, config), config)
    assert again == family.material(material, config)
