"""Damage to a file as an attacker or a bad disk would do it, each kind reproducible from a number."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

VALUES = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
"""Where readers of C go wrong: what wraps, what becomes negative, what is the largest of its type."""
NEAR = (2, 3, 7, 255, 1 << 16, 1 << 20, (1 << 32) + 1, 1 << 40, (1 << 63) - 1)
HEADER = 1024
LARGEST_GROWTH, MOST_TEXT = 1 << 16, 1 << 15
NUMBERS = (b"0", b"1", b"-1", b"2147483647", b"2147483648", b"4294967295", b"9223372036854775808",
           b"18446744073709551615", b"1e999", b"-1e999", b"1e-320", b"0.5", b"NaN", b"Infinity", b"9" * 300, b"-0",
           b"1e3")
OTHERS = (b"null", b"true", b"[]", b"{}", b'""', b"[null]", b'{"a":1}', b'"\\ud800"', b'"\\u0000"', b"[[]]", b'["x",1]')
ENDINGS = (b"\\u0000", b"\\ud83d", b"\\u202e", b"\\n", b"/../", b"\xff", b"\xc3\xa9")
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{}:,]')

Place = tuple[int, int]
"""Where something begins, and its bytes."""
Kind = Callable[[bytearray, random.Random, Place], str]


def damaged(data: bytes, seed: int, header: int | None = None, fields: Sequence[Place] = (),
            pieces: Sequence[Place] = ()) -> tuple[str, bytes]:
    """What was done, in words, and the damaged bytes; the same for the same seed.

    header: bytes at the front that tell how to read the rest; at least half of the damage is there. fields: where the
    format has its counts, lengths, offsets and types, if the caller knows. pieces: its records, such as entries of a
    table, to double, drop, swap and lay over each other.
    """
    source, changed, words = random.Random(seed), bytearray(data), []
    front = min(len(data), HEADER if header is None else header)
    text = is_text(data)
    for _ in range(source.choice((1, 1, 1, 2, 2, 4))):
        whole = source.random() < 0.3
        region = (0, len(changed) if whole else min(front, len(changed)))
        choice = source.random()
        if fields and choice < 0.55:
            words.append(hit_fields(changed, source, fields))
        elif pieces and choice < 0.65:
            words.append(move_piece(changed, source, pieces))
        elif text and choice < 0.8:
            words.append(hit_text(changed, source, (0, len(changed))))
        else:
            words.append(source.choice(KINDS)(changed, source, region))
    return ", ".join(words), bytes(changed)


def is_text(data: bytes) -> bool:
    return data.lstrip()[:1] in (b"{", b"[")


def hit_fields(data: bytearray, source: random.Random, fields: Sequence[Place]) -> str:
    """Gives one field a value it should not have, or two."""
    words = []
    for at, size in source.sample(fields, min(len(fields), source.choice((1, 1, 2)))):
        if at + size > len(data):
            continue
        old = int.from_bytes(data[at:at + size], "little")
        value = source.choice((*VALUES, *VALUES, *NEAR, old + 1, old - 1, old * 2, -old, source.getrandbits(64),
                               len(data), len(data) - at, source.randrange(len(data) + 1), source.randrange(256)))
        data[at:at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        words.append(f"field at {at} of {size} bytes = {value}")
    return " and ".join(words) or "nothing"


def move_piece(data: bytearray, source: random.Random, pieces: Sequence[Place]) -> str:
    """Doubles a record, drops it, or puts another in its place or over it."""
    (first, size), (second, length) = source.choice(pieces), source.choice(pieces)
    this, other = bytes(data[first:first + size]), bytes(data[second:second + length])
    how = source.choice(("doubled", "dropped", "replaced", "overlaid"))
    if how == "doubled":
        data[first:first] = this
    elif how == "dropped":
        del data[first:first + size]
    elif how == "replaced":
        data[first:first + size] = other
    else:
        data[first:first + min(size, length)] = other[:min(size, length)]
    return f"record at {first} {how} (by that at {second})"


def put_value(data: bytearray, source: random.Random, region: Place) -> str:
    """An integer of some width, at an aligned or any other place."""
    size = source.choice((1, 2, 4, 4, 4, 8, 8))
    if len(data) < size:
        return "nothing"
    at = place(source, region, len(data) - size + 1)
    at -= at % size * (source.random() < 0.5)
    value = source.choice((*VALUES, *NEAR)) % (1 << 8 * size)
    data[at:at + size] = value.to_bytes(size, source.choice(("little", "little", "little", "big")))
    return f"{size} bytes at {at} = {value}"


def put_pair(data: bytearray, source: random.Random, region: Place) -> str:
    return f"{put_value(data, source, region)} and {put_value(data, source, region)}"


def add_little(data: bytearray, source: random.Random, region: Place) -> str:
    """Makes a byte a little more or less: lengths and types that are nearly right."""
    if not data:
        return "nothing"
    at, by = place(source, region, len(data)), source.choice((-8, -4, -2, -1, 1, 2, 4, 8, 32))
    data[at] = (data[at] + by) % 256
    return f"byte at {at} changed by {by}"


def flip_bits(data: bytearray, source: random.Random, region: Place) -> str:
    places = [place(source, region, len(data)) for _ in range(source.choice((1, 1, 1, 2, 8)))] if data else []
    for at in places:
        data[at] ^= 1 << source.randrange(8)
    return f"bits at {places} flipped"


def fill(data: bytearray, source: random.Random, region: Place) -> str:
    """A stretch of one byte, or of noise."""
    at = place(source, region, len(data) + 1)
    size = min(source.choice((1, 2, 4, 8, 16, 64, 256)), len(data) - at)
    byte = source.choice((0, 0xFF, 0x80, 0x7F, None))
    data[at:at + size] = source.randbytes(size) if byte is None else bytes([byte]) * size
    return f"{size} bytes at {at} made {'noise' if byte is None else byte}"


def truncate(data: bytearray, source: random.Random, region: Place) -> str:
    at = place(source, region, len(data) + 1) if source.random() < 0.7 else max(len(data) - source.randrange(40), 0)
    del data[at:]
    return f"cut off at {at}"


def grow(data: bytearray, source: random.Random, region: Place) -> str:
    size = source.choice((1, 3, 4, 8, 64, 4096, LARGEST_GROWTH))
    data += source.choice((bytes(size), b"\xff" * size, source.randbytes(size), bytes(data[:size])))
    return f"{size} bytes added"


def move_chunk(data: bytearray, source: random.Random, region: Place) -> str:
    """A chunk that stands there twice, is gone, has changed places, or lies over another."""
    size = source.choice((1, 2, 4, 8, 12, 16, 24, 32, 100))
    first, second = (place(source, region, len(data) + 1) for _ in range(2))
    this, other = bytes(data[first:first + size]), bytes(data[second:second + size])
    how = source.choice(("doubled", "gone", "swapped", "overlaid"))
    if how == "doubled":
        data[second:second] = this
    elif how == "gone":
        del data[first:first + size]
    elif how == "swapped" and len(this) == len(other):
        data[first:first + size], data[second:second + size] = other, this
    else:
        data[second:second + len(this)] = this
    return f"{size} bytes at {first} {how} (with {second})"


def hit_text(data: bytearray, source: random.Random, region: Place) -> str:
    """Damage that still looks like JSON: another value in place of one, values doubled, dropped and nested."""
    found = [match.span() for match in TOKEN.finditer(data, region[0], min(sum(region), MOST_TEXT))]
    if not found:
        return flip_bits(data, source, region)
    start, stop = source.choice(found)
    if data[start:start + 1] in b"[]{}:,":
        start, stop = source.choice([span for span in found if data[span[0]:span[0] + 1] not in b"[]{}:,"] or found)
    old = bytes(data[start:stop])
    new = other_text(source, old, bytes(data[slice(*source.choice(found))]))
    data[start:stop] = new
    return f"{old[:40]!r} at {start} made {new[:40]!r} ({len(new)} bytes)"


def other_text(source: random.Random, old: bytes, another: bytes) -> bytes:
    """What stands in place of a value of JSON. another: any token of the same text."""
    choice, deep = source.randrange(12), source.choice((2, 10, 60, 300, 3000) * 4 + (100_000,))
    if choice < 4:
        return source.choice((source.choice(NUMBERS), source.choice(OTHERS), another, b""))
    if choice < 6:
        opened, closed = source.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
        return opened * deep + old + closed * deep
    if choice == 6:
        return b'"' + b"x" * source.choice((100, 5000, 70_000)) + b'"'
    if choice == 7:
        return b"[" + b",".join([old] * source.choice((0, 2, 5, 1000))) + b"]"
    if choice == 8:
        return old + b"," + old
    if old[:1] == b'"':
        return source.choice((old[:-1] + source.choice(ENDINGS) + b'"', b'"' + old[1:-1] * 2 + b'"', b'"' + old[2:]))
    return source.choice((b'"' + old + b'"', b"-" + old, old + b"0" * source.choice((1, 3, 9, 40)), old + b".5"))


def place(source: random.Random, region: Place, end: int) -> int:
    """A place in the region, before `end`."""
    start, size = region
    start = min(start, end - 1)
    return source.randrange(start, min(max(start + size, start + 1), end))


KINDS: tuple[Kind, ...] = (put_value, put_value, put_pair, put_pair, add_little, add_little, flip_bits, flip_bits, fill,
                           truncate, grow, move_chunk, move_chunk)
