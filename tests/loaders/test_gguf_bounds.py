"""Arrays of a GGUF header are counted before they become lists."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary_plugins.loaders.cursor import MOST_STRINGS, Cursor
from bestiary_plugins.loaders.gguf_metadata import Metadata, Value
from bestiary_plugins.loaders.gguf_vocabulary import read_material

MANY = 1 << 24
PIECES = {"tokenizer.ggml.model": Value("str", b"gpt2"), "tokenizer.ggml.tokens": Value("str[]", [b"a", b"b"])}


@pytest.mark.parametrize(("key", "kind", "dtype", "words"), [
    ("tokenizer.ggml.token_type", "u8[]", np.uint8, "has 16777216 entries; tokenizer.ggml.tokens has 2"),
    ("tokenizer.ggml.scores", "f32[]", np.float32, "has 16777216 entries; tokenizer.ggml.tokens has 2"),
    ("bestiary.ends", "u8[]", np.uint8, "has 16777216 entries; 1024 are the most")])
def test_an_array_of_numbers_is_counted_before_it_is_a_list(key: str, kind: str, dtype: Any, words: str) -> None:
    values = {**PIECES, key: Value(kind, np.zeros(MANY, dtype))}
    tracemalloc.start()
    try:
        with pytest.raises(BestiaryError, match=words):
            read_material(Metadata("x.gguf", values))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_all_strings_of_a_header_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", 0) * (MOST_STRINGS // 2 + 1) * 2)
    cursor = Cursor(DataFile(tmp_path / "x"))
    assert len(cursor.strings(MOST_STRINGS // 2 + 1, "one")) == MOST_STRINGS // 2 + 1
    with pytest.raises(BestiaryError, match=f"{MOST_STRINGS} are the most in a header"):
        cursor.strings(MOST_STRINGS // 2 + 1, "two")
