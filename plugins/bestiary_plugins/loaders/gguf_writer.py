"""Writes a canonical checkpoint as GGUF v3, streaming, such that llama.cpp runs it.

It carries the source's config and tokenizer files besides, since GGUF's keys lose some of what they say.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bestiary.architecture import COMMON_KEYS
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.encoding import F16, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import replacing
from bestiary.layout_json import check_addresses
from bestiary.loader import Writer
from bestiary.readahead import read_ahead
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.gguf import CONFIG_KEY, FILE_FACTS, FILE_TYPE, PLANES_KEY, FileType
from bestiary_plugins.loaders.gguf_config import to_keys
from bestiary_plugins.loaders.gguf_header import MOST_DIMENSIONS
from bestiary_plugins.loaders.gguf_layout import describe, plane_name, plane_shape, to_json
from bestiary_plugins.loaders.gguf_types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    DTYPES,
    FILE_TYPES,
    I8,
    KIND_CODES,
    MAGIC,
    STRING,
    TENSOR_CODES,
    TENSOR_TYPES,
    code_of,
)
from bestiary_plugins.loaders.gguf_vocabulary import write_material
from bestiary_plugins.loaders.written_family import PATH, family_of, name_of, path_of

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.backend import Progress
    from bestiary.host import Host

log = logging.getLogger("bestiary")
VERSION = 3
SAID_ELSEWHERE = ("dtype", "torch_dtype")
"""Keys of a config on what stands beside it: the tensors have types of their own."""
Keys = dict[str, tuple[str, Any]]


class GgufWriter(Writer):
    """A single .gguf file."""

    name = "gguf"
    suffix = ".gguf"
    stem = "ggml-model"  # llama.cpp's
    rank = 10

    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        if checkpoint.naming != CANONICAL:
            raise BestiaryError(f"GGUF holds canonical tensors, not those of naming {checkpoint.naming!r}")
        header, places = header_of(metadata_of(checkpoint, host), pieces_of(checkpoint, host))
        if line := ours_alone(checkpoint, path):
            log.warning("%s", line)
        with replacing(path, force) as file:
            file.write(header)
            write_data(file, len(header), places, checkpoint.tensors, progress)

    def holds(self, encoding: Encoding) -> bool:
        return code_of(encoding) is not None

    def size(self, checkpoint: Checkpoint, host: Host) -> int:
        pieces = pieces_of(checkpoint, host)
        header, places = header_of(metadata_of(checkpoint, host), pieces)
        return aligned(places[-1] + size_of(*pieces[-1][1:])) if pieces else len(header)


def ours_alone(checkpoint: Checkpoint, path: Path) -> str | None:
    """Says so where no other program can read the file."""
    names = dict.fromkeys(tensor.encoding.name for tensor in checkpoint.tensors.values()
                          if code_of(tensor.encoding) is None)
    return f"only Bestiary reads {path}: GGUF has no type for {', '.join(names)}; --outtype {F16.name} writes a file " \
        "that others read" if names else None


def pieces_of(checkpoint: Checkpoint, host: Host) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape and type code of all tensors of the file."""
    return [piece for name, tensor in checkpoint.tensors.items() for piece in stored(name, tensor, host)]


def stored(name: str, tensor: Tensor, host: Host) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape and type code of the tensors that a weight becomes: itself, or its planes."""
    shape = tensor.shape or (1,)
    if len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise BestiaryError(f"tensor {name} has shape {list(shape)}; GGUF holds 1 to {MOST_DIMENSIONS} dimensions, "
                            "none of them 0")
    code = code_of(tensor.encoding)
    if code is not None:
        return [(name, shape, code)]
    describe(tensor.encoding, host.encodings)  # raises where it cannot be written
    check_addresses(tensor.encoding, tensor.columns)
    return [(plane_name(name, i), plane_shape(tensor, i), TENSOR_CODES[I8.name])
            for i in range(len(tensor.encoding.block_bytes))]


def metadata_of(checkpoint: Checkpoint, host: Host) -> Keys:
    """All metadata: key -> (kind, value)."""
    config, tensors = checkpoint.config, checkpoint.tensors
    family = family_of(checkpoint, host)
    table = (*COMMON_KEYS, *family.keys)
    decided = {"general.architecture", "general.name", *FILE_FACTS,
               *(key.file.format(arch=family.file_name) for key in table)}
    keys: Keys = {
        "general.architecture": ("str", family.file_name),
        "general.name": ("str", name_of(checkpoint)),
        **{key: (kind_of(value), value) for key, value in checkpoint.metadata.items()
           if key.startswith(("general.", f"{family.file_name}.")) and key not in decided
           and kind_of(value) is not None},
        FILE_TYPE: ("u32", file_type(tensors, checkpoint.metadata.get(FILE_TYPE))),
        "general.quantization_version": ("u32", 2),
        **to_keys(config, table, family.file_name),
    }
    rows = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else None
    own = family.pre_tokenizers
    keys |= write_material(checkpoint.tokenizer, config, rows,
                           {**own, **host.pre_tokenizers, **own},  # of names of one rule the family's own comes first
                           (*family.rank_lists, *host.rank_lists.values()))
    with host.calling(family, "publish the config"):
        config = embedded(checkpoint, family, keys)
    keys[CONFIG_KEY] = ("str", json.dumps(config, ensure_ascii=False, default=float, sort_keys=True))
    foreign = {name: tensor for name, tensor in tensors.items() if code_of(tensor.encoding) is None}
    if foreign:
        keys[PLANES_KEY] = ("str", to_json(encodings_of(foreign), foreign, host.encodings))
    return {key: entry for key, entry in keys.items() if entry[1] is not None}


def embedded(checkpoint: Checkpoint, family: Architecture, keys: Keys) -> dict[str, Any]:
    """The config beside the keys: normalised, and as the family publishes it, so that the way back and again leads to
    the same. What the file says elsewhere is left out."""
    config = {**checkpoint.config, **family.published_config(checkpoint.config, checkpoint.tensors)}
    for role in ("bos", "eos"):
        if config.get(f"{role}_token_id") is None and (found := keys.get(f"tokenizer.ggml.{role}_token_id")):
            config[f"{role}_token_id"] = found[1]
    config[PATH] = path_of(config, keys["general.name"][1])
    return {key: value for key, value in config.items()
            if key not in SAID_ELSEWHERE and (key != PATH or value != keys["general.name"][1])}


def encodings_of(tensors: Mapping[str, Tensor]) -> dict[str, Encoding]:
    """The encodings by name. Raises BestiaryError where two of them share one."""
    found: dict[str, Encoding] = {}
    for name, tensor in tensors.items():
        if found.setdefault(tensor.encoding.name, tensor.encoding) != tensor.encoding:
            raise BestiaryError(f"tensor {name} is in another {tensor.encoding.name} than the tensors before it")
    return found


def kind_of(value: Any) -> Any:
    """The kind of metadata that a plain Python value is; None for what cannot be one."""
    if isinstance(value, list):
        return "str[]" if value and all(isinstance(item, str) for item in value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return "u32" if 0 <= value < 1 << 32 else "i64" if -(1 << 63) <= value < 1 << 63 else None
    return {bool: "bool", float: "f32", str: "str"}.get(type(value))


def file_type(tensors: Mapping[str, Tensor], before: object = None) -> int | None:
    """What the file said that the matrices come from, where it still holds; else the type of most weights of those that
    are quantized, or where none is of all."""
    if isinstance(before, FileType) and before.still(tensors):
        return before
    weights: dict[tuple[bool, str], int] = {}
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            kind = tensor.encoding.quantized, tensor.encoding.name
            weights[kind] = weights.get(kind, 0) + tensor.rows * tensor.columns
    return FILE_TYPES.get(max(weights, key=lambda kind: (kind[0], weights[kind]))[1]) if weights else 0


def header_of(keys: Keys, pieces: list[tuple[str, tuple[int, ...], int]]) -> tuple[bytes, list[int]]:
    """The bytes before the data, and where in the file each tensor begins."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(pieces), len(keys))]
    for key, (kind, value) in keys.items():
        parts += [string(key), struct.pack("<I", ARRAY if kind.endswith("[]") else KIND_CODES[kind]),
                  *packed(kind, value)]
    offsets, at = [], 0
    for name, shape, code in pieces:
        parts += [string(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), code, at)]
        offsets.append(at)
        at = aligned(at + size_of(shape, code))
    header = b"".join(parts)
    header += bytes(aligned(len(header)) - len(header))
    return header, [len(header) + offset for offset in offsets]


def size_of(shape: tuple[int, ...], code: int) -> int:
    return prod(shape) // TENSOR_TYPES[code].block_size * TENSOR_TYPES[code].block_bytes


def aligned(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def packed(kind: str, value: Any) -> Iterator[bytes]:
    """The bytes of a metadata value after its type."""
    if kind == "str":
        yield string(value)
    elif kind == "str[]":
        yield struct.pack("<IQ", STRING, len(value))
        yield from map(string, value)
    elif kind.endswith("[]"):
        yield struct.pack("<IQ", KIND_CODES[kind[:-2]], len(value))
        yield value if isinstance(value, bytes) else np.asarray(value, DTYPES[kind[:-2]]).tobytes()
    else:
        yield np.asarray(value, DTYPES[kind]).tobytes()


def write_data(file: IO[bytes], end: int, places: list[int], tensors: Mapping[str, Tensor],
               progress: Progress | None) -> None:
    """The data of all tensors, each read once by ranges of rows. `end` is where the file ends so far; what lies between
    tensors becomes zeros."""
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    left, parts = iter(places), []  # of each tensor: where each plane begins, and the bytes of its rows
    for tensor in tensors.values():
        sizes = [tensor.row_bytes] if code_of(tensor.encoding) is not None else \
            list(tensor.encoding.plane_bytes(tensor.columns))
        parts.append([(next(left), size) for size in sizes])
        end = parts[-1][-1][0] + tensor.rows * sizes[-1]
    names = list(tensors)
    for index, first, rows in read_ahead(tensors.values()):
        column = 0
        for start, size in parts[index]:
            file.seek(start + first * size)
            file.write(np.ascontiguousarray(rows[:, column:column + size]).data)
            column += size
        done += rows.nbytes
        if progress is not None:
            progress(done, total, names[index])
    file.truncate(aligned(end))
