"""Attacks that other programs fell to, where no test beside the code they are about names them."""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bestiary.host import Host
from bestiary.model import make_tokenizer
from bestiary.testing.children import run_cases
from bestiary.testing.damage import VALUES
from tests.hostile.formats.gguf import ARRAY, STR, Key, Parts, gguf_v2, keys, sentencepiece_keys, tensors, written
from tests.hostile.formats.sample import Sample, scratch
from tests.hostile.formats.vocabularies import sentencepiece, tokenizer_json

ROOT = Path(__file__).parents[2]
SAMPLE = [*keys(), *sentencepiece_keys()]
WRONG = [(code, struct.pack("<Q", 1)[:size]) for code, size in ((0, 1), (2, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8),
                                                                (11, 8), (12, 8))]
"""A number or boolean of each type."""


FORBIDDEN = ("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler",
             "marshal.loads", "torch.load", "np.load", "numpy.load", "yaml.load")


def others(key: Key) -> list[Key]:
    """The key with every type that it does not have."""
    found = [key._replace(code=code, value=value) for code, value in WRONG if code != key.code]
    found += [key._replace(code=STR, value=b"1")] * (key.code != STR)
    count = len(key.value) if isinstance(key.value, list) else 1
    return found + [key._replace(code=ARRAY, value=[b"x" if code == STR else value] * count, item=code)
                    for code, value in (*WRONG, (STR, b"")) if (key.code, key.item) != (ARRAY, code)]


@pytest.mark.parametrize("index", range(len(SAMPLE)), ids=[key.name.decode() for key in SAMPLE])
def test_metadata_of_a_wrong_type_is_refused_or_converted(host: Host, index: int) -> None:
    """Scores of bytes read as floats, an integer for a string: type confusion in readers of C."""
    changed = others(SAMPLE[index])
    sample, whole = gguf_v2(), tensors(2, 267)

    def case(number: int) -> None:
        parts = Parts(2, [*SAMPLE[:index], changed[number], *SAMPLE[index + 1:]], whole)
        sample.attempt({"x.gguf": bytes(written(parts).data)}, host, folder)

    with scratch() as folder:
        sample.attempt(sample.files, host, folder)
        tally = run_cases(case, range(len(changed)))
    assert not tally.escapes, str(tally.escapes)
    assert tally.refused or SAMPLE[index].name == b"general.tags"  # nobody reads that one


@pytest.mark.parametrize("name", [key.name.decode() for key in SAMPLE if key.code == 4])
def test_extreme_numbers_of_a_model_are_refused_or_harmless(host: Host, name: str) -> None:
    """Counts of layers and heads, token ids: indices into arrays elsewhere."""
    sample, whole = gguf_v2(), tensors(2, 267)
    values = [value for value in (*VALUES, 2, 3, 513, 1 << 16, 1 << 24) if value < 1 << 32]

    def case(number: int) -> None:
        listed = [key._replace(value=struct.pack("<I", values[number])) if key.name.decode() == name else key
                  for key in SAMPLE]
        sample.attempt({"x.gguf": bytes(written(Parts(2, listed, whole)).data)}, host, folder)

    with scratch() as folder:
        sample.attempt(sample.files, host, folder)
        tally = run_cases(case, range(len(values)))
    assert not tally.escapes, str(tally.escapes)
    assert tally.refused


@pytest.mark.parametrize("make", [sentencepiece, tokenizer_json])
def test_a_text_of_a_million_characters_is_encoded(host: Host, make: Callable[[], Sample], tmp_path: Path) -> None:
    """Lengths that were put into 32 bits with a sign."""
    sample = make()
    path = tmp_path / sample.opened
    path.write_bytes(sample.files[sample.opened])
    tokenizer = make_tokenizer(host.open(path, sample.loader).tokenizer, None, {}, host)
    assert tokenizer is not None
    text = "hello 12 <x> " * ((1 << 20) // 13)
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text.strip()


def test_templates_are_rendered_in_one_place() -> None:
    """A second environment, without the sandbox, is how others ran a template's code."""
    users = {}
    for root in ("core", "plugins"):
        for path in (ROOT / root).rglob("*.py"):
            named = {node.attr if isinstance(node, ast.Attribute) else node.id
                     for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Attribute, ast.Name))}
            if found := {name for name in named if name.endswith("Environment")}:
                users[path.name] = found
    assert users.keys() == {"jinja_sandbox.py"}
    assert users["jinja_sandbox.py"] == {"ImmutableSandboxedEnvironment"}


def test_nothing_of_ours_unpickles_files_or_runs_their_code() -> None:
    """pickle.load, marshal, eval, exec and torch.load have no place in what reads files."""
    wrong = []
    for root in ("core", "plugins"):
        for path in (ROOT / root).rglob("*.py"):
            if "testing" in path.parts:  # there it pickles what it made itself
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called in FORBIDDEN:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert wrong == []
