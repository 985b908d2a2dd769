"""What a model will take on disk and in memory, from its config alone: before it is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from bestiary.architecture import Architecture
from bestiary.backend import Backend, Limits, Needs
from bestiary.canonical import check_causal, matches, to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial, check_model
from bestiary.config import LARGEST
from bestiary.contributions import shown
from bestiary.convert import choices, recipe_for, types, vectors_widened
from bestiary.encoding import F16, F32
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.guard import printing_to_stderr
from bestiary.guarded_checkpoint import guarded
from bestiary.host import Host
from bestiary.inspection import plain
from bestiary.loader import Loader, Writer
from bestiary.machine import memory
from bestiary.model import choose_backend
from bestiary.ordering import in_order
from bestiary.past import needed
from bestiary.quantizer import Quantizer
from bestiary.renewal import successors
from bestiary.saving import choose_writer, plain_type
from bestiary.tensor import Absent, Tensor

CONVERTING, PROGRAM = 90_000_000, 60_000_000
"""Bytes of memory that converting takes whatever the model (86 to 94 MB in benchmarks/peak_memory.py), and those of
Python and its libraries before a model is loaded; both without the tokenizer."""
HELD = 1500
"""Bytes of memory that a piece takes while a tokenizer is made: from 600 to 2,400 with three of 32,000 to 128,000."""
PIECE = 60
"""Bytes of a file that a piece of the vocabulary takes: from 42 to 78 with six of 2023 and 2024, whose own files
are kept beside the pieces."""
AS_IT_IS = "as it is"
"""In place of a type."""
BATCH = 512
"""Tokens of a prompt that are computed at once."""


def forecast(path: str | os.PathLike[str], host: Host, context: int | None = None, loader: str | None = None,
             architecture: str | None = None) -> dict[str, Any]:
    """Facts as plain values (they can be JSON); all sizes in bytes. context: tokens that a sequence holds, by default
    what the model was made for. Weights that are there need not be read; those that are not are what the config says
    they are. Raises BestiaryError for a config that leads to no model, by key and value."""
    if context is not None and not 1 <= context <= LARGEST:
        raise BestiaryError(f"context = {context}; it must be from 1 to {LARGEST}")
    path = Path(path)
    found = host.recognise(path, loader)
    checkpoint, outlined = look(found, path, host)
    check_model(checkpoint)
    converted = checkpoint.naming == CANONICAL
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)
    with host.calling(family, f"read {path}"):
        checkpoint, graph = (expected if outlined else to_canonical)(checkpoint, family, context)
    made_for = int(checkpoint.config["max_position_embeddings"])
    context = context or made_for
    writer, backend, machine = choose_writer(host, None, None), choose_backend(host, None), memory()
    bare = checkpoint.having(tokenizer=TokenizerMaterial())
    kept = size(checkpoint, writer, host) - size(bare, writer, host)
    if checkpoint.tokenizer.empty:
        kept += PIECE * graph.vocabulary
    speaks = HELD * graph.vocabulary
    weights = sum(map(prod, graph.weights.values()))
    rows, caches, work = [], dict[str, int](), 0
    for name, planned, held_as, runs in plans(bare, graph, converted, writer, backend, host):
        kinds = types(planned)
        held = sum(entry["bytes"] for entry in kinds.values())
        usual = F32.name if kinds.keys() == {F32.name} else F16.name  # as `load` has it
        needs = asked(backend, runs, held_as, limits(graph, context, usual), host)
        run = None if needs is None else needs.weights + needs.cache + needs.work + PROGRAM + speaks
        rows.append({"type": name, "bytes": size(planned, writer, host) + kept, "types": kinds,
                     "bits_per_weight": 8 * held / max(weights, 1), "run_bytes": run,
                     "runs_as": types(held_as) if differ(planned, held_as) else None,
                     "fits": None if run is None or machine is None else run <= machine})
        if needs is not None and not caches:
            work = needs.work
            caches = {kind: of.cache for kind in backend.cache_types if (
                of := asked(backend, runs, held_as, limits(graph, context, kind), host))}
    return {
        "path": str(path), "format": found.name, "architecture": family.name,
        "config": plain(dict(checkpoint.config)), "weights": weights,
        "tokenizer_bytes": kept, "tokenizer_estimated": checkpoint.tokenizer.empty,
        "made_for": made_for, "context": context, "backend": backend.name, "cache": caches, "work_bytes": work,
        "program_bytes": PROGRAM + speaks, "convert_bytes": CONVERTING + speaks, "machine_bytes": machine,
        "types": sorted(rows, key=lambda row: -row["bytes"]),
    }


def look(loader: Loader, path: Path, host: Host) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether it is an outline."""
    guard = host.calling(loader, f"open {path}")
    with guard, printing_to_stderr():
        outline: object = loader.outline(path, host)
    if outline is None:
        return host.open_as(loader, path), False
    return guarded(outline, path, guard), True


def expected(checkpoint: Checkpoint, family: Architecture, context: int | None) -> tuple[Checkpoint, Graph]:
    """What `to_canonical` will give once the weights are there. What families tell by the tensors that a checkpoint
    holds, an output matrix of its own for example, is told by the names that are known."""
    check_causal(checkpoint)
    config = family.normalise(checkpoint.config, {})
    graph = family.graph(config, context or config["max_position_embeddings"])
    if checkpoint.tensors:
        names = [name for rule in family.namings.get(checkpoint.naming, ())
                 for _, targets in matches(rule, checkpoint.tensors) for name in targets]
        config = family.normalise(checkpoint.config, {name: graph.weights.get(name, (0, 0)) for name in names})
        graph = family.graph(config, context or config["max_position_embeddings"])
    return checkpoint.having(naming=CANONICAL, config=config,
                             tensors={name: Absent(shape) for name, shape in graph.weights.items()},
                             tokenizer=family.material(checkpoint.tokenizer, config)), graph


def plans(checkpoint: Checkpoint, graph: Graph, converted: bool, writer: Writer, backend: Backend, host: Host,
          ) -> Iterator[tuple[str, Checkpoint, Checkpoint, Graph]]:
    """Every type that it may become: what is written, what runs, and the graph that is run. First itself, where it is
    quantized: what `convert` makes of it that is told no type, and what runs of it unconverted."""
    runs, tensors, _ = in_order(graph, checkpoint.tensors, backend)
    if any(tensor.quantized_as is not None for tensor in checkpoint.tensors.values()):
        yield AS_IT_IS, as_it_is(checkpoint, graph, converted, writer, host), absent(checkpoint, tensors), runs
    for name, quantizer in host.quantizers.items():
        planned = in_type(quantizer, checkpoint, graph, host)
        yield name, planned, planned, graph


def as_it_is(checkpoint: Checkpoint, graph: Graph, converted: bool, writer: Writer, host: Host) -> Checkpoint:
    """What `convert` will make of it that is told no type."""
    type = None if converted else plain_type(checkpoint, False)
    if type is not None:
        return in_type(host.quantizers[type], checkpoint, graph, host)
    try:
        replaced = successors(checkpoint, writer, host)
    except BestiaryError:  # `convert` will say it
        replaced = {}
    planned = absent(checkpoint, vectors_widened(checkpoint).tensors)
    return planned.having(tensors={name: Absent(tensor.shape, replaced[name].encoding) if name in replaced else tensor
                                   for name, tensor in planned.tensors.items()})


def differ(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether a matrix of theirs is in another encoding here than there."""
    return any(tensor.encoding != other.tensors[name].encoding for name, tensor in one.tensors.items()
               if len(tensor.shape) > 1)


def absent(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint with what is known of these tensors in place of its own."""
    return checkpoint.having(tensors={name: Absent(tensor.shape, tensor.encoding) for name, tensor in tensors.items()})


def in_type(quantizer: Quantizer, checkpoint: Checkpoint, graph: Graph, host: Host) -> Checkpoint:
    """What `convert` will make of it."""
    chosen, _ = choices(checkpoint, graph, recipe_for(quantizer), host)
    return checkpoint.having(tensors={name: Absent(tensor.shape, chosen[name].encoding)
                                      for name, tensor in checkpoint.tensors.items()})


def size(checkpoint: Checkpoint, writer: Writer, host: Host) -> int:
    """Bytes of the file."""
    with host.calling(writer, "say how large a file will be"), printing_to_stderr():
        found: object = writer.size(checkpoint, host)
    if type(found) is not int or found < 0:
        raise BestiaryError(f"{host.whose(writer)} says that a file will have {shown(found)} bytes")
    return found


def limits(graph: Graph, context: int, cache: str) -> Limits:
    """Those of a single sequence."""
    batch = context if graph.prefix_mask else min(BATCH, context)
    return Limits(context, batch=batch, cache_type_k=cache, cache_type_v=cache)


def asked(backend: Backend, graph: Graph, planned: Checkpoint, limits: Limits, host: Host) -> Needs | None:
    """What the backend says."""
    with host.calling(backend, "say what a model takes"), printing_to_stderr():
        found: object = needed(backend, graph, planned.tensors, limits)
    if not isinstance(found, (Needs, type(None))):
        raise BestiaryError(f"{host.whose(backend)} says that a model takes {shown(found)}, not Needs or None")
    return found
