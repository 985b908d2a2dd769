"""What the settings files beside a tokenizer say: added tokens, and which tokens are special."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bestiary.errors import BestiaryError, short
from bestiary.strict_json import LARGEST, LARGEST_LIST, parse_object
from bestiary.table_tokenizer import MAX_PIECE, MAX_PIECES, AddedToken

Files = Mapping[str, bytes]


def refuse_pointer(data: bytes, name: str) -> None:
    """Raises BestiaryError where a Git LFS pointer stands in place of the file."""
    if data.startswith(b"version https://git-lfs"):
        raise BestiaryError(f"{name} is a Git LFS pointer and not the file itself; fetch it with git lfs pull")


def read_settings(data: bytes, name: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises BestiaryError for anything else."""
    refuse_pointer(data, name)
    return parse_object(data, name, largest=LARGEST_LIST if name == "tokenizer.json" else LARGEST)


def settings(files: Files, name: str) -> dict[str, Any]:
    """A settings file as an object, empty where it is absent."""
    return read_settings(files[name], name) if name in files else {}


def spelling(value: Any) -> str | None:
    """A token as settings files write it: its spelling, or an object that holds it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def named_token(files: Files, key: str) -> str | None:
    """The spelling of "bos_token", "eos_token" ..., None where no file says."""
    return (spelling(settings(files, "tokenizer_config.json").get(key))
            or spelling(settings(files, "special_tokens_map.json").get(key)))


def special_spellings(files: Files) -> frozenset[str]:
    """Every token that a settings file gives a role."""
    found: set[str | None] = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in settings(files, name).items():
            if key.endswith("_token"):
                found.add(spelling(value))
            elif key == "additional_special_tokens" and isinstance(value, list):
                found.update(map(spelling, value))
    return frozenset(text for text in found if text)


def added_token(value: Any, token: Any, name: str) -> AddedToken:
    """An entry of a list of added tokens, whose id may stand outside it. Raises BestiaryError where it is none."""
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12:
        token = int(token)
    text = spelling(value)
    if text is None or not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < MAX_PIECES:
        raise BestiaryError(f"{name}: {short(value, 80)} with id {short(token)} is no added token")
    if len(text) > MAX_PIECE:
        raise BestiaryError(f"{name}: added token {token} is {len(text)} characters long; "
                            f"at most {MAX_PIECE} make sense")
    flags = {key: value.get(key) is True for key in ("special", "lstrip", "rstrip", "single_word")}
    return AddedToken(token, text, **flags)


def added_tokens(files: Files) -> dict[int, AddedToken]:
    """Added tokens by id. Where files contradict one another, the one transformers reads last wins."""
    return {token.id: token for token in _added_tokens(files)}


def _added_tokens(files: Files) -> Iterator[AddedToken]:
    roles = special_spellings(files)
    for text, token in settings(files, "added_tokens.json").items():
        yield added_token({"content": text, "special": text in roles}, token, "added_tokens.json")
    yield from listed_tokens(settings(files, "tokenizer.json"))
    decoder = settings(files, "tokenizer_config.json").get("added_tokens_decoder")
    for token, value in decoder.items() if isinstance(decoder, dict) else ():
        yield added_token(value if isinstance(value, dict) else {}, token, "tokenizer_config.json")


def listed_tokens(data: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens of a tokenizer.json."""
    listed = data.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(value, dict) for value in listed):
        raise BestiaryError("tokenizer.json: added_tokens is not a list of objects")
    return [added_token(value, value.get("id"), "tokenizer.json") for value in listed]
