"""What a checkpoint is, from its headers alone."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bestiary.architecture import Architecture
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Adapter, Checkpoint
from bestiary.convert import types
from bestiary.difference import SAID, is_difference
from bestiary.errors import BestiaryError, short
from bestiary.host import Host
from bestiary.loader import Loader
from bestiary.model import make_tokenizer
from bestiary.ordering import as_held
from bestiary.renewal import in_words, successors
from bestiary.saving import choose_writer, size_on_disk
from bestiary.tensor import Tensor


def inspect(path: str | os.PathLike[str], host: Host, loader: str | None = None,
            architecture: str | None = None) -> dict[str, Any]:
    """Facts as plain values (they can be JSON). What keeps the checkpoint from running stands under "problems"; only
    what keeps it from being opened raises BestiaryError."""
    path = Path(path)
    found = host.recognise(path, loader)
    checkpoint = host.open_as(found, path)
    problems: list[str] = []
    canonical: Checkpoint | None = None
    family: Architecture | None = None
    config: Any = dict(checkpoint.config)
    tensors = checkpoint.tensors
    if checkpoint.adapter is not None:
        problems.append(about(checkpoint.adapter, len(tensors)))
    elif config or tensors:
        try:
            family = host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)
            with host.calling(family, f"read {path}"):
                canonical, graph = to_canonical(checkpoint, family)
                if is_difference(graph, canonical.tensors):
                    problems.append(SAID)
            config = dict(canonical.config)
        except BestiaryError as error:
            problems.append(str(error))
    tokenizer = _tokenizer(checkpoint, family, config, problems, host)
    command, becomes = None, list[str]()
    if canonical is not None:
        given = (("--loader", loader), ("--architecture", architecture), ("--tokenizer", None if tokenizer else "FILE"))
        options = [word for name, value in given if value is not None for word in (name, value)]
        command, becomes = conversion(canonical, path, found, options, host)
    tensors = {name: as_held(tensor) for name, tensor in tensors.items()}
    counts = types(checkpoint.having(tensors=tensors))
    weights = sum(entry["weights"] for entry in counts.values())
    held = sum(entry["bytes"] for entry in counts.values())
    return {
        "path": str(path),
        "format": found.name,
        "provenance": plain(vars(checkpoint.provenance)) if checkpoint.provenance else None,
        "bytes": size_on_disk(path),
        "architecture": family.name if family else None,
        "naming": checkpoint.naming,
        "weights": weights,
        "weight_bytes": held,
        "bits_per_weight": 8 * held / weights if weights else None,
        "types": counts,
        "config": plain(config),
        "metadata": plain(dict(checkpoint.metadata)),
        "tokenizer": tokenizer,
        "chat_template": checkpoint.tokenizer.chat_template is not None,
        "tensors": [{"name": name, "shape": list(tensor.shape), "type": tensor.encoding.name, "bytes": tensor.nbytes}
                    for name, tensor in tensors.items()],
        "kinds": kinds(tensors),
        "problems": problems,
        "runs": canonical is not None and not problems,
        "convert": command,
        "becomes": becomes,
    }


def kinds(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Tensors that differ in their layer alone, together."""
    counts = Counter((re.sub(r"[.][0-9]+(?=[.])", ".*", name), tensor.encoding.name, tensor.shape)
                     for name, tensor in tensors.items())
    return [{"name": name, "tensors": count, "type": kind, "shape": list(shape)}
            for (name, kind, shape), count in counts.items()]


def conversion(canonical: Checkpoint, path: Path, loader: Loader, options: Sequence[str],
               host: Host) -> tuple[str | None, list[str]]:
    """The command that makes a file of today's of the checkpoint, None where it is one; and what becomes of encodings
    that are no more, in words."""
    try:
        writer = choose_writer(host, None, None)
        replaced = successors(canonical, writer, host)
    except BestiaryError:  # no plugin writes files, or none of its types will do
        return None, []
    if loader.name == writer.name and not replaced:
        return None, []
    out = path.with_name(f"{path.stem}{'-new' if path.suffix == writer.suffix else ''}{writer.suffix}")
    words = ["bestiary", "convert", str(path), *([] if path.is_dir() else [str(out)]), *options]
    return shlex.join(words), in_words(canonical, replaced)


def _tokenizer(checkpoint: Checkpoint, family: Architecture | None, config: Any,
               problems: list[str], host: Host) -> dict[str, Any] | None:
    material = checkpoint.tokenizer
    try:
        tokenizer = make_tokenizer(material, family, config, host)
    except BestiaryError as error:
        problems.append(str(error))
        return None
    if tokenizer is None and checkpoint.adapter is not None:
        return None
    if tokenizer is None:
        problems.append("no tokenizer; name one with --tokenizer FILE")
        return None
    vocabulary = material.vocabulary
    return {"files": sorted(material.files), "algorithm": vocabulary.algorithm if vocabulary else None,
            "size": tokenizer.size, "bos": tokenizer.bos, "eos": tokenizer.eos, "ends": sorted(tokenizer.ends),
            "add_bos": tokenizer.add_bos, "add_eos": tokenizer.add_eos}


def about(adapter: Adapter, replaced: int) -> str:
    """Why it does not run."""
    made_for = f", made for {short(adapter.base)}" if adapter.base else ""
    return (f"an adapter{made_for}: it adds to {len(adapter.added)} tensors of a model and replaces {replaced}; "
            "`merge` and `convert` take it together with its base")


def plain(value: Any) -> Any:
    """The value as JSON can hold it; long lists by their length."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if len(value) <= 64 else f"{len(value)} values"
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
