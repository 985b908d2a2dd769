"""The tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.checkpoint import TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.tokenizer_settings import read_settings

MAX_FILE = 64 << 20
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")


def folder_material(path: Path) -> TokenizerMaterial:
    """Everything the folder says about its tokenizer; each file may be absent. Raises BestiaryError for one that is too
    large, a Git LFS pointer, or no valid JSON."""
    files = {name: data for name in TOKENIZER_FILES if (data := _read(path / name)) is not None}
    others = [found for found in sorted(path.glob("*.model")) if found.name != "tokenizer.model"]
    if "tokenizer.model" not in files and len(others) == 1 and (data := _read(others[0])) is not None:
        files["tokenizer.model"] = data  # some families' programs call it otherwise
    config, generation, tokenizer = (_settings(path / name) for name in (
        "config.json", "generation_config.json", "tokenizer_config.json"))
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    bos = [*_ids(config.get("bos_token_id")), *_ids(generation.get("bos_token_id"))]
    eos = [*_ids(config.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
    return TokenizerMaterial(
        files=files, bos=next(iter(bos), None), eos=next(iter(eos), None),
        add_bos=_flag(tokenizer.get("add_bos_token")),
        add_eos=_flag(tokenizer.get("add_eos_token")), ends=tuple(dict.fromkeys(ends)),
        chat_template=_chat_template(path, tokenizer))


def _chat_template(path: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the settings' template, of several the one called default."""
    if (data := _read(path / "chat_template.jinja")) is not None:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BestiaryError(f"{path / 'chat_template.jinja'} is not UTF-8") from None
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template
                 if isinstance(item, dict) and isinstance(item.get("name"), str)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _settings(path: Path) -> dict[str, Any]:
    data = _read(path)
    return {} if data is None else read_settings(data, str(path))


def _read(path: Path) -> bytes | None:
    """The file, or None where there is none."""
    if not os.path.lexists(path):
        return None
    file = DataFile(path)
    if file.size > MAX_FILE:
        raise BestiaryError(f"{path}: {file.size} bytes; a tokenizer's file has at most {MAX_FILE}")
    return file.read(0, file.size, "the file")


def _ids(value: Any) -> list[int]:
    """Ids of a number or a list of them; -1 and the like mean none."""
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool) and token >= 0]


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
