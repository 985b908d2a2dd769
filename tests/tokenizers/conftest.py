"""What the tokenizer tests share: texts of all kinds, and small tokenizers made on the spot."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from bestiary.plugin import PreTokenizer

WRITTEN = (
    "", " ", "  ", "a", "Hello, world!", " Hello", "Hello ", "  two  spaces   three ", "\n", "\n\n", "\t\tx", "a\r\nb",
    "It's 12:30; don't pay $3,456.78 for 1000000 things 12 123 1234.", "UPPER lower CamelCase snake_case ROT13",
    "你好，世界！今天天气怎么样？", "人工智能助手 ChatGLM-6B", "繁體中文與简体中文",
    "日本語のテキスト 한국어 العربية עברית हिन्दी",
    "👋🏽 emoji 👩‍👩‍👧‍👦 🇨🇳 ☃️",
    "def main():\n    print('hello world')\t# greeting\n\n\nif x==1:\n\treturn {**a, 'b': [1, 2]}\n",
    "\x00\x01\x02\x1b[0m\x7f\x80\x85",
    "e\u0301 \u00e9 \ufb01 \u2126 \ufeff bom \u200b zero \u00a0 nbsp \u3000 wide \u2028 line",
    "\U0010ffff\U00020000\ue000\ufffd\uffff", "<s> </s> <unk> <0x0A> <|endoftext|> >>TITLE<< [PAD] [INST]",
    "x" * 300, " " * 90,    "½ ²³¹ ¼¾ ٣٤٥ １２３", "a" * 50 + "！" * 50,
)
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     .,", "".join(map(chr, range(1, 256))),
    "the of and to in a is that 的一是在不了有和人这中大为上个国",
    "".join(map(chr, range(0x4E00, 0x5200))), "0123456789 ,.%$-", " \n\t\r",
    "👋😀🎉🇨🇳\u200d\ufe0f ab", "<>|s/[]_{}();=\"'`\\ tn",
)
CORPUS = ["the cat sat on the mat", "a dog and a cat went to the market", "hello world, hello <x> there",
          "numbers 1 22 333 and 4444", "the quick brown fox jumps over the lazy dog", "你好 世界 你好"] * 20


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Written ones of each kind, and 2,000 random ones."""
    source = random.Random(20240501)
    found = list(WRITTEN)
    for i in range(2000):
        letters = ALPHABETS[i % len(ALPHABETS)] if i % 9 else "".join(
            chr(code) for code in (source.randrange(1, 0x11000) for _ in range(30)) if not 0xD800 <= code < 0xE000)
        found.append("".join(source.choice(letters) for _ in range(source.randrange(1, 60))))
    return found


@pytest.fixture(scope="session")
def falcon_rule() -> PreTokenizer:
    """Falcon's splits, without those inside the bytes of a character: no piece of its vocabulary crosses them."""
    return PreTokenizer((
        r"[\p{P}\$\+<=>\^~\|`]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "[0-9]+", "[0-9][0-9][0-9]"))


@pytest.fixture(scope="session")
def small_model() -> bytes:
    """A sentencepiece model of 400 pieces, with a user-defined one and a second control piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        user_defined_symbols=["<x>"], control_symbols=["<turn>"], minloglevel=2)
    return model.getvalue()


@pytest.fixture(scope="session")
def small_unigram() -> bytes:
    """A unigram model without byte pieces, which replaces and squeezes characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="unigram", vocab_size=80,
        hard_vocab_limit=False, minloglevel=2)
    return model.getvalue()


@pytest.fixture(scope="session")
def small_json() -> dict[str, Any]:
    """A byte-level tokenizer.json as Llama 3's: BOS by the post-processor, special tokens behind the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<bos>", "<eos>", tokenizers.AddedToken("<|user|>", rstrip=True, special=True),
                                  tokenizers.AddedToken("<pad>", lstrip=True, special=True),
                                  tokenizers.AddedToken("word", single_word=True, special=True), "<|user|>!"])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", size)])
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found
