"""Pre-tokenizer rules of byte-level BPE by the names that GGUF files give them.

A rule is the regular expressions that text is split by. Sources: llama.cpp src/llama-vocab.cpp for the names, and which
of them take a piece of the vocabulary whole; the models' tokenizer.json for the expressions.
"""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.plugin import PreTokenizer

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
DIGITS = "[0-9]+"
"""What tokenizer.json calls Digits, once the text is spelled as bytes: digits of other scripts are letters then."""

WHOLE = PreTokenizer((LLAMA3,), ignore_merges=True)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), WHOLE),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((LLAMA3,))),
    "bloom": PreTokenizer((BLOOM,)),
    "falcon": PreTokenizer((PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]")),
}
"""Of rules with several names, the usual one comes first."""
