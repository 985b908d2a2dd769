"""Regular expressions that byte-level BPE splits text by, which tokenizers of several families share (Oniguruma).

Sources: the models' tokenizer.json; openai/gpt-2 src/encoder.py.
"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
DIGITS = "[0-9]+"
"""What tokenizer.json calls Digits, once the text is spelled as bytes: digits of other scripts are letters then."""
