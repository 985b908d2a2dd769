"""Tokenizers made of a list of pieces alone: what the order of the pieces gives, and what is lost."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load_tokenizer
from bestiary.saving import save_as
from bestiary.tokenizer import Tokenizer
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.architectures.pre_tokenizers import GPT2
from bestiary_plugins.loaders.old_vocabularies import NEVER_IN_TEXT, byte_level, byte_pieces, found_merges, of_texts
from tests.loaders import bloom_falcon_files as old

SPECIAL = {0: b"<unk>", 1: b"<s>", 2: b"</s>", 3: b"<pad>"}
ENGLISH = ("Before we proceed any further, hear me speak. You are all resolved rather to die than to famish? "
           "What work's, my countrymen, in hand?  Don't go -- 1234567 (two)  spaces...\n\nMENENIUS:\nWhat's the matter")
CHINESE = "\u5374\u8bf4\u5b9d\u7389\u542c\u4e86\uff0c\u4fbf\u95ee\u9053\uff1a\u201c\u6211\u4e0d\u4fe1\u3002\u201d"
OTHERS = "\u00e9\u00f1\u00bd\u0416\u0661\u093e\U0001f600\ufffd\u200d\u3000\u00a0\x07"


def texts(count: int, letters: str) -> list[str]:
    """Slices of a text, and letters at random."""
    source, made = random.Random(7), []
    for i in range(count):
        length = source.randint(1, 60)
        at = source.randrange(len(letters))
        made.append(letters[at:at + length] if i % 2 else "".join(source.choice(letters) for _ in range(length)))
    return made


def exact(path: Path) -> Callable[[str], list[int]]:
    library = Library.from_file(str(path))
    library.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    return encode


@pytest.mark.parametrize("name", ["falcon7-ggmf1-f16.bin", "falcon7-ggcc-q4_0.bin", "falcon40-ggcc-q4_k.bin"])
def test_falcons_tokenizer_is_the_original_one(name: str, host: Host, data: Path) -> None:
    """From vocabulary and merges, and from the vocabulary alone, whose order is that of its merges."""
    ours, theirs = load_tokenizer(data / "legacy-models" / name, host), \
        exact(data / "legacy-models" / "falcon-tokenizer.json")
    for text in texts(2000, ENGLISH + CHINESE + OTHERS + string.printable + "<|endoftext|>>>TITLE<<"):
        assert ours.encode(text) == theirs(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("a>>TITLE<<b<|endoftext|>", special=True) == [*ours.encode("a"), 0, *ours.encode("b"), 11]


@pytest.mark.parametrize("file", ["legacy-models/falcon-tokenizer.json", "legacy-models/bloom-hf/tokenizer.json"])
def test_the_order_of_the_pieces_gives_the_merges(file: str, data: Path) -> None:
    from bestiary.library_tokenizer import byte_alphabet, from_byte_level

    model = json.loads((data / file).read_text())["model"]
    pieces = [from_byte_level(name) for name, _ in sorted(model["vocab"].items(), key=lambda item: int(item[1]))]
    letters = {byte: char for char, byte in byte_alphabet().items()}
    found = [["".join(letters[byte] for byte in part) for part in pair] for pair in found_merges(pieces)]
    assert found == [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def test_the_real_falcons_vocabulary_gives_all_of_its_merges(data: Path) -> None:
    from bestiary.library_tokenizer import from_byte_level

    root = json.loads((data / "tokenizers" / "falcon-tokenizer.json").read_text())
    model = root["model"]
    pieces = [from_byte_level(name) for name, _ in sorted(model["vocab"].items(), key=lambda item: int(item[1]))]
    vocabulary = byte_level(pieces, None, "x")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    assert list(vocabulary.merges) == merges
    assert sum(kind != 1 for kind in vocabulary.kinds) == len(root["added_tokens"])


# --- texts that lost bytes ---

@pytest.fixture(scope="module")
def bloom(host: Host, data: Path) -> Tokenizer:
    return load_tokenizer(data / "legacy-models" / "bloom-bloomzcpp-f16.bin", host)


def test_blooms_tokenizer_is_the_original_one_where_no_character_is_in_parts(bloom: Tokenizer, data: Path) -> None:
    theirs = exact(data / "legacy-models" / "bloom-hf" / "tokenizer.json")
    for text in texts(2000, ENGLISH):
        assert bloom.encode(text) == theirs(text)


def test_every_text_comes_back_and_differs_from_the_original_only_in_parts_of_characters(bloom: Tokenizer,
                                                                                         data: Path) -> None:
    theirs = exact(data / "legacy-models" / "bloom-hf" / "tokenizer.json")
    lost = {i for i in range(bloom.size) if "\ufffd" in bloom.name(i)}
    assert len(lost) > 20
    same = 0
    for text in texts(500, ENGLISH + CHINESE + OTHERS + string.printable):
        ids, wanted = bloom.encode(text), theirs(text)
        assert bloom.decode(ids) == text
        assert lost.isdisjoint(ids)
        assert ids == wanted or not lost.isdisjoint(wanted)
        same += ids == wanted
    assert 10 < same < 490


def test_the_original_tokenizer_beside_it_gives_the_original_ids(host: Host, data: Path, tmp_path: Path) -> None:
    notes = json.loads((data / "legacy-models" / "bloom-logits.json").read_text())["tokenization"]
    save_as(data / "legacy-models" / "bloom-bloomzcpp-q4_1.bin", tmp_path / "x.gguf", "f16", host,
            tokenizer=data / "legacy-models" / "bloom-hf" / "tokenizer.json")
    ours = load_tokenizer(tmp_path / "x.gguf", host)
    for text, ids in notes.items():
        assert ours.encode(text) == ids


def built(vocabulary: Vocabulary) -> Tokenizer:
    return build_tokenizer(TokenizerMaterial(vocabulary=vocabulary, bos=1, eos=2, add_bos=False), {})


@pytest.mark.parametrize("absent", [(), NEVER_IN_TEXT])
def test_bytes_have_the_pieces_that_their_order_says(absent: tuple[int, ...]) -> None:
    pieces = old.bloom_pieces(absent=absent)
    found = byte_pieces(pieces)
    assert found.keys() == set(range(256)) - set(absent)
    assert sorted(found.values()) == list(range(4, 4 + len(found)))
    assert all(pieces[i] == (bytes([byte]) if byte < 0x80 else old.LOST) for byte, i in found.items())
    tokenizer = built(of_texts(pieces, SPECIAL))
    assert tokenizer.encode("\u5348 \0") == [*(found[byte] for byte in "\u5348".encode()), found[32], found[0]]
    assert all(tokenizer.piece(i) == bytes([byte]) for byte, i in found.items())


def test_what_reads_alike_is_told_apart(host: Host) -> None:
    """The second full stop lost the space before it. Parts of characters keep spellings that no text has."""
    pieces = old.bloom_pieces()
    first = pieces.index(b"th")
    vocabulary = of_texts(pieces, SPECIAL)
    assert vocabulary.pieces[first:first + 10] == [
        b"th", b"the", "\u2581t".encode(), "\u2581the".encode(), "\ufffd\U000f0000".encode(), "\u00e9".encode(),
        "\u2581.".encode(), b"he", "\ufffd\U000f0001".encode(), "\u4e2d".encode()]
    assert [vocabulary.kinds[first + i] for i in (4, 8)] == [5, 5]
    assert len(set(vocabulary.pieces)) == len(vocabulary.pieces)
    tokenizer = built(vocabulary)
    assert tokenizer.encode("the .") == [first + 1, first + 6]
    assert tokenizer.encode("<s>\ufffd") == [*tokenizer.encode("<s>"), *tokenizer.encode("\ufffd")]
    assert tokenizer.encode("<s>") != [1] == tokenizer.encode("<s>", special=True)


def test_without_the_bytes_what_is_not_in_the_vocabulary_is_unknown() -> None:
    tokenizer = built(of_texts([b"<unk>", b"<s>", b"</s>", b"a", b"b", b"ab", b""], SPECIAL))
    assert tokenizer.encode("abc") == [5, 0]
    assert tokenizer.size == 6


@pytest.mark.parametrize("pieces", [
    [], [b""], [b"", b""], [b"\xff"], [b"a", b"a"], [b"\0\0"], [b"\xef\xbf\xbd"] * 3, [b"<unk>"], [b" "],
    [b"<unk>", b"", b"a"], old.bloom_pieces(266), old.bloom_pieces(267)[3:]])
def test_odd_lists_are_a_tokenizer_or_refused(pieces: list[bytes]) -> None:
    try:
        tokenizer = built(of_texts(pieces, SPECIAL))
    except BestiaryError as error:
        assert "\n" not in str(error)
    else:
        tokenizer.decode(tokenizer.encode("a <unk>\ufffd\0"))


@pytest.mark.parametrize("make", [lambda: [bytes([97 + i % 26]) * 250 + b"%d" % i for i in range(5000)],
                                  lambda: [b"a" * (i + 1) for i in range(3000)]])
def test_lists_that_would_take_long_are_refused_or_quickly_read(make: Callable[[], list[bytes]]) -> None:
    pieces: Any = make()
    with pytest.raises(BestiaryError, match="too long for them to be found"):
        list(found_merges(pieces))


def test_special_tokens_of_a_byte_level_list_are_those_that_nothing_makes() -> None:
    pieces = [b"<|endoftext|>", b">>TITLE<<", *(bytes([byte]) for byte in range(256)), b"<|", b"[]", b"odd piece",
              b"[PAD]"]
    vocabulary = byte_level(pieces, ["< |", "[ ]"], "gpt2")
    assert [i for i, kind in enumerate(vocabulary.kinds) if kind == 3] == [0, 1, len(pieces) - 1]
    from bestiary.plugin import PreTokenizer

    tokenizer = build_tokenizer(TokenizerMaterial(vocabulary=vocabulary), {"gpt2": PreTokenizer((GPT2,))})
    assert tokenizer.piece(len(pieces) - 2) == b"odd piece" and tokenizer.piece(0) == b""
    assert tokenizer.decode(tokenizer.encode("odd <|[] piece")) == "odd <|[] piece"
