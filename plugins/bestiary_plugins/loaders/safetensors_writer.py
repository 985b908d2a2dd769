"""Tensors as safetensors files, streaming, divided into shards of a bounded size.

Source: huggingface/safetensors, README (format); transformers for the names of shards and their index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bestiary.errors import BestiaryError
from bestiary.readahead import read_ahead
from bestiary_plugins.loaders.safetensors import DTYPES, LARGEST_HEADER

if TYPE_CHECKING:
    from bestiary.folders import NewFolder
    from bestiary.tensor import Tensor
    from bestiary_plugins.loaders.written_bytes import Done

SPELLED = {encoding.name: dtype for dtype, encoding in DTYPES.items()}
ALIGNMENT = 8


def check_plain(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises BestiaryError for a tensor that such files have no type for. what: the output, in words."""
    for name, tensor in tensors.items():
        if tensor.encoding.name not in SPELLED:
            raise BestiaryError(f"tensor {name} is {tensor.encoding.name}, and {what} holds {', '.join(SPELLED)} only: "
                                "--outtype f16 decodes it (merge: --type f16); a .gguf file holds it as it is")


def save_tensors(folder: NewFolder, tensors: Mapping[str, Tensor], shard_bytes: int, done: Done) -> None:
    """Writes model.safetensors; or, where they are more than `shard_bytes`, shards of at most that (but for a tensor
    that alone is larger), and their index."""
    shards = divided(tensors, shard_bytes)
    if len(shards) == 1:
        save_shard(folder, "model.safetensors", {name: tensors[name] for name in shards[0]}, done)
        return
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        save_shard(folder, file, {name: tensors[name] for name in names}, done)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
             "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names}}
    folder.write("model.safetensors.index.json", (json.dumps(index, indent=2) + "\n").encode())


def divided(tensors: Mapping[str, Tensor], most: int) -> Sequence[Sequence[str]]:
    """The names by shard, in their order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def save_shard(folder: NewFolder, file_name: str, tensors: Mapping[str, Tensor], done: Done) -> None:
    """One file. Wider numbers come first, so that each tensor begins at a multiple of its own."""
    names = sorted(tensors, key=lambda name: -tensors[name].encoding.block_bytes[0])
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = tensors[name]
        entries[name] = {"dtype": SPELLED[tensor.encoding.name], "shape": list(tensor.shape),
                         "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    if len(header) > LARGEST_HEADER:
        raise BestiaryError(f"{file_name} would have a header of {len(header)} bytes; {LARGEST_HEADER} are the most")
    with folder.file(file_name) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for index, _, rows in read_ahead(tensors[name] for name in names):
            file.write(rows.data)
            done(rows.nbytes, names[index])
