"""GGUF files, written here field by field so that each can be damaged."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bestiary.encoding import Bits, Encoding, Factor, Layout
from bestiary.tensor import BlockTensor
from bestiary.testing.damage import VALUES, Place, damaged, hit_text
from bestiary_plugins.loaders.gguf_layout import to_json
from bestiary_plugins.loaders.gguf_types import TENSOR_TYPES
from tests.goldens.random_blocks import TYPES, random_blocks
from tests.hostile.formats.sample import Files, Sample

WIDTH, FORWARD, LAYERS, HEADS, KEYS_OF = 32, 64, 1, 2, 1
PIECES = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), "\u2581".encode(), b"H", b"e", b"l",
          b"o", b"He", b"ll", b"llo", b"Hello"]
U32, F32, BOOL, STR, ARRAY, U64 = 4, 6, 7, 8, 9, 10


class Key(NamedTuple):
    """A line of the metadata: its type, and the value's bytes or, of an array, those of its items and their type."""

    name: bytes
    code: int
    value: bytes | list[bytes]
    item: int = 0


class Entry(NamedTuple):
    """A tensor. offset: None for behind the one before."""

    name: bytes
    shape: tuple[int, ...]
    code: int
    data: bytes
    offset: int | None = None


class Parts(NamedTuple):
    version: int
    keys: list[Key]
    tensors: list[Entry]


def number(name: str, value: int) -> Key:
    return Key(name.encode(), U32, struct.pack("<I", value))


def text(name: str, value: str | bytes) -> Key:
    return Key(name.encode(), STR, value.encode() if isinstance(value, str) else value)


def real(name: str, value: float) -> Key:
    return Key(name.encode(), F32, struct.pack("<f", value))


def flag(name: str, value: bool) -> Key:
    return Key(name.encode(), BOOL, bytes([value]))


class Written:
    """Bytes as they come, with the places of numbers and of records."""

    def __init__(self, version: int) -> None:
        self.data, self.fields, self.pieces = bytearray(b"GGUF"), list[Place](), list[Place]()
        self.wide = 4 if version == 1 else 8
        self.number(version, 4)

    def number(self, value: int, size: int) -> None:
        self.fields.append((len(self.data), size))
        self.data += (value % (1 << 8 * size)).to_bytes(size, "little")

    def count(self, value: int) -> None:
        self.number(value, self.wide)

    def string(self, value: bytes) -> None:
        self.count(len(value))
        self.data += value

    def key(self, key: Key) -> None:
        start = len(self.data)
        self.string(key.name)
        self.number(key.code, 4)
        if isinstance(key.value, list):
            self.number(key.item, 4)
            self.count(len(key.value))
            for i, item in enumerate(key.value):
                if key.item != STR:
                    self.data += item
                elif i < 4 or i > len(key.value) - 4:  # else most damage would be to lengths of pieces
                    self.string(item)
                else:
                    self.data += len(item).to_bytes(self.wide, "little") + item
        elif key.code == STR:
            self.string(key.value)
        else:
            self.data += key.value
            self.fields.append((len(self.data) - len(key.value), len(key.value)))
        self.pieces.append((start, len(self.data) - start))

    def entry(self, entry: Entry, offset: int) -> None:
        start = len(self.data)
        self.string(entry.name)
        self.number(len(entry.shape), 4)
        for size in reversed(entry.shape):
            self.count(size)
        self.number(entry.code, 4)
        self.number(offset, 8)
        self.pieces.append((start, len(self.data) - start))


def written(parts: Parts) -> Written:
    out, at, offsets = Written(parts.version), 0, []
    out.count(len(parts.tensors)) if parts.version == 1 else out.number(len(parts.tensors), 8)
    out.count(len(parts.keys))
    for key in parts.keys:
        out.key(key)
    for entry in parts.tensors:
        offsets.append(at if entry.offset is None else entry.offset)
        out.entry(entry, offsets[-1])
        at = -(-(at + len(entry.data)) // 32) * 32
    out.data += bytes(-len(out.data) % 32)
    for entry in parts.tensors:
        out.data += entry.data + bytes(-len(entry.data) % 32)
    return out


def weight(name: str, rows: int, columns: int, code: int, rng: np.random.Generator) -> Entry:
    """code: 0 f32, 1 f16, 8 q8_0, 2 q4_0."""
    shape = (rows, columns) if rows else (columns,)
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
    if code in (0, 1):
        return Entry(name.encode(), shape, code, values.astype(np.float32 if code == 0 else np.float16).tobytes())
    size = {8: 32, 2: 16}[code]
    blocks = rng.integers(0, 256, (rows * columns // 32, 2 + size), np.uint8)
    blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
    return Entry(name.encode(), shape, code, blocks.tobytes())


def tensors(code: int, vocabulary: int) -> list[Entry]:
    rng, kv = np.random.default_rng(0), WIDTH // HEADS * KEYS_OF
    found = [weight("token_embd.weight", vocabulary, WIDTH, code, rng),
             weight("output_norm.weight", 0, WIDTH, 0, rng)]
    for name, rows, columns in (("attn_q", WIDTH, WIDTH), ("attn_k", kv, WIDTH), ("attn_v", kv, WIDTH),
                                ("attn_output", WIDTH, WIDTH), ("ffn_gate", FORWARD, WIDTH),
                                ("ffn_up", FORWARD, WIDTH), ("ffn_down", WIDTH, FORWARD)):
        found.append(weight(f"blk.0.{name}.weight", rows, columns, code, rng))
    found += [weight(f"blk.0.{name}.weight", 0, WIDTH, 0, rng) for name in ("attn_norm", "ffn_norm")]
    return found


def keys() -> list[Key]:
    return [
        text("general.architecture", "llama"), number("general.alignment", 32), number("llama.block_count", LAYERS),
        number("llama.context_length", 64), number("llama.embedding_length", WIDTH),
        number("llama.feed_forward_length", FORWARD), number("llama.attention.head_count", HEADS),
        number("llama.attention.head_count_kv", KEYS_OF), number("llama.rope.dimension_count", WIDTH // HEADS),
        real("llama.attention.layer_norm_rms_epsilon", 1e-5), real("llama.rope.freq_base", 1e4),
        Key(b"general.tags", ARRAY, [b"a", b"b"], STR)]


def sentencepiece_keys() -> list[Key]:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    return [text("tokenizer.ggml.model", "llama"), Key(b"tokenizer.ggml.tokens", ARRAY, list(PIECES), STR),
            Key(b"tokenizer.ggml.scores", ARRAY, [struct.pack("<f", -i) for i in range(len(PIECES))], F32),
            Key(b"tokenizer.ggml.token_type", ARRAY, [struct.pack("<i", kind) for kind in kinds], 5),
            number("tokenizer.ggml.bos_token_id", 1), number("tokenizer.ggml.eos_token_id", 2),
            flag("tokenizer.ggml.add_bos_token", True)]


def byte_keys() -> list[Key]:
    from bestiary.library_tokenizer import byte_alphabet

    pieces = [*(letter.encode() for letter in byte_alphabet()), b"He", b"ll", b"llo", b"Hello", b"<s>", b"</s>"]
    return [text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", "llama-bpe"),
            Key(b"tokenizer.ggml.tokens", ARRAY, pieces, STR),
            Key(b"tokenizer.ggml.token_type", ARRAY, [struct.pack("<i", 1)] * 260 + [struct.pack("<i", 3)] * 2, 5),
            Key(b"tokenizer.ggml.merges", ARRAY, [b"H e", b"l l", b"ll o", b"He llo"], STR),
            number("tokenizer.ggml.bos_token_id", 260), number("tokenizer.ggml.eos_token_id", 261),
            text("tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}")]


def restructured(parts: Parts, source: random.Random) -> tuple[str, Parts]:
    """Damage that only a writer can do: everything else still fits."""
    keys, entries = list(parts.keys), list(parts.tensors)
    i, j = source.randrange(len(keys)), source.randrange(len(entries))
    key, entry = keys[i], entries[j]
    how = source.choice(("type", "value", "value", "json", "drop key", "double key", "rename key", "nest", "array",
                         "alignment", "shape", "offset", "overlap", "double", "drop", "rename", "code", "text", "flag"))
    if how == "type":  # the value in another type of metadata, whole
        code = source.randrange(13)
        raw = source.choice((bytes(8), struct.pack("<d", 2.5), b"\xff" * 8, b"\1" + bytes(7), b"\0\0\0\x80" * 2))
        size = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1}.get(code, 8)
        some = [raw[:4]] * source.randrange(4)
        value: bytes | list[bytes] = b"2" if code == STR else some if code == ARRAY else raw[:size]
        keys[i] = Key(key.name, code, value, source.choice((4, 5, 6)))
    elif how == "value" and not isinstance(key.value, list) and key.code in (U32, F32):
        keys[i] = key._replace(value=struct.pack("<I", source.choice((*VALUES[:5], 2, 3, 5, 7, 16, 31, 33, 64, 1 << 20,
                                                                      0x7F800000, 0x7FC00000, 0xFF800000, 0x3F800000))))
    elif how == "json" and (texts := [n for n, other in enumerate(keys) if other.name.startswith(b"bestiary.")
                                     and isinstance(other.value, bytes)]):
        i = source.choice(texts)
        data = bytearray(keys[i].value)  # type: ignore[arg-type]
        hit_text(data, source, (0, len(data)))
        keys[i] = keys[i]._replace(value=bytes(data))
    elif how == "drop key":
        del keys[i]
    elif how == "double key":
        keys.append(key._replace(name=key.name + b"\0" * source.randrange(2)))
    elif how == "rename key":
        keys[i] = key._replace(name=source.choice((b"", b"\xff", b"x" * 70000, b"\x1b[2J", keys[0].name,
                                                   "\u202e".encode())))
    elif how == "nest":
        depth, head = source.choice((1, 2, 100, 5000)), struct.pack("<IQ", ARRAY, 1)
        keys[i] = Key(key.name, ARRAY, [head * depth + struct.pack("<IQ", U32, 0)], ARRAY)
    elif how == "array" and isinstance(key.value, list) and key.value:
        count = source.choice((0, 1, len(key.value) - 1, len(key.value) * 2, 100_000))
        keys[i] = key._replace(value=(key.value * (count // len(key.value) + 1))[:count])
    elif how == "alignment":
        value = struct.pack("<I", source.choice((0, 1, 3, 8, 31, 33, 64, 1 << 16, 1 << 17, 1 << 31, (1 << 32) - 1)))
        keys = [Key(b"general.alignment", U32, value), *(k for k in keys if k.name != b"general.alignment")]
    elif how == "shape":
        shape = source.choice(((), (0,), (1,) * 5, entry.shape[::-1], (*entry.shape, 1), (1, *entry.shape), (33,),
                               (1 << 32, 1 << 32), (1 << 63, 2), ((1 << 64) - 1,), (3, (1 << 62) + 1),
                               (WIDTH * 2, WIDTH // 2)))
        entries[j] = entry._replace(shape=shape)
    elif how == "offset":
        entries[j] = entry._replace(offset=source.choice((*VALUES, 32, 64, 31, (1 << 64) - 32,
                                                          (1 << 64) - len(entry.data))))
    elif how == "overlap":
        entries[j] = entry._replace(offset=source.choice((0, 32, 64)))
    elif how == "double":
        entries.insert(source.randrange(len(entries)), entry)
    elif how == "drop":
        del entries[j]
    elif how == "rename":
        entries[j] = entry._replace(name=source.choice((
            b"", entries[0].name, b"blk.99999.attn_q.weight", b"blk.-1.attn_q.weight", b"\xff", b"x" * 70000,
            b"\x1b[2J", b"blk.0.attn_q.bias", b"output.weight", b"rope_freqs.weight", b"blk.1.attn_q.weight")))
    elif how == "code":
        entries[j] = entry._replace(code=source.choice((*range(44), 1 << 31, (1 << 32) - 1)))
    elif how == "text" and (texts := [n for n, other in enumerate(keys) if other.code == STR]):
        i = source.choice(texts)
        keys[i] = keys[i]._replace(value=source.choice((
            b"", b"\0", b"\xff\xfe", b"x" * 100_000, b"{{" * 50, b"bert", b"none", b"default", b"gpt-2",
            b"{% for i in range(10**9) %}{% endfor %}")))
    else:  # numbers in the data that are none, or huge
        data = bytearray(entry.data)
        at = source.randrange(len(data))
        data[at:at + 8] = source.choice((b"\0\0\x80\x7f", b"\xff" * 8, b"\0\x7c" * 4, b"\0\0\xc0\x7f"))[:len(data) - at]
        entries[j] = entry._replace(data=bytes(data))
    return how, Parts(parts.version, keys, entries)


def damage_of(layouts: dict[str, Parts]) -> Callable[[Files, int], tuple[str, Files]]:
    """By the bytes with the fields known, and by writing the file again with something else in it."""
    whole = {name: written(parts) for name, parts in layouts.items()}

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"gguf {seed}")
        name = source.choice(sorted(files))
        this, words = whole[name], []
        if source.random() < 0.5:
            parts = layouts[name]
            for _ in range(source.choice((1, 1, 2))):
                how, parts = restructured(parts, source)
                words.append(how)
                if not parts.keys or not parts.tensors:
                    break
            this = written(parts)
            if source.random() < 0.7:
                return f"{name}: {', '.join(words)}", {**files, name: bytes(this.data)}
        what, data = damaged(bytes(this.data), seed, len(this.data) // 2, this.fields, this.pieces)
        return f"{name}: {', '.join((*words, what))}", {**files, name: data}

    return damage


def sample(layouts: dict[str, Parts]) -> Sample:
    files = {name: bytes(written(parts).data) for name, parts in layouts.items()}
    return Sample(files, "gguf", sorted(files)[0], damage_of(layouts))


def gguf_v3() -> Sample:
    return sample({"x.gguf": Parts(3, [*keys(), *byte_keys(), text("bestiary.config", json.dumps({
        "model_type": "llama", "hidden_size": WIDTH, "tie_word_embeddings": True, "rope_scaling": None}))],
        tensors(8, 262))})


def gguf_v2() -> Sample:
    return sample({"x.gguf": Parts(2, [*keys(), *sentencepiece_keys()], tensors(2, len(PIECES)))})


def gguf_v1() -> Sample:
    return sample({"x.gguf": Parts(1, [*keys(), *sentencepiece_keys()], tensors(1, len(PIECES)))})


def gguf_split() -> Sample:
    entries = tensors(0, len(PIECES))

    def part(i: int, more: list[Key], some: list[Entry]) -> Parts:
        return Parts(3, [Key(b"split.no", 2, struct.pack("<H", i)), Key(b"split.count", 2, struct.pack("<H", 2)),
                         Key(b"split.tensors.count", 5, struct.pack("<i", len(entries))), *more], some)

    return sample({"x-00001-of-00002.gguf": part(0, [*keys(), *sentencepiece_keys()], entries[:4]),
                   "x-00002-of-00002.gguf": part(1, [], entries[4:])})


TOY = Encoding("toy", 32, (16, 10), Layout(
    codes=(Bits(4, tuple(range(0, 128, 4)), 128),), group=16,
    scale=Factor("f16", Bits(16, (0, 16), 80, plane=1)), codebook=tuple(float(x) ** 3 for x in range(-8, 8)),
    minimum=Factor("f16", Bits(16, (32, 32), 80, plane=1), integer=(Bits(4, (64, 68), 80, plane=1),), bias=-2,
                   signed=True), minimum_sign=-1))


def gguf_planes() -> Sample:
    """Some matrices in an encoding of a plugin that is not there."""
    rng, entries, foreign = np.random.default_rng(1), list[Entry](), {}
    for entry in tensors(1, len(PIECES)):
        if not entry.name.startswith(b"blk.0.ffn") or len(entry.shape) < 2:
            entries.append(entry)
            continue
        rows, columns = entry.shape
        blocks = columns // 32
        foreign[entry.name.decode()] = BlockTensor(np.zeros((rows, blocks * 26), np.uint8), entry.shape, TOY)
        for plane, size in enumerate((16, 10)):
            data = rng.integers(0, 256, (rows, blocks * size), np.uint8) & 0x3F
            entries.append(Entry(entry.name + b".plane%d" % plane, data.shape, 24, data.tobytes()))
    return sample({"x.gguf": Parts(3, [*keys(), *sentencepiece_keys(), text("bestiary.planes", to_json(
        {"toy": TOY}, foreign, {}))], entries)})


def gguf_types() -> Sample:
    """Matrices in every type that has blocks of its own, those of 32 weights where rows are short."""
    width, head, rng = 256, 16, np.random.default_rng(2)
    changed = {b"llama.embedding_length": width, b"llama.feed_forward_length": 32, b"llama.rope.dimension_count": head,
               b"llama.block_count": 4}
    more = [number("llama.attention.key_length", head), number("llama.attention.value_length", head)]
    codes = {code: kind for code, kind in TENSOR_TYPES.items() if kind.name in TYPES}
    long, short = ([code for code, kind in codes.items() if (kind.block_size > 32) == large] for large in (True, False))
    entries = [weight("output_norm.weight", 0, width, 0, rng)]
    shapes = [("token_embd", len(PIECES), width)]
    for i in range(4):
        entries += [weight(f"blk.{i}.{name}.weight", 0, width, 0, rng) for name in ("attn_norm", "ffn_norm")]
        shapes += [(f"blk.{i}.{name}", rows, columns) for name, rows, columns in (
            ("attn_q", 2 * head, width), ("attn_k", head, width), ("attn_v", head, width),
            ("attn_output", width, 2 * head), ("ffn_gate", 32, width), ("ffn_up", 32, width), ("ffn_down", width, 32))]
    for name, rows, columns in shapes:
        left = long if columns == width else short
        left.append(code := left.pop(0))  # each in its turn
        kind = codes[code]
        blocks = random_blocks(kind.name, rows * columns // kind.block_size, kind.block_bytes, rng)
        entries.append(Entry(f"{name}.weight".encode(), (rows, columns), code, blocks.tobytes()))
    return sample({"x.gguf": Parts(3, [*(number(key.name.decode(), changed[key.name]) if key.name in changed else key
                                         for key in keys()), *more, *sentencepiece_keys()], entries)})
