"""The format magpie: a line of JSON, {"config": ..., "tensors": {name: [encoding, shape]}}, then their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.plugin import Writer, hookimpl

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.checkpoint import Checkpoint
    from bestiary.host import Host

bestiary_api = 1  # the version of the hooks that this is written for


class Magpie(Writer):
    name = "magpie"
    suffix = ".magpie"

    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        import json  # late, as all that --help does not need

        from bestiary.files import replacing
        from bestiary.tensor import chunks

        tensors = checkpoint.tensors
        header = {"config": dict(checkpoint.config),
                  "tensors": {name: (each.encoding.name, each.shape) for name, each in tensors.items()}}
        done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
        with replacing(path, force) as file:  # it gets its name when it is complete
            file.write(json.dumps(header, default=float).encode() + b"\n")
            for name, tensor in tensors.items():
                for start, stop in chunks(tensor):  # a few megabytes at a time
                    file.write(tensor.read(start, stop).tobytes())
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total, name)


@hookimpl
def bestiary_writers() -> Iterable[Writer]:
    return [Magpie()]
