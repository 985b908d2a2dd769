"""LLaMA's files from before GGUF: one in planes, one in two files, one with blocks of today."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace

from bestiary.testing.damage import VALUES, Place, damaged
from tests.hostile.formats.sample import Files, Sample
from tests.loaders.ggml_llama_writer import FIELDS, OldFile, in_planes, old_file, parts_of

KINDS = (("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3), ("ggjt", 4), ("ggmf", 2))
SIZES = (*VALUES[:5], 2, 3, 7, 16, 31, 33, 64, 32001, 1 << 20)
SHAPES = ((1, 1), (0,), (1, (1 << 31) - 1), (32, 32), (64, 64), (16, 128), ((1 << 31) - 1, (1 << 31) - 1), (1, 1 << 30),
          (1 << 16, 1 << 16))
NAMES = ("", "norm.weight", "output.weight", "rope.freqs", "layers.1.attention.wq.weight", "norm.bias", "\x1b[2J",
         "layers.99999.attention.wq.weight", "layers.-1.ffn_norm.weight", "x" * 300, "tok_embeddings.weight",
         "layers.0.attention.query_key_value.weight", "transformer.word_embeddings.weight")
PIECES = (b"", b"\xff\xfe", b"x" * 100_000, b"\0", b"<unk>", b"<s>", b"H", b"\xef\xbf\xbd", "\u2581".encode() * 40,
          b"<|end|>", b"\x1b[2J")
NUMBERS = (b"\0\0\x80\x7f", b"\xff" * 8, b"\0\x7c" * 4, b"\0\0\xc0\x7f", b"\0\0\x80\xff" * 4)


def places(file: OldFile) -> tuple[list[Place], list[Place], int]:
    """Where its numbers and its records stand, and where the first tensor does."""
    at = len(file.header())
    fields, pieces = [(i, 4) for i in range(0, at, 4)], list[Place]()
    words = file.vocabulary()
    for i, word in enumerate(words):
        if i < 4 or i > len(words) - 4:  # else most damage would be to lengths of pieces
            fields.append((at, 4))
            pieces.append((at, len(word)))
        at += len(word)
    first = at
    for weight in file.tensors:
        head = 12 + 4 * len(weight.shape) + len(weight.name)
        fields += [(at + i, 4) for i in range(0, head - len(weight.name), 4)]
        padding = -(at + head) % 32 if file.container == "ggjt" else 0
        pieces.append((at, head + padding + len(weight.data)))
        at += pieces[-1][1]
    return fields, pieces, first


def restructured(file: OldFile, source: random.Random) -> tuple[str, OldFile]:
    """Damage that only a writer can do: everything else still fits."""
    tensors, pieces, scores = list(file.tensors), list(file.pieces), list(file.scores)
    i, j = source.randrange(len(tensors)), source.randrange(len(pieces))
    weight = tensors[i]
    how = source.choice(("size", "size", "kind", "shape", "code", "name", "double", "drop", "data", "turn", "piece",
                         "piece", "less", "more", "score"))
    if how == "size":
        value = source.choice(SIZES)
        file = file.having(**{source.choice(FIELDS): value - (1 << 32) * (value >> 31)})
    elif how == "kind":
        container, version = source.choice(KINDS)
        file = replace(file, container=container, version=version)
    elif how == "shape":
        shape: tuple[int, ...] = source.choice((*SHAPES, weight.shape[::-1]))
        tensors[i] = weight._replace(shape=shape)
    elif how == "code":
        tensors[i] = weight._replace(code=source.choice((*range(16), 31, 32, -1)))
    elif how == "name":
        tensors[i] = weight._replace(name=source.choice(NAMES))
    elif how == "double":
        tensors.insert(source.randrange(len(tensors)), weight)
    elif how == "drop":
        del tensors[i]
    elif how == "turn":
        source.shuffle(tensors)
    elif how == "data":  # numbers that are none, or huge
        data = bytearray(weight.data)
        at = source.randrange(len(data))
        number = source.choice(NUMBERS)[:len(data) - at]
        data[at:at + len(number)] = number
        tensors[i] = weight._replace(data=bytes(data))
    elif how == "piece":
        pieces[min(source.choice((j, 0, 1, 2, 3)), len(pieces) - 1)] = source.choice(PIECES)
    elif how == "less":
        count = source.choice((j, 1, 2, 3, 258))
        pieces, scores = pieces[:count], scores[:count]
    elif how == "more":
        pieces, scores = [*pieces, source.choice(PIECES)], [*scores, 0.0]
    else:
        scores[j] = source.choice((float("nan"), float("inf"), -float("inf"), 3e38, -0.0))
    if how in ("less", "more") and source.random() < 0.7:
        file = file.having(n_vocab=len(pieces))
    return how, replace(file, tensors=tuple(tensors), pieces=tuple(pieces), scores=tuple(scores))


def written(file: OldFile) -> bytes | None:
    """None of what cannot be written down, a number beyond its type."""
    try:
        return file.data()
    except (struct.error, OverflowError):
        return None


def damage_of(layouts: dict[str, OldFile]) -> Callable[[Files, int], tuple[str, Files]]:
    """By the bytes with the fields known, and by writing the file again with something else in it."""
    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"ggml llama {seed}")
        name = source.choice(sorted(layouts))
        if len(layouts) > 1 and source.random() < 0.02:
            return f"{name} is gone", {other: data for other, data in files.items() if other != name}
        file, words = layouts[name], list[str]()
        if source.random() < 0.5:
            for _ in range(source.choice((1, 1, 2))):
                how, changed = restructured(file, source)
                if written(changed) is None or not changed.tensors or not changed.pieces:
                    break
                file = changed
                words.append(how)
            if source.random() < 0.7 and words:
                return f"{name}: {', '.join(words)}", {**files, name: file.data()}
        fields, pieces, first = places(file)
        what, data = damaged(file.data(), seed, first + 64, fields, pieces)
        return f"{name}: {', '.join((*words, what))}", {**files, name: data}

    return damage


def sample(layouts: dict[str, OldFile]) -> Sample:
    return Sample({name: file.data() for name, file in layouts.items()}, "ggml-llama", min(layouts), damage_of(layouts))


def ggml_planar() -> Sample:
    return sample({"ggml-model.bin": in_planes(old_file("ggml", 0, 3, forward=64))})


def ggmf_parts() -> Sample:
    first, second = parts_of(old_file("ggmf", 1, 2, forward=64), 2)
    return sample({"ggml-model.bin": first, "ggml-model.bin.1": second})


def ggjt() -> Sample:
    return sample({"ggml-model.bin": old_file("ggjt", 3, 2, width=32, forward=32)})
