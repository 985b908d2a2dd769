"""A base and a delta, or a base and adapters, into a file or folder that is looked at afterwards: what `merge` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bestiary.architecture import Architecture
from bestiary.backend import Progress
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.convert import convert, recipe_for
from bestiary.host import Host
from bestiary.merge import plain
from bestiary.overrides import in_place_of
from bestiary.saving import Saved, main_type, merged_for, one_or_more, save_as

SMALL = 1 << 30
"""Bytes of weights up to which a merged model is run afterwards without being asked to."""

Name = str | os.PathLike[str]


def merge_as(base: Name, delta: Name | None, adapters: Name | Sequence[Name], target: Name, host: Host, *,
             writer: str | None = None, type: str | None = None, tokenizer: Name | None = None,
             check: bool | None = None, loader: str | None = None, architecture: str | None = None,
             force: bool = False, progress: Progress | None = None) -> tuple[Saved, str]:
    """Writes base + delta, or the base with the adapters in their order, and says in a line what a look at it found.

    type: by default that of the delta, or of the base: sums are rounded to it once. check: True runs the written model
    and compares, False looks at nothing, None runs it where that is cheap. loader: of the delta, or of the base. Raises
    BestiaryError where the parts do not belong together, and where what was written is not what they make.
    """
    adapters = one_or_more(adapters)
    source = Path(base if delta is None else delta)
    below = None if delta is None else base
    if type is None:
        given = host.open(source, loader)
        type = main_type(given)
        if type not in host.quantizers:
            for name, tensor in given.tensors.items():
                plain(name, tensor, given)  # raises: nothing can be added to it, in whatever type it were written
    saved = save_as(source, target, type, host, format=writer, loader=loader, architecture=architecture,
                    tokenizer=tokenizer, base=below, adapters=adapters, force=force, progress=progress)
    if check is False:
        return saved, "not checked"
    return saved, look(saved, source, below, adapters, type, host, check, tokenizer, loader, architecture)


def look(saved: Saved, source: Path, base: Name | None, adapters: Sequence[Name], type: str, host: Host,
         check: bool | None, tokenizer: Name | None, loader: str | None, architecture: str | None) -> str:
    """The line. Raises as `merge_as`."""
    from bestiary.merge_check import check_merge

    def canonical(checkpoint: Checkpoint) -> Checkpoint:
        return to_canonical(checkpoint, family_of(checkpoint))[0]

    def family_of(checkpoint: Checkpoint) -> Architecture:
        return host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)

    wanted, _ = merged_for(type, host.open(source, loader), base, adapters, architecture, False, host, quiet=True)
    if tokenizer is not None:
        wanted = wanted.having(tokenizer=in_place_of(wanted.tokenizer, host.open(Path(tokenizer)).tokenizer))
    family = family_of(wanted)
    plain, graph = to_canonical(wanted, family)
    expected = convert(plain, graph, recipe_for(host.quantizers[type]), host)
    written, below = host.open(saved.path), host.open(Path(base)) if base is not None else host.open(source, loader)
    run = small(saved) if check is None else check
    with host.calling(family, f"check {saved.path}"):
        return str(check_merge(canonical(written), expected, canonical(below), family, family_of(below), host, run))


def small(saved: Saved) -> bool:
    return bool(sum(entry["bytes"] for entry in saved.types.values()) <= SMALL)


def heard(saved: Saved, base: Name, architecture: str | None, host: Host, loader: str | None = None) -> str:
    """What a plain text is to a merge that was converted on its way, and to its base, in a line; empty where they have
    no tokenizer. loader: of the base. Raises BestiaryError where the merge speaks garbage and the base does not."""
    from bestiary.merge_check import speech

    (written, family), (below, base_family) = (
        (to_canonical(found, kind)[0], kind) for found in (host.open(saved.path), host.open(Path(base), loader))
        for kind in [host.architecture_of(found.config, found.tokenizer, architecture)])
    with host.calling(family, f"check {saved.path}"):
        found = speech(written, below, family, base_family, host)
    return f"checked: perplexity of a plain text {found[0]:.4g}, the base's {found[1]:.4g}" if found else ""
