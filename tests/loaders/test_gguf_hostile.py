"""Hostile GGUF files: whatever a field holds, a file is read or refused with a BestiaryError of one line."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary_plugins.loaders.gguf import open_gguf

Part = tuple[str, bytes]


def text(name: str, value: bytes) -> list[Part]:
    return [(f"{name} length", struct.pack("<Q", len(value))), (name, value)]


def number(name: str, form: str, value: int) -> Part:
    return name, struct.pack("<" + form, value)


def key(name: str, code: int) -> list[Part]:
    return [*text(f"{name} key", name.encode()), number(f"{name} type", "I", code)]


def tensor(name: str, shape: tuple[int, ...], code: int, offset: int, rename: str | None = None) -> list[Part]:
    return [*text(f"{name} name", (rename or name).encode()), number(f"{name} dimensions", "I", len(shape)),
            *(number(f"{name} size {i}", "Q", size) for i, size in enumerate(reversed(shape))),
            number(f"{name} code", "I", code), number(f"{name} offset", "Q", offset)]


KEYS = [
    *key("general.architecture", 8), *text("architecture", b"llama"),
    *key("general.alignment", 4), number("alignment", "I", 64),
    *key("llama.block_count", 4), number("block count", "I", 1),
    *key("tokenizer.ggml.model", 8), *text("model", b"llama"),
    *key("tokenizer.ggml.tokens", 9), number("tokens type", "I", 8), number("tokens count", "Q", 3),
    *text("token 0", b"<unk>"), *text("token 1", b""), *text("token 2", b"</s>"),
    *key("tokenizer.ggml.scores", 9), number("scores type", "I", 6), number("scores count", "Q", 3),
    ("scores", bytes(12)),
    *key("tokenizer.ggml.add_bos_token", 7), ("add bos", b"\1"),
]
START = [("magic", b"GGUF"), number("version", "I", 3)]


def parts(tensors: list[list[Part]], keys: list[Part] = KEYS, count: int = 7) -> list[Part]:
    return [*START, number("tensors", "Q", len(tensors)), number("keys", "Q", count), *keys,
            *(part for entry in tensors for part in entry)]


GOOD = parts([tensor("a", (3, 4), 0, 0), tensor("b", (8,), 1, 64)])


def build(listed: list[Part], changed: dict[str, bytes] | None = None, data: int = 128, alignment: int = 64) -> bytes:
    header = b"".join((changed or {}).get(name, value) for name, value in listed)
    return header + bytes(-len(header) % alignment) + bytes(data)


def attempt(path: Path, content: bytes, host: Host) -> str | None:
    """The error's text, or None where the file is read, all of it."""
    path.write_bytes(content)
    try:
        checkpoint = open_gguf(path, host)
        for weight in checkpoint.tensors.values():
            weight.array()
    except BestiaryError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.gguf"


def test_the_file_that_the_others_are_made_of_is_read(path: Path, host: Host) -> None:
    assert attempt(path, build(GOOD), host) is None


VALUES = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS = [(name, len(value)) for name, value in GOOD
           if name in ("version", "alignment", "tensors", "keys")
           or name.endswith(("length", "type", "count", "dimensions", "code", "offset", "size 0", "size 1"))]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("name", "size"), NUMBERS)
def test_extreme_values_of_every_field_are_refused_or_harmless(path: Path, host: Host, name: str, size: int,
                                                               value: int) -> None:
    if value >= 1 << 8 * size:
        return
    error = attempt(path, build(GOOD, {name: value.to_bytes(size, "little")}), host)
    if value > 1 << 20 and name != "block count":
        assert error is not None


@pytest.mark.parametrize("pair", [("a size 0", "a size 1"), ("a size 0", "a offset"), ("b size 0", "b offset"),
                                  ("tensors", "keys"), ("tokens count", "token 0 length")])
@pytest.mark.parametrize("values", [(1 << 32, 1 << 32), (1 << 63, 2), ((1 << 64) - 1, (1 << 64) - 1), (1 << 62, 4)])
def test_pairs_whose_product_or_sum_wraps_are_refused(path: Path, host: Host, pair: tuple[str, str],
                                                      values: tuple[int, int]) -> None:
    changed = {name: value.to_bytes(8, "little") for name, value in zip(pair, values, strict=True)}
    assert attempt(path, build(GOOD, changed), host) is not None


def test_a_file_cut_off_anywhere_is_refused(path: Path, host: Host) -> None:
    whole = build(GOOD)
    for length in range(len(whole) - 48):  # the last tensor has 16 bytes, then comes padding
        assert attempt(path, whole[:length], host) is not None, length


REFUSED = [
    ("a duplicate key", parts([], [*KEYS, *key("llama.block_count", 4), number("again", "I", 1)], 8), "twice"),
    ("a duplicate tensor", parts([tensor("a", (8,), 0, 0), tensor("b", (8,), 0, 64, "a")]), "a stands there twice"),
    ("overlapping tensors", parts([tensor("a", (32,), 0, 0), tensor("b", (8,), 0, 64)]), "a and b overlap"),
    ("one place for two", parts([tensor("a", (8,), 0, 64), tensor("b", (8,), 0, 64)]), "overlap"),
    ("an unaligned offset", parts([tensor("a", (8,), 0, 32)]), "no multiple of the alignment 64"),
    ("a tensor past the end", parts([tensor("a", (8,), 0, 128)]), "tensor a .* lies outside the file"),
    ("a tensor larger than the file", parts([tensor("a", (1 << 20, 1 << 20), 0, 0)]), "lies outside the file"),
    ("no dimensions", parts([tensor("a", (), 0, 0)]), "has 0 dimensions"),
    ("five dimensions", parts([tensor("a", (1, 1, 1, 1, 1), 0, 0)]), "has 5 dimensions"),
    ("a dimension of 0", parts([tensor("a", (0, 4), 0, 0)]), "a dimension of 0"),
    ("a row that no block divides", parts([tensor("a", (2, 33), 8, 0)]), "do not divide its rows of 33"),
    ("an unknown tensor type", parts([tensor("a", (8,), 999, 0)]), "tensor a has the unknown type 999"),
    ("a removed tensor type", parts([tensor("a", (8,), 4, 0)]), "tensor a has the unknown type 4"),
    *((f"rows in the order of a kernel, {code}", parts([tensor("a", (256,), code, 0)]),
       f"tensor a is {name}: {plain} with its rows repacked .* removed it; quantize .* anew to {plain}, or run it")
      for plain, first in (("Q4_0", 31), ("IQ4_NL", 36)) for code, name in (
          (first, f"{plain}_4_4"), (first + 1, f"{plain}_4_8"), (first + 2, f"{plain}_8_8"))),
    ("nested arrays", parts([], [*key("n", 9), number("inner", "I", 9), number("count", "Q", 1)], 1), "of arrays"),
    ("an unknown value type", parts([], [*key("n", 13), ("x", bytes(8))], 1), "metadata n has the unknown type 13"),
    ("a boolean of 2", parts([], [*key("n", 7), ("x", b"\2")], 1), "neither 0 nor 1"),
    ("a key that is no text", parts([], [*text("k", b"\xff"), number("t", "I", 7), ("x", b"\1")], 1), "no UTF-8"),
    ("a tensor's name that is no text", parts([[*text("name", b"\xff"), ("rest", bytes(24))]]), "no UTF-8"),
]


@pytest.mark.parametrize(("listed", "message"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_what_is_damaged_is_refused(path: Path, host: Host, listed: list[Part], message: str) -> None:
    path.write_bytes(build(listed))
    with pytest.raises(BestiaryError, match=message):
        open_gguf(path, host)


@pytest.mark.parametrize("alignment", [0, 3, 48, 1 << 17, 1 << 31])
def test_an_alignment_that_is_none_is_refused(path: Path, host: Host, alignment: int) -> None:
    path.write_bytes(build(GOOD, {"alignment": struct.pack("<I", alignment)}))
    with pytest.raises(BestiaryError, match=r"general.alignment is \d+; it must be a power of two"):
        open_gguf(path, host)


@pytest.mark.parametrize(("start", "message"), [
    (b"GGUF" + struct.pack(">I", 3), "big-endian"), (b"GGUF" + struct.pack("<I", 4), "version 4; known: 1, 2, 3"),
    (b"ggml" + bytes(4), "no GGUF file: it begins with b'ggml'"), (b"FUGG" + bytes(4), "no GGUF file")])
def test_other_formats_are_said_in_words(path: Path, host: Host, start: bytes, message: str) -> None:
    path.write_bytes(start + build(GOOD)[8:])
    with pytest.raises(BestiaryError, match=message):
        open_gguf(path, host)


@pytest.mark.parametrize("name", ["tokens count", "token 0 length", "architecture length", "scores count", "tensors",
                                  "keys"])
def test_a_sparse_file_does_not_buy_memory(path: Path, host: Host, name: str) -> None:
    path.write_bytes(build(GOOD, {name: struct.pack("<Q", 1 << 33)}))
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    with pytest.raises(BestiaryError):
        open_gguf(path, host)


def test_random_damage_is_refused_or_harmless(path: Path, host: Host) -> None:
    whole, rng = build(GOOD), random.Random(7)
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 8, 9, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        with suppress(BestiaryError):
            attempt(path, bytes(changed), host)
