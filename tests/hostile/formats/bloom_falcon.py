"""bloomz.cpp's and ggllm.cpp's files: one in planes, one without merges, one in the last container."""

from __future__ import annotations

import random
import struct

from bestiary.testing.damage import Place, damaged
from tests.hostile.formats.sample import Files, Sample
from tests.loaders import bloom_falcon_files as old


def places(data: bytes, numbers: int, start: int, scored: bool, merges: bool, alignment: int) -> tuple[
        list[Place], list[Place]]:
    """The numbers of the header, every length, and the words before each tensor; and the records: pieces of the
    vocabulary, merges, tensors."""
    fields: list[Place] = [(4 * i, 4) for i in range(start // 4 + numbers)]
    records: list[Place] = []
    at = start + 4 * numbers

    def text(more: int) -> None:
        nonlocal at
        (length,) = struct.unpack_from("<I", data, at)
        fields.append((at, 4))
        records.append((at, 4 + length + more))
        at += 4 + length + more

    for _ in range(struct.unpack_from("<i", data, start)[0]):
        text(4 * scored)
    if merges:
        (count,) = struct.unpack_from("<i", data, at)
        fields.append((at, 4))
        at += 4
        for _ in range(2 * count):
            text(0)
    vectors = {0: 4.0, 1: 2.0, 2: 20 / 32 if alignment == 1 else 18 / 32, 3: 24 / 32}
    while at < len(data):
        first = at
        axes, length, code = struct.unpack_from("<3i", data, at)
        fields += [(at + 4 * i, 4) for i in range(3 + axes)]
        size = vectors[code]
        for axis in struct.unpack_from(f"<{axes}i", data, at + 12):
            size *= axis
        at = -(-(at + 12 + 4 * axes + length) // alignment) * alignment + int(size)
        records.append((first, at - first))
    if at != len(data):
        raise ValueError(f"the sample ends at {len(data)}, its last tensor at {at}")
    return fields, records


def sample(loader: str, data: bytes, fields: list[Place], records: list[Place]) -> Sample:
    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"{loader} {seed}")
        front = fields[:10] if source.random() < 0.4 else fields[-60:] if source.random() < 0.5 else fields
        how, changed = damaged(data, seed, 2048, front, records)
        return how, {"x.bin": changed}

    return Sample({"x.bin": data}, loader, "x.bin", damage)


def bloomz() -> Sample:
    data = old.bloom(old.q4_1)
    return sample("bloomz.cpp", data, *places(data, 6, 4, False, False, 1))


def ggllm() -> Sample:
    data = old.falcon("ggmf", 1, 40, old.q4_0)
    return sample("ggllm.cpp", data, *places(data, 7, 8, True, False, 1))


def ggcc() -> Sample:
    data = old.falcon("ggcc", 10, 7)
    return sample("ggllm.cpp", data, *places(data, 8, 8, True, True, 32))
