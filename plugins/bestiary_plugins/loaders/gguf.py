"""GGUF files: the format of llama.cpp, and the canonical one here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.architecture import COMMON_KEYS
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.loader import Loader
from bestiary.strict_json import parse_object
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import CODEBOOKS, DECODED, K_QUANTS, OF_TWO_BITS
from bestiary_plugins.loaders.gguf_config import from_keys
from bestiary_plugins.loaders.gguf_header import Header, read_header
from bestiary_plugins.loaders.gguf_layout import join_planes
from bestiary_plugins.loaders.gguf_metadata import Metadata, Value
from bestiary_plugins.loaders.gguf_types import MAGIC, encoding_of
from bestiary_plugins.loaders.gguf_vocabulary import read_material
from bestiary_plugins.loaders.git_lfs import is_pointer

if TYPE_CHECKING:
    from bestiary.host import Host

CONFIG_KEY, PLANES_KEY = "bestiary.config", "bestiary.planes"
OURS = "bestiary."
PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
MOST_PARTS = 10_000


class Gguf(Loader):
    """A .gguf file, or the first of several that a model was split into."""

    name, encodings = "gguf", (*K_QUANTS, *CODEBOOKS, *OF_TWO_BITS, *DECODED)

    def recognise(self, path: Path) -> int:
        try:
            if not path.is_file():
                return 0
            file = DataFile(path)
            if file.read(0, min(4, file.size)) == MAGIC:
                return 100
            named = path.suffix == ".gguf"
            return 100 if named and is_pointer(file) else 10 * named  # opening it says what is wrong
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_gguf(path, host)


def open_gguf(path: Path, host: Host) -> Checkpoint:
    """The checkpoint of a GGUF file, its tensors unread. Raises BestiaryError for what is damaged or not understood."""
    file = DataFile(path)
    header = read_header(file)
    metadata = header.metadata
    parts = [(file, header), *other_parts(file, header)]
    tokenizer = read_material(metadata)
    tensors: dict[str, Tensor] = {}
    for part, its in parts:
        for entry in its.tensors:
            if entry.name in tensors:
                raise BestiaryError(f"{part.path} holds tensor {entry.name}, which a part before it holds too")
            encoding = encoding_of(entry.code, host.encodings, f"{part.path}: tensor {entry.name}")
            tensors[entry.name] = FileTensor(part, entry.offset, entry.shape, encoding, entry.name)
    total = metadata.integer("split.tensors.count")
    if len(parts) > 1 and total is not None and total != len(tensors):
        raise metadata.wrong("split.tensors.count", f"is {total}; the {len(parts)} parts hold {len(tensors)} tensors")
    if (planes := metadata.text(PLANES_KEY)) is not None:
        tensors = join_planes(planes, tensors, host.encodings, f"{path}: metadata {PLANES_KEY}")
    return Checkpoint(path, read_config(metadata, tokenizer, tensors, host), tensors, CANONICAL, tokenizer,
                      {**other_facts(metadata), **file_type(metadata, tensors)}, (open_gguf, (path, host)))


def other_parts(file: DataFile, header: Header) -> list[tuple[DataFile, Header]]:
    """The other files of a model that was split, in order; none where it was not. Raises BestiaryError where the file
    is not the first, or one is missing or another's."""
    path, count, number = file.path, *place_in_split(header.metadata)
    if count == 1:
        return []
    named = PART.fullmatch(path.name)
    if number:
        first = f"{named[1]}-00001-of-{named[3]}.gguf" if named else f"the one that ends in -00001-of-{count:05d}.gguf"
        raise BestiaryError(f"{path} is part {number + 1} of a model in {count} files; open the first: {first}")
    if named is None or int(named[2]) != 1 or int(named[3]) != count:
        raise BestiaryError(f"{path} is the first of {count} files of one model; the others are found by its name, "
                            f"which must end in -00001-of-{count:05d}.gguf")
    parts = []
    for i in range(1, count):
        other = path.with_name(f"{named[1]}-{i + 1:05d}-of-{named[3]}.gguf")
        if not other.is_file():
            raise BestiaryError(f"{path} is the first of {count} files of one model; {other.name} is missing")
        part = DataFile(other)
        its = read_header(part)
        if place_in_split(its.metadata) != (count, i):
            raise BestiaryError(f"{other} does not say that it is part {i + 1} of {count}; it belongs to another model")
        parts.append((part, its))
    return parts


def place_in_split(metadata: Metadata) -> tuple[int, int]:
    """How many files the model is in, and which of them this is, from 0."""
    count = metadata.integer("split.count", high=MOST_PARTS) or 1
    number = metadata.integer("split.no") or 0
    if number >= count:
        raise metadata.wrong("split.no", f"is {number}; split.count is {count}")
    return count, number


def read_config(metadata: Metadata, tokenizer: TokenizerMaterial, tensors: Mapping[str, Tensor],
                host: Host) -> dict[str, Any]:
    """The config in Hugging Face's names: the embedded one, if any, made to agree with GGUF's keys.

    The file's architecture decides: where the config alone would lead to another family, or to none, its model_type
    becomes the architecture's name.
    """
    embedded = metadata.text(CONFIG_KEY)
    base = {} if embedded is None else parse_object(embedded, f"metadata {CONFIG_KEY}")
    architecture = metadata.text("general.architecture")
    if architecture is None:
        return base
    families = host.filed_as(architecture, base, tokenizer)
    keys = dict.fromkeys((*COMMON_KEYS, *(key for family in families for key in family.keys)))
    config = from_keys(metadata, keys, architecture, base)
    for name, token in (("bos_token_id", tokenizer.bos), ("eos_token_id", tokenizer.eos)):
        if token is not None:
            config.setdefault(name, token)
    if "token_embd.weight" in tensors:
        config.setdefault("vocab_size", tensors["token_embd.weight"].shape[0])
    if not recognised(config, tokenizer, architecture, host):
        config["model_type"] = architecture
        config.pop("architectures", None)
    return config


def recognised(config: Mapping[str, Any], tokenizer: TokenizerMaterial, architecture: str, host: Host) -> bool:
    """Whether the config leads to a family that the file's name may mean."""
    try:
        return host.architecture_of(config, tokenizer).file_name == architecture
    except BestiaryError:
        return False


def other_facts(metadata: Metadata) -> dict[str, Any]:
    """Everything short that is not about this file alone: a writer may keep it."""
    return {key: fact for key, value in metadata.items()
            if not key.startswith(("tokenizer.", OURS, "split.")) and key not in FILE_FACTS
            and (fact := plain(value)) is not None}


class FileType(int):
    """general.file_type, which names a mix of types (Q4_K_M), and the types of the matrices that it is said of: whoever
    writes these again may say it again."""

    types: Mapping[str, str]

    def still(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are matrices of that file, in their types."""
        return all(self.types.get(name) == tensor.encoding.name for name, tensor in tensors.items()
                   if len(tensor.shape) > 1)


def file_type(metadata: Metadata, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    value = metadata.get(FILE_TYPE)
    if value is None or value.kind != "u32":
        return {}
    found = FileType(int(value.value))
    found.types = {name: tensor.encoding.name for name, tensor in tensors.items() if len(tensor.shape) > 1}
    return {FILE_TYPE: found}


FILE_TYPE = "general.file_type"
FILE_FACTS = ("general.alignment", FILE_TYPE, "general.quantization_version")


def plain(value: Value) -> Any:
    """A value as Python's own type; None for an array of numbers, and for text that is none."""
    try:
        if value.kind == "str":
            return value.value.decode()
        if value.kind == "str[]":
            return [item.decode() for item in value.value]
    except UnicodeDecodeError:
        return None
    if value.kind.endswith("[]"):
        return None
    return bool(value.value) if value.kind == "bool" else float(str(value.value)) if value.kind[0] == "f" \
        else int(value.value)
