"""The format newt: a line of JSON, {"config": ..., "shapes": {name: shape}}, then the tensors as f32."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.plugin import F32, BestiaryError, Loader, hookimpl

if TYPE_CHECKING:
    from bestiary.checkpoint import Checkpoint
    from bestiary.host import Host

bestiary_api = 1  # the version of the hooks that this is written for
LARGEST_HEADER = 1 << 20


class Newt(Loader):
    name = "newt"

    def recognise(self, path: Path) -> int:
        return 90 if path.suffix == ".newt" and path.is_file() else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_file(path)


def open_file(path: Path) -> Checkpoint:
    from bestiary.checkpoint import Checkpoint  # late, as all that needs numpy
    from bestiary.files import DataFile, FileTensor
    from bestiary.strict_json import parse_object

    file = DataFile(path)
    line, end, _ = file.read(0, min(file.size, LARGEST_HEADER), "header").partition(b"\n")
    header = parse_object(line, f"{path}: its first line")
    config, shapes = header.get("config"), header.get("shapes")
    if not end or not isinstance(config, dict) or not isinstance(shapes, dict):
        raise BestiaryError(f"{path}: its first line must hold the objects config and shapes, and end")
    tensors, offset = {}, len(line) + 1
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
            raise BestiaryError(f"{path}: tensor {name} has the shape {shape}; a list of sizes above 0 is wanted")
        tensors[name] = FileTensor(file, offset, tuple(shape), F32, name)  # raises where the file ends before it
        offset += 4 * prod(shape)
    return Checkpoint(path, config, tensors, "huggingface", source=(open_file, (path,)))


@hookimpl
def bestiary_loaders() -> Iterable[Loader]:
    return [Newt()]
