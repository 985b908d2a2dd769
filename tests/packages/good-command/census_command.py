"""`bestiary census`: the spread of a model's weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from bestiary.host import Host
from bestiary.tensor import Tensor, chunks


def census(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint: a file or a folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the weights of each tensor: how many, their root mean square, the largest magnitude."""
    host = context.find_object(Host) or Host()
    counted = {name: count(tensor) for name, tensor in host.open(model).tensors.items()}
    if as_json:
        print(json.dumps(counted))
        return
    for name, its in counted.items():
        print(f"{name:<48}{its['weights']:>12}{its['rms']:>12.5f}{its['largest']:>12.5f}")


def count(tensor: Tensor) -> dict[str, Any]:
    """Reads the tensor once, by ranges of rows."""
    squares, largest = 0.0, 0.0
    for start, stop in chunks(tensor):
        rows = tensor.decode(start, stop).astype("f8")
        squares, largest = squares + float((rows * rows).sum()), max(largest, float(abs(rows).max()))
    weights = tensor.rows * tensor.columns
    return {"weights": weights, "rms": math.sqrt(squares / max(1, weights)), "largest": largest}
