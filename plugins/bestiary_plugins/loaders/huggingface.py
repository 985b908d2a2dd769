"""Hugging Face folders: config.json, weights in one file or in shards, and the tokenizer's files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.checkpoint import Checkpoint, Provenance
from bestiary.errors import BestiaryError, short
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary.strict_json import LARGEST_LIST, read_object
from bestiary.tensor import Absent, Tensor
from bestiary_plugins.loaders.git_lfs import POINTER, is_pointer
from bestiary_plugins.loaders.quantized.methods import QUANTIZATION, read_quantized
from bestiary_plugins.loaders.quantized.rows import RENEWED
from bestiary_plugins.loaders.safetensors import LARGEST_HEADER, open_safetensors
from bestiary_plugins.loaders.tokenizer_files import folder_material
from bestiary_plugins.loaders.torch_file import is_torch, open_torch

if TYPE_CHECKING:
    from bestiary.host import Host

NAMING, CONFIG = "huggingface", "config.json"
MOST_LISTED = 1 << 18
"""Tensors in the index of shards; the largest known has 140,000."""


class Weights(NamedTuple):
    """A kind of weights file: what one of them is called, the index of several, what reads one, whether a file begins
    like one, and how sure that makes that it lies in such a folder."""

    single: str
    shards: str
    open: Callable[[DataFile], Mapping[str, Tensor]]
    begins: Callable[[DataFile], bool]
    sure: int


def is_safetensors(file: DataFile) -> bool:
    """Whether a header of JSON stands at its place."""
    begin = file.read(0, min(9, file.size))
    return begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= min(LARGEST_HEADER, file.size - 8)


WEIGHTS = (
    Weights("model.safetensors", "model.safetensors.index.json", open_safetensors, is_safetensors, 95),
    Weights("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch, is_torch, 60),
)
"""In the order of preference."""
UNREAD = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index")


class HuggingFace(Loader):
    """A folder, or a weights file or the config in one."""

    name = "huggingface"
    encodings = RENEWED

    def recognise(self, path: Path) -> int:
        try:
            if path.is_dir():
                config = (path / CONFIG).is_file()
                weights = any((path / name).is_file() for kind in WEIGHTS for name in (kind.single, kind.shards))
                return 90 if config and weights else 60 if weights else 50 if config else 0
            return 50 if path.name == CONFIG and path.is_file() else recognise_file(path)
        except (OSError, BestiaryError):
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_huggingface(path)

    def outline(self, path: Path, host: Host) -> Checkpoint | None:
        folder = path.parent if path.name == CONFIG else path
        if not folder.is_dir() or any(present(folder / kind.single) for kind in WEIGHTS):
            return None
        indices = (folder / kind.shards for kind in WEIGHTS)
        names = next((read_index(index) for index in indices if index.is_file()), {})
        config, material = read_config(folder), folder_material(folder)
        refuse_quantized(folder, config)
        files = {name: data for name, data in material.files.items() if not data.startswith(POINTER)}
        return Checkpoint(folder, config, dict.fromkeys(names, Absent()), NAMING,
                          replace(material, files=files))


def present(path: Path) -> bool:
    """Whether a file is there itself: a clone without Git LFS has pointers in place of the large ones."""
    return path.is_file() and not is_pointer(DataFile(path))


def recognise_file(path: Path) -> int:
    """As a loader's `recognise`: the first bytes make sure, the name alone does not."""
    file = DataFile(path)
    sure = max((kind.sure for kind in WEIGHTS if kind.begins(file)), default=0)
    named = path.suffix == ".safetensors" or re.fullmatch(r"pytorch_model.*\.bin", path.name) is not None
    return sure or (95 if named and is_pointer(file) else 10 * named)


def open_huggingface(path: Path) -> Checkpoint:
    """The checkpoint of a folder, or of the one that its weights file or config lies in. Raises BestiaryError for what
    is missing, damaged or not understood."""
    path = path.parent if path.name == CONFIG else path
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    tensors = folder_tensors(folder) if path.is_dir() else file_tensors(path)
    read = read_quantized(folder, config, tensors)
    return Checkpoint(path, read.config, read.tensors, NAMING, folder_material(folder),
                      source=(open_huggingface, (path,)), spare=read.spare,
                      provenance=Provenance(quantized=read.words) if read.words else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a folder."""
    if not os.path.lexists(folder / CONFIG):
        raise BestiaryError(f"no {CONFIG} in {folder}")
    return read_object(folder / CONFIG)


def refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BestiaryError where the config says that the weights are quantized."""
    if quantization := config.get(QUANTIZATION):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise BestiaryError(f"{folder}: {QUANTIZATION} = {short(method)}; quantized folders are not planned without "
                            "their weights")


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder. A single file wins over shards, as in transformers."""
    for kind in WEIGHTS:
        if os.path.lexists(folder / kind.single):  # what is no file of its own, DataFile says
            return dict(kind.open(DataFile(folder / kind.single)))
        if os.path.lexists(folder / kind.shards):
            return sharded_tensors(folder, kind)
    found = [name for name in UNREAD if (folder / name).is_file()]
    if found:
        raise BestiaryError(f"{folder} has its weights in {found[0]}, which is not read; "
                            f"known: {', '.join(kind.single for kind in WEIGHTS)}, whole or in shards")
    names = [name for kind in WEIGHTS for name in (kind.single, kind.shards)]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f"; to read {others[0]!r:.80} name that file" if others else ""
    raise BestiaryError(f"no weights in {folder}: neither {' nor '.join(names)}{hint}; "
                         "`inspect --plan` says from its config what they will take")


def file_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file that was named; of all shards where it is one."""
    for kind in WEIGHTS:
        index = path.parent / kind.shards
        if path.name == kind.shards or (index.is_file() and path.name in read_index(index).values()):
            return sharded_tensors(path.parent, kind)
    file = DataFile(path)
    begins = (kind for kind in WEIGHTS if kind.begins(file))
    named = (kind for kind in WEIGHTS if Path(kind.single).suffix == path.suffix)  # opening it says what is wrong
    return dict([*begins, *named, WEIGHTS[0]][0].open(file))


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> the name of the file it is in: a plain one, so that it lies in the folder itself."""
    shards: Any = read_object(path, LARGEST_LIST, MOST_LISTED).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BestiaryError(f"{path} has no weight_map")
    for tensor, shard in shards.items():
        if not plain_name(shard):
            raise BestiaryError(f"{path} puts tensor {tensor} into {shard!r:.80}, which is no plain file name")
    return shards


def plain_name(name: Any) -> bool:
    """Whether it names a file in the same folder on every system."""
    return isinstance(name, str) and 0 < len(name) <= 255 and not name.startswith(".") and name.isprintable() \
        and not set(name) & set('/\\:*?"<>|')


def sharded_tensors(folder: Path, kind: Weights) -> dict[str, Tensor]:
    """The tensors that the index lists, in its order."""
    listed = read_index(folder / kind.shards)
    shards: dict[str, Mapping[str, Tensor]] = {}
    for shard in dict.fromkeys(listed.values()):
        if not os.path.lexists(folder / shard):
            raise BestiaryError(f"shard {shard} is missing from {folder}")
        shards[shard] = kind.open(DataFile(folder / shard))
    for tensor, shard in listed.items():
        if tensor not in shards[shard]:
            raise BestiaryError(f"{folder / kind.shards} lists tensor {tensor} in {shard}, which does not hold it")
    return {tensor: shards[shard][tensor] for tensor, shard in listed.items()}
