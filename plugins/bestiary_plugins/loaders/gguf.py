"""GGUF files: the format of llama.cpp, and the canonical one here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.architecture import COMMON_KEYS, Key
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.gguf_config import from_keys
from bestiary_plugins.loaders.gguf_header import Header, read_header
from bestiary_plugins.loaders.gguf_layout import join_planes
from bestiary_plugins.loaders.gguf_metadata import Metadata, Value
from bestiary_plugins.loaders.gguf_types import MAGIC, encoding_of
from bestiary_plugins.loaders.gguf_vocabulary import read_material
from bestiary_plugins.loaders.git_lfs import is_pointer
from bestiary_plugins.loaders.strict_json import parse_object

if TYPE_CHECKING:
    from bestiary.host import Host

CONFIG_KEY, PLANES_KEY = "bestiary.config", "bestiary.planes"
OURS = "bestiary."


class Gguf(Loader):
    """A single .gguf file."""

    name = "gguf"

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
    parts = metadata.integer("split.count") or 1
    if parts > 1:
        raise BestiaryError(f"{path} is one part of a GGUF model that was split into {parts} files, which is not read; "
                            "llama.cpp's `llama-gguf-split --merge` joins them")
    tokenizer = read_material(metadata)
    tensors = read_tensors(file, header, host.encodings)
    return Checkpoint(path, read_config(metadata, tokenizer, tensors, host), tensors, CANONICAL, tokenizer,
                      other_facts(metadata), (open_gguf, (path, host)))


def read_tensors(file: DataFile, header: Header, known: Mapping[str, Encoding]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        entry.name: FileTensor(file, entry.offset, entry.shape,
                               encoding_of(entry.code, known, f"{file.path}: tensor {entry.name}"), entry.name)
        for entry in header.tensors}
    planes = header.metadata.text(PLANES_KEY)
    if planes is None:
        return tensors
    return join_planes(planes, tensors, known, f"{file.path}: metadata {PLANES_KEY}")


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
    family = host.architectures.get(architecture)
    keys: tuple[Key, ...] = (*COMMON_KEYS, *(family.keys if family else ()))
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
    """Whether the config leads to the family that the file names."""
    try:
        return architecture in host.architectures \
            and host.architecture_of(config, tokenizer) is host.architectures[architecture]
    except BestiaryError:
        return False


def other_facts(metadata: Metadata) -> dict[str, Any]:
    """Everything short that is not about this file alone: a writer may keep it."""
    return {key: fact for key, value in metadata.items()
            if not key.startswith(("tokenizer.", OURS, "split.")) and key not in FILE_FACTS
            and (fact := plain(value)) is not None}


FILE_FACTS = ("general.alignment", "general.file_type", "general.quantization_version")


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
