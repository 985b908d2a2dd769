"""Damaged tokenizer material is refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bestiary import BestiaryError, load
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.plugin import PreTokenizer
from bestiary.sentencepiece_model import SentencePieceModel, read_model, write_model
from bestiary.sentencepiece_tokenizer import _table
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.demo.command import model as demo_model

BYTES = [f"<0x{i:02X}>".encode() for i in range(256)]
GOOD: dict[str, Any] = {"algorithm": "bpe", "pieces": [b"<unk>", b"<s>", b"</s>", b"a", *BYTES],
                        "scores": [0.0] * 260, "kinds": [2, 3, 3, 1, *[6] * 256]}
LEVEL: dict[str, Any] = {"algorithm": "bytes", "pieces": [b"a", b"b", b"ab", b"<s>"], "kinds": [1, 1, 1, 3],
                         "merges": ["a b"], "pre_tokenizer": "none"}
RULES = {"none": PreTokenizer(())}


def refused(material: TokenizerMaterial, match: str | None = None) -> None:
    with pytest.raises(BestiaryError, match=match) as caught:
        build_tokenizer(material, RULES)
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 500


def test_the_undamaged_ones_are_accepted() -> None:
    assert build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**GOOD)), RULES).encode("a\xff") == [
        4 + 0xE2, 4 + 0x96, 4 + 0x81, 3, 4 + 0xC3, 4 + 0xBF]
    assert build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**LEVEL)), RULES).encode("aab") == [0, 2]


def test_a_nul_beside_byte_pieces_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    """The library takes none and says so on stderr, which is not its own."""
    pieces = [*GOOD["pieces"][:3], b"\0", *BYTES]
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**{**GOOD, "pieces": pieces})), RULES)
    assert tokenizer.encode("\0")[-1] == 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("change", "match"), [
    ({"pieces": []}, "0 pieces"),
    ({"pieces": [b"\xff\xfe", *GOOD["pieces"][1:]]}, "piece 0 is not UTF-8"),
    ({"pieces": [*GOOD["pieces"][:3], b"a" * 10**6, *BYTES]}, "piece 3 is 1000000 bytes"),
    ({"scores": [0.0] * 259}, "260 pieces but 259 scores"),
    ({"kinds": [1] * 261}, "260 pieces but 261 kinds"),
    ({"kinds": [2, 3, 3, 77, *[6] * 256]}, "piece 3 is of kind 77"),
    ({"kinds": [2, 3, 3, -1, *[6] * 256]}, "piece 3 is of kind -1"),
    ({"kinds": [6, 3, 3, 1, *[6] * 256], "unknown": 3}, "byte piece 0"),
    ({"kinds": [2, 3, 3, 1, *[6] * 255, 1]}, "sentencepiece refuses"),
    ({"scores": [0.0, float("nan"), *[0.0] * 258]}, "score of piece 1 is nan"),
    ({"scores": [0.0, float("inf"), *[0.0] * 258]}, "score of piece 1 is inf"),
    ({"unknown": 260}, "260 lies outside"),
    ({"unknown": -1}, "-1 lies outside"),
    ({"algorithm": "wordpiece"}, "unknown vocabulary algorithm 'wordpiece'; known: unigram, bpe, bytes"),
    ({"charsmap": b"\xff" * 9}, "sentencepiece refuses"),
])
def test_damaged_pieces_with_scores_are_refused(change: dict[str, Any], match: str) -> None:
    refused(TokenizerMaterial(vocabulary=Vocabulary(**{**GOOD, **change})), match)


@pytest.mark.parametrize(("change", "match"), [
    ({"pieces": []}, "0 pieces"),
    ({"pieces": [b"a", b"b", b"ab", b"\xc3"]}, "piece 3 is not UTF-8"),
    ({"pieces": [b"a", b"b", b"ab", b"x" * 10**6]}, "1000000 bytes"),
    ({"kinds": [1, 1]}, "4 pieces but 2 kinds"),
    ({"kinds": [1, 1, 1, 9]}, "kind 9"),
    ({"merges": ["a z"]}, "out of vocabulary"),
    ({"merges": ["a b", "ab"]}, "'ab' is no merge"),
    ({"merges": [""]}, "is no merge"),
    ({"merges": ["a" * 10**6]}, "1000000 characters"),
    ({"pre_tokenizer": "made-up"}, "unknown pre-tokenizer 'made-up'; known: none"),
])
def test_damaged_byte_level_arrays_are_refused(change: dict[str, Any], match: str) -> None:
    refused(TokenizerMaterial(vocabulary=Vocabulary(**{**LEVEL, **change})), match)


@pytest.mark.parametrize("merges", [["a b"] * 2, ["a b"] * 1_500_000])
def test_more_merges_than_ways_to_cut_the_pieces_are_refused(merges: list[str]) -> None:
    """A million and a half of equal ones took a gigabyte, and the library ends the process where it has none."""
    refused(TokenizerMaterial(vocabulary=Vocabulary(**{**LEVEL, "merges": merges})), "merge")
    data = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abc": 3}, "merges": merges}}
    refused(TokenizerMaterial(files={"tokenizer.json": json.dumps(data).encode()}), "merge")


NAMES = [f"{i:06x}" for i in range(300_000)]


@pytest.mark.parametrize(("names", "match"), [(NAMES, "300000 special and user-defined"),
                                              (["a" * i for i in range(1, 6000)], "17997000 characters of special")])
@pytest.mark.parametrize("kind", [3, 4])
def test_special_tokens_beyond_measure_are_refused_before_a_library_sees_them(names: list[str], match: str,
                                                                            kind: int) -> None:
    for good in (GOOD, LEVEL):
        pieces = [*good["pieces"], *(name.encode() for name in names)]
        kinds = [*good["kinds"], *[kind] * len(names)]
        scores = [0.0] * len(pieces) if "scores" in good else []
        found = Vocabulary(**{**good, "pieces": pieces, "kinds": kinds, "scores": scores})
        refused(TokenizerMaterial(vocabulary=found), "special and user-defined")
    added = [{"id": i, "content": name, "special": kind == 3} for i, name in enumerate(names, 1)]
    data = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": added}
    refused(TokenizerMaterial(files={"tokenizer.json": json.dumps(data).encode()}), match)


def test_thousands_of_special_tokens_are_found_in_a_text() -> None:
    """As many as a model of speech has; an expression of all of them took a second to compile."""
    names = [f"<|s_{i}|>" for i in range(65_536)]
    found = Vocabulary(**{**GOOD, "pieces": [*GOOD["pieces"], *(name.encode() for name in names)],
                          "kinds": [*GOOD["kinds"], *[3] * len(names)], "scores": [0.0] * (260 + len(names))})
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=found), RULES)
    assert tokenizer.encode("<|s_7|><|s_65535|>", special=True) == [267, 260 + 65_535]


def test_a_rule_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(BestiaryError):
        build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**LEVEL)), {"none": PreTokenizer(("(((",))})


@pytest.mark.parametrize("roles", [{"bos": 260}, {"eos": 10**9}, {"bos": -5}, {"ends": (3, 260)}])
def test_ids_outside_the_vocabulary_are_refused(roles: dict[str, Any]) -> None:
    refused(TokenizerMaterial(vocabulary=Vocabulary(**GOOD), **roles), "outside the vocabulary of 260 pieces")


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**GOOD)), RULES)
    for token in (260, -1, 1 << 40):
        for ask in (tokenizer.piece, tokenizer.name, lambda token: tokenizer.decode([token])):
            with pytest.raises(BestiaryError, match="outside the vocabulary"):
                ask(token)


def test_repeated_empty_and_missing_pieces_are_lived_with() -> None:
    """Old converters wrote empty spellings for bos and eos, and no unknown piece."""
    changed = {**GOOD, "pieces": [b"a", b"", b"", b"a", *BYTES], "kinds": [1, 1, 1, 1, *[6] * 256]}
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**changed), bos=1, eos=2), RULES)
    assert tokenizer.size == 260 and tokenizer.piece(1) == b"" and tokenizer.piece(0) == tokenizer.piece(3) == b"a"
    assert tokenizer.encode("a", bos=True) == [1, 4 + 0xE2, 4 + 0x96, 4 + 0x81, 3]
    one_digit = {**GOOD, "pieces": [*GOOD["pieces"][:4], *(f"<0x{i:X}>".encode() for i in range(256))]}
    raw = {**GOOD, "pieces": [*GOOD["pieces"][:4], *(bytes([i]) for i in range(256))]}
    for pieces in (one_digit, raw):
        tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**pieces)), RULES)
        assert tokenizer.encode("\n")[-1] == 14 and tokenizer.piece(14) == b"\n"
    level = {**LEVEL, "pieces": [*LEVEL["pieces"], b"", b"<s>"], "kinds": [1, 1, 1, 3, 1, 3]}
    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=Vocabulary(**level)), RULES)
    assert tokenizer.size == 6 and tokenizer.encode("<s>ab", special=True) == [5, 2]


def test_a_vocabulary_without_kinds_or_scores_still_works() -> None:
    tokenizer = build_tokenizer(TokenizerMaterial(
        vocabulary=Vocabulary("bpe", [*GOOD["pieces"], "\u2581".encode(), "\u2581a".encode()]), bos=1, eos=2), RULES)
    assert tokenizer.encode("a", bos=True) == [1, 261] and tokenizer.piece(1) == b""


@pytest.mark.parametrize("content", [
    b"", b"\n", b"not a model", b"\x00" * 100, b"\xff" * 100,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", b"\n\xff\xff\xff\xff\x0f",
    b"IQ== 0\nIg== 1\nIw== 2\n"])
def test_what_is_no_sentencepiece_model_is_refused(content: bytes) -> None:
    refused(TokenizerMaterial(files={"tokenizer.model": content}))


def test_a_damaged_sentencepiece_model_is_refused_or_read_but_never_crashes(small_model: bytes) -> None:
    source = random.Random(7)
    for i in range(300):
        broken = bytearray(small_model)
        for _ in range(source.choice((1, 3, 30))):
            broken[source.randrange(len(broken))] = source.randrange(256)
        if i % 3 == 0:
            del broken[source.randrange(len(broken)):]
        try:
            tokenizer = build_tokenizer(TokenizerMaterial(files={"tokenizer.model": bytes(broken)}), {})
            tokenizer.decode(tokenizer.encode("the cat 你好 <x>"))
        except BestiaryError as error:
            assert "\n" not in str(error)


def test_damaged_records_of_a_sentencepiece_model_are_refused(small_model: bytes) -> None:
    model = read_model(small_model)
    names, scores, kinds = model.names, model.scores, model.kinds
    for record, match in ((([*names, "x" * 20000], [*scores, 0.0], [*kinds, 1]), "20000 bytes"),
                          (([*names, "zz"], [*scores, float("nan")], [*kinds, 1]), "is nan"),
                          (([*names, "zz"], [*scores, 0.0], [*kinds, 7]), "kind 7"),
                          ((names, scores, [2, 2, *kinds[2:]]), "sentencepiece refuses")):
        refused(TokenizerMaterial(files={"tokenizer.model": write_model(*record, model.rest)}), match)


def test_long_repeated_and_empty_spellings_are_written_so_that_they_read_back() -> None:
    names = ["<unk>", "", "b" * 118, "c" * 119, "d" * 127, "e" * 128, "é" * 8000, "twice", "twice"]
    scores, kinds = [-0.5 * i for i in range(9)], [2, 1, 1, 4, 1, 5, 1, 1, 1]
    model = read_model(write_model(names, scores, kinds, b""))
    assert model.names == ["<unk>", "<piece 1 of 9>", *names[2:7], "<piece 7 of 9>", "twice"]
    assert model.scores == scores and model.kinds == [2, 3, 1, 4, 1, 5, 1, 3, 1]


def test_a_nul_in_a_spelling_moves_no_other_piece() -> None:
    """sentencepiece of today refuses it; the table of pieces does not rely on that."""
    model = SentencePieceModel(["<unk>", "\u2581a\0b", "\0", "<0x41>", "c"], [0.0] * 5, [2, 1, 1, 6, 1], b"")
    assert _table(model, 5) == [" \u2047 ".encode(), b" a\0b", b"\0", b"A", b"c"]


def test_a_bad_tokenizer_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n\x0e\n\x05<unk>\x15" + bytes(4) + b"\x18\x09")
    with pytest.raises(BestiaryError, match="kind 9") as caught:
        load(demo_model(), tokenizer=path, progress=lambda *said: pytest.fail(f"read {said} of it"))
    assert "\n" not in str(caught.value)


def with_value(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value
    return change


@pytest.mark.parametrize("change", [
    with_value("model", value=None), with_value("model", value=[]), with_value("model", "vocab", value=3),
    with_value("model", "vocab", value={}), with_value("model", "vocab", "the", value=-1),
    with_value("model", "vocab", "the", value=2**31), with_value("model", "vocab", "the", value="x"),
    with_value("model", "vocab", "a" * 10**6, value=5), with_value("model", "merges", value=["a b c d"]),
    with_value("model", "merges", value=[["zzz", "yyy"]]), with_value("model", "type", value="Magic"),
    with_value("model", "vocab", value=[["a", 0.0], "b"]), with_value("model", "vocab", value=[["a", 0.0], [3, 0.0]]),
    with_value("added_tokens", value={}), with_value("added_tokens", value=[3]),
    with_value("added_tokens", value=[{"id": "x", "content": "<y>"}]), with_value("added_tokens", 0, "id", value=10**7),
    with_value("added_tokens", 0, "id", value=0), with_value("added_tokens", 0, "content", value=None),
    with_value("added_tokens", 0, "content", value="x" * 10**6), with_value("decoder", value=None),
    with_value("decoder", value={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    with_value("pre_tokenizer", value={
        "type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}),
    with_value("pre_tokenizer", value=7),
    with_value("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAA"}),
    with_value("post_processor", value={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "?", "type_id": 0}}], "pair": [],
        "special_tokens": {}}),
])
def test_a_damaged_tokenizer_json_is_refused(small_json: dict[str, Any],
                                             change: Callable[[dict[str, Any]], None]) -> None:
    data = copy.deepcopy(small_json)
    change(data)
    refused(TokenizerMaterial(files={"tokenizer.json": json.dumps(data).encode()}))


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{", b"{}", b"\xff\xfe{}", b"[" * 10**6, b'{"model": ' + b"9" * 10**4 + b"}", b"null", b'"text"'])
def test_what_is_no_tokenizer_json_is_refused(content: bytes) -> None:
    refused(TokenizerMaterial(files={"tokenizer.json": content}))


@pytest.mark.parametrize(("name", "content"), [
    ("tokenizer_config.json", b"{"), ("special_tokens_map.json", b"[]"), ("added_tokens.json", b"\xff"),
    ("added_tokens.json", b'{"<x>": "y"}'), ("added_tokens.json", b'{"<y>": 1000000}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"-1": {"content": "<y>"}}}'),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"5": 7}}')])
def test_damaged_settings_are_refused(small_model: bytes, small_json: dict[str, Any], name: str,
                                      content: bytes) -> None:
    refused(TokenizerMaterial(files={"tokenizer.model": small_model, name: content}))
    refused(TokenizerMaterial(files={"tokenizer.json": json.dumps(small_json).encode(), name: content}))


def test_no_tokenizer_at_all_is_said() -> None:
    refused(TokenizerMaterial(), "no tokenizer")


@pytest.mark.parametrize("merges", [["a b"], [["a", "b"]], [["a", "b", "c"]], [7], [[]]])
def test_a_merge_without_the_mark_of_what_goes_on_is_refused(merges: list[Any],
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    """The library cuts the mark off the second piece, and panics where it is shorter."""
    root = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c" * 40: 3}, "merges": merges,
                      "continuing_subword_prefix": "marked"}}
    refused(TokenizerMaterial(files={"tokenizer.json": json.dumps(root).encode()}))
    assert capfd.readouterr().err == ""
