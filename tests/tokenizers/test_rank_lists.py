"""Tokenizer files that are lists of BPE ranks: the ids are tiktoken's."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken

from bestiary.architecture import RankList
from bestiary.checkpoint import TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load_tokenizer
from bestiary.rank_list import is_rank_list, read_ranks, with_vocabulary
from bestiary.tokenizer import Tokenizer
from bestiary_plugins.architectures.llama import LLAMA3_SPECIAL
from bestiary_plugins.architectures.pre_tokenizers import LLAMA3

SMALL = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


@pytest.fixture(scope="module")
def llama3(data: Path, host: Host) -> Tokenizer:
    return load_tokenizer(data / "tokenizers" / "llama3-tokenizer.model", host)


def test_llama_3_has_tiktokens_ids(data: Path, llama3: Tokenizer, texts: list[str]) -> None:
    ranks = read_ranks((data / "tokenizers" / "llama3-tokenizer.model").read_bytes())
    special = {name: len(ranks) + i for i, name in enumerate(LLAMA3_SPECIAL)}
    original = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    assert len(texts) > 2000
    for text in texts:
        ids = llama3.encode(text)
        assert ids == original.encode(text, disallowed_special=()), repr(text)
        assert llama3.decode(ids) == text
    mixed = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert llama3.encode(mixed, special=True) == original.encode(mixed, allowed_special="all")


def test_llama_3s_special_tokens_have_their_ids(llama3: Tokenizer) -> None:
    assert llama3.size == 128256
    assert {llama3.name(i) for i in (128000, 128001, 128006, 128007, 128008, 128009)} == {
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
        "<|eot_id|>"}
    assert (llama3.bos, llama3.eos) == (128000, 128001) and llama3.ends == {128001, 128008, 128009}
    assert llama3.encode("Hi", bos=True)[0] == 128000


def test_a_list_of_another_size_is_refused_with_the_sizes_known() -> None:
    known = RankList(5, "x", ("<a>",), "<a>", "<a>")
    with pytest.raises(BestiaryError, match=r"256 BPE ranks.*known: 5"):
        with_vocabulary(TokenizerMaterial({"tokenizer.model": SMALL}), [known])
    found = with_vocabulary(TokenizerMaterial({"tokenizer.model": SMALL}, eos=3), [
        RankList(256, "x", ("<a>", "<b>"), "<a>", "<b>")])
    assert found.vocabulary is not None and not found.vocabulary.merges
    assert (found.bos, found.eos, found.ends) == (256, 3, (257,))


@pytest.mark.parametrize("data", [
    SMALL + b"!! 256\n", SMALL + b"YWI= 300\n", SMALL + b"YWI= x\n", SMALL + b"YQ== 256\n", SMALL + b"YWI=\n",
    SMALL.replace(b"AA== 0", b"YWI= 0"), SMALL + b"= 256\n", SMALL + base64.b64encode(b"x" * 5000) + b" 256\n"],
    ids=lambda data: repr(data[-12:]))
def test_a_damaged_list_is_refused(data: bytes) -> None:
    assert is_rank_list(data)
    with pytest.raises(BestiaryError):
        read_ranks(data)


def test_rules_of_all_families_serve_files_without_one(host: Host) -> None:
    assert {"llama-bpe", "llama3", "gpt-2", "qwen2", "falcon", "bloom"} <= set(host.pre_tokenizers)
    assert host.pre_tokenizers["llama-bpe"].ignore_merges and not host.pre_tokenizers["smaug-bpe"].ignore_merges
