"""A checkpoint of any format into a file of another: what `convert` and `quantize` do."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.architecture import Architecture
from bestiary.backend import Progress
from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, check_model, extended
from bestiary.convert import convert, recipe_for, types, vectors_widened
from bestiary.difference import SAID, is_difference
from bestiary.encoding import BF16, F16, PLAIN
from bestiary.errors import BestiaryError, short
from bestiary.files import check_replaceable
from bestiary.folders import check_folder
from bestiary.host import Host
from bestiary.loader import Writer
from bestiary.merge import check_vocabulary, doubts, merged
from bestiary.model import make_tokenizer
from bestiary.ordering import say_decoded
from bestiary.overrides import check_taken, in_place_of, overridden, spelled, unused
from bestiary.recode import Rounding
from bestiary.renewal import renewed

log = logging.getLogger("bestiary")


@dataclass(frozen=True)
class Saved:
    """What was written. bytes: of the file, or of the files in the folder. types: as convert.types gives them."""

    path: Path
    bytes: int
    types: Mapping[str, Mapping[str, Any]]
    seconds: float


def save_as(source: str | os.PathLike[str], target: str | os.PathLike[str] | None, type: str | None, host: Host, *,
            format: str | None = None, loader: str | None = None, architecture: str | None = None,
            tokenizer: str | os.PathLike[str] | None = None, add: str | os.PathLike[str] | None = None,
            base: str | os.PathLike[str] | None = None, adapters: Sequence[str | os.PathLike[str]] = (),
            context: int | None = None, config: Mapping[str, Any] | None = None, pure: bool = False,
            auto: bool = False, requantize: bool = False, force: bool = False,
            progress: Progress | None = None) -> Saved:
    """Writes the checkpoint at `source` in another type and format, streaming.

    target: None names it after its type, beside the source. type: a quantizer's name; None keeps the types of a
    file that was converted before, and of a quantized checkpoint (see renewal for those that are no more), and gives
    f16 for any other, or with `auto` bf16 where most weights are bf16. format: a writer's name, by default the one of
    target's suffix, else the one of the highest rank. tokenizer: a file or checkpoint to take it from. add: a
    checkpoint of further tensors. base, adapters: what it is merged with on the way, see merge.merged. context: what
    the file says the model was made for. config: values in place of the checkpoint's own. pure, requantize: see
    convert.Recipe. Raises BestiaryError before any work where the target exists (without `force`), cannot be written,
    or is a source, and for a key or value of `config` that changes nothing.
    """
    started = time.perf_counter()
    source, adapters = Path(source), one_or_more(adapters)
    if target is not None:
        check_name(target)
    writer = choose_writer(host, target, format)
    if type is not None:
        type = host.quantizers[type].name  # a misspelt one is said before anything is read
    if target is not None:
        for given in (source, base, *adapters):
            check_target(Path(target), Path(given or source), writer, force)
    if context is not None and context < 1:
        raise BestiaryError(f"context = {context}; it must be 1 or more")
    checkpoint = host.open(source, loader)
    merging = base is not None or bool(adapters)
    if merging:
        checkpoint, type = merged_for(type, checkpoint, base, adapters, architecture, auto, host)
    check_model(checkpoint)
    if add is not None:
        checkpoint = extended(checkpoint, host.open(Path(add)))
    if tokenizer is not None:
        other = host.open(Path(tokenizer)).tokenizer
        if other.empty:
            raise BestiaryError(f"{tokenizer} has no tokenizer")
        checkpoint = checkpoint.having(tokenizer=in_place_of(checkpoint.tokenizer, other))
    said = checkpoint.config
    config = spelled(config or {}, said)
    if config:
        checkpoint = overridden(checkpoint, config)
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)
    converted = merging or checkpoint.naming == CANONICAL
    with host.calling(family, f"read {source}"):
        checkpoint, graph = to_canonical(checkpoint, family)
        check_taken(config, said, checkpoint.config, family)
    say_assumed(checkpoint, {*config, *(() if context is None else ("max_position_embeddings",))})
    before = checkpoint.tensors
    smaller = "" if type else "; --outtype TYPE --allow-requantize makes them smaller"
    rounding = Rounding()
    if type is None and not converted:
        type = plain_type(checkpoint, auto)
    checkpoint = renewed(checkpoint, writer, host, rounding, type)
    if target is None:
        target = default_target(source, writer, type or main_type(checkpoint))
        check_target(target, source, writer, force)
    if type is not None:
        checkpoint = convert(checkpoint, graph, recipe_for(host.quantizers[type], pure, requantize), host, rounding)
    else:
        checkpoint = vectors_widened(checkpoint)
    say_decoded(before, checkpoint.tensors, "no file holds", smaller)
    if context is not None:
        checkpoint = checkpoint.having(config={**checkpoint.config, "max_position_embeddings": context})
    if line := unused(config, graph):
        log.warning("%s", line)
    if is_difference(graph, checkpoint.tensors):
        log.warning("%s: %s", source, SAID)
    if checkpoint.tokenizer.empty:
        log.warning("%s has no tokenizer: what is written takes no text; --tokenizer FILE gives it one", source)
    else:
        try:
            speaks = make_tokenizer(checkpoint.tokenizer, family, checkpoint.config, host)
        except BestiaryError as error:
            speaks = None
            log.warning("what is written takes no text, for its tokenizer cannot be used (%s); --tokenizer FILE gives "
                        "another", error)
        if merging and speaks is not None:
            check_vocabulary(checkpoint, graph.vocabulary, speaks.size, family)
    target = Path(target)
    with host.calling(writer, f"write {target}"):
        writer.save(checkpoint, target, host, force=force, progress=progress)
    if rounding.numbers:
        log.warning("%s", rounding)
    return Saved(target, size_on_disk(target), types(checkpoint), time.perf_counter() - started)


def say_assumed(checkpoint: Checkpoint, chosen: Collection[str]) -> None:
    """One line on what the file does not say and nobody chose."""
    assumed = checkpoint.provenance.assumed if checkpoint.provenance else {}
    taken = [f"{key} = {short(value)}" for key, value in assumed.items() if key not in chosen]
    if taken:
        log.warning("not in %s, and taken: %s; `convert --config KEY=VALUE` sets another", checkpoint.path,
                    ", ".join(taken))


def merged_for(type: str | None, source: Checkpoint, base: str | os.PathLike[str] | None,
               adapters: Sequence[str | os.PathLike[str]], architecture: str | None, auto: bool, host: Host,
               quiet: bool = False) -> tuple[Checkpoint, str | None]:
    """The merged checkpoint, and the type that it is written in: by default that of a first conversion. Where that is
    plain, sums are rounded to it and to nothing else before. What speaks against the parts is said in a line each,
    unless `quiet`."""
    below = None if base is None else host.open(Path(base))
    above = [host.open(Path(path)) for path in adapters]
    model = below if source.adapter is not None and below is not None else source
    check_model(model)

    def family_of(checkpoint: Checkpoint) -> Architecture:
        return host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)

    if type is None and model.naming != CANONICAL:
        type = plain_type(model, auto)
    with host.calling(family_of(model), f"read {model.path}"):
        found = merged(source, below, above, family_of, PLAIN.get(type or ""))
        for line in [] if quiet else doubts(source, below, above, family_of):
            log.warning("%s", line)
        return found, type


def one_or_more(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def plain_type(checkpoint: Checkpoint, auto: bool) -> str | None:
    """The type of a first conversion; None where the checkpoint is quantized, and stays so."""
    if any(tensor.encoding.quantized for tensor in checkpoint.tensors.values()):
        return None
    return BF16.name if auto and main_type(checkpoint) == BF16.name else F16.name


def choose_writer(host: Host, target: str | os.PathLike[str] | None, format: str | None) -> Writer:
    """The writer named; else that of the target's suffix; else the one of the highest rank among those that write what
    the target is, a file or a folder."""
    if format is not None:
        return host.writers[format]
    folder = target is not None and (Path(target).is_dir() or os.fspath(target).endswith(os.sep))
    ranked = sorted((entry.item for entry in host.writers.entries() if bool(entry.item.suffix) != folder),
                    key=lambda writer: -writer.rank)
    if not ranked:
        what = f"{target} is a folder; name a file" if folder else "no plugin writes files"
        raise BestiaryError(f"{what}. Known formats: {', '.join(host.writers.names) or 'none'}")
    if target is not None:
        ranked.sort(key=lambda writer: not os.fspath(target).lower().endswith(writer.suffix or "/"))
    return ranked[0]


def default_target(source: Path, writer: Writer, type: str) -> Path:
    """Where a conversion goes that was given no name: into the source's folder."""
    return (source if source.is_dir() else source.parent) / f"{writer.stem}-{type}{writer.suffix}"


def check_name(target: str | os.PathLike[str]) -> None:
    """Raises BestiaryError for what the system takes for no name, or for one that is too long."""
    if not os.fspath(target):
        raise BestiaryError("the output's name is empty")
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise BestiaryError(f"cannot write {target}: {error.strerror}") from None
    except ValueError:
        raise BestiaryError(f"{str(target)!r} is no name of a file") from None


def check_target(target: Path, source: Path, writer: Writer, force: bool) -> None:
    """What would go wrong at the end is said at the beginning."""
    if target.exists() and source.exists() and target.samefile(source):
        raise BestiaryError(f"{target} is the input itself; name another output")
    if writer.suffix:
        check_replaceable(target, force)
    else:
        if writer.marks or not force:
            check_folder(target, writer.marks, force)
        if target.is_dir() and target.resolve() in source.resolve().parents:
            raise BestiaryError(f"{target} holds the input {source}; name another output")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise BestiaryError(f"cannot write {target}: there is no folder {target.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BestiaryError(f"cannot write {target}: the folder {target.parent} may not be written to")


def main_type(checkpoint: Checkpoint) -> str:
    """The quantized encoding of most of its bytes; the plain one of most bytes where nothing is quantized."""
    quantized = {tensor.encoding.name for tensor in checkpoint.tensors.values() if tensor.encoding.quantized}
    found = list(types(checkpoint))
    return next((name for name in found if name in quantized), found[0] if found else F16.name)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
