"""A tokenizer.json whose steps would end the process inside the library is refused before the library sees it."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from typing import Any

import pytest

from bestiary import BestiaryError
from bestiary.checkpoint import TokenizerMaterial
from bestiary.library_steps import MOST_STEPS, check_steps
from bestiary.tokenizer_builder import build_tokenizer


def source(**parts: Any) -> bytes:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                       "post_processor": None, "decoder": None, "model": model, **parts}).encode()


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(size: int, rest: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(struct.pack("<I", size) + rest).decode()}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
HOSTILE: dict[str, dict[str, Any]] = {
    "claims a trie of 2147483648 bytes and has 20 in all": {"normalizer": charsmap(1 << 31, bytes(16))},
    "claims a trie of 20 bytes": {"normalizer": charsmap(20, bytes(16))},
    "claims a trie of 3 bytes": {"normalizer": charsmap(3, bytes(16))},
    "is no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
    "1e\\+12 times as long": {"normalizer": sequence(*[replace("a", "a" * 1000)] * 4)},
    "times as long; 256": {"normalizer": charsmap(4, bytes(4) + b"a" * 300 + b"\0")},
    "times as long": {"normalizer": sequence(*[{"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}] * 60)},
    "decoder makes a text 1e\\+09": {"decoder": {"type": "Sequence", "decoders": [replace("a", "a" * 1000)] * 3}},
    "9.007e\\+15 times": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL] * 53}},
    f"{MOST_STEPS} are the most": {"normalizer": sequence(*[{"type": "NFC"}] * (MOST_STEPS + 1))},
    "a step .*, which is not understood": {"normalizer": sequence({"type": 5}, {})},
    "has no list of normalizers": {"normalizer": {"type": "Sequence"}},
    "normalizer 'Dragon' is not known": {"normalizer": {"type": "Dragon"}},
    "pre_tokenizer 'Dragon' is not known; known: Bert": {"pre_tokenizer": {"type": "Dragon"}},
    "before a text": {"normalizer": {"type": "Prepend", "prepend": "a" * (1 << 20)}},
}


@pytest.mark.parametrize("words", HOSTILE)
def test_a_step_that_would_end_the_process_is_refused_in_words(words: str) -> None:
    with pytest.raises(BestiaryError, match=words) as caught:
        build_tokenizer(TokenizerMaterial(files={"tokenizer.json": source(**HOSTILE[words])}), {})
    assert len(str(caught.value)) < 400


def test_nests_of_sequences_are_refused() -> None:
    nest: dict[str, Any] = {"type": "NFC"}
    for _ in range(20):
        nest = sequence(nest)
    with pytest.raises(BestiaryError, match="not understood"):
        build_tokenizer(TokenizerMaterial(files={"tokenizer.json": source(normalizer=nest)}), {})


def test_the_steps_of_models_there_are_pass() -> None:
    known = charsmap(8, bytes(8) + b"ab\0" + b"a" * 33 + b"\0")  # as long as the longest of nmt_nfkc
    check_steps({"normalizer": sequence(known, {"type": "Replace", "pattern": {"Regex": " +"}, "content": "\u2581"}),
                 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {
                     "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}]}}, "it")
    check_steps({"normalizer": sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"))}, "it")
    check_steps({"normalizer": None}, "it")


def test_no_hostile_step_ends_the_process() -> None:
    script = ("import sys, json\nfrom bestiary import BestiaryError\n"
              "from bestiary.checkpoint import TokenizerMaterial\n"
              "from bestiary.tokenizer_builder import build_tokenizer\n"
              "for text in json.load(sys.stdin):\n"
              "    try: build_tokenizer(TokenizerMaterial(files={'tokenizer.json': text.encode()}), {})\n"
              "    except BestiaryError: print('refused')\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
                          input=json.dumps([source(**parts).decode() for parts in HOSTILE.values()]))
    assert done.stdout.split() == ["refused"] * len(HOSTILE), done.stderr[-500:]


def test_a_template_that_names_a_token_it_does_not_explain_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """There the library ends with words of its own on stderr."""
    pieces = [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    step = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {}}
    for wrong in (step, {"type": "Sequence", "processors": [step]}):
        with pytest.raises(BestiaryError, match="puts 'a' around a text"):
            build_tokenizer(TokenizerMaterial(files={"tokenizer.json": source(post_processor=wrong)}), {})
    assert capfd.readouterr() == ("", "")
