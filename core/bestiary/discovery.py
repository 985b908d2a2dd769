"""Where plugins are: entry points of installed distributions, and single files. Nothing is imported here."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from bestiary.errors import BestiaryError
from bestiary.registry import Origin, normal

OWN = "bestiary"
"""The distribution whose plugins are always there, and first."""


@dataclass(frozen=True)
class Candidate:
    """A plugin that is not imported yet. load: imports it and returns the object that has the hooks."""

    origin: Origin
    load: Callable[[], object]


def installed(group: str, names: Sequence[str] | None) -> list[Candidate]:
    """The plugins of installed distributions: our own, then third parties by name; of these only the ones in `names`
    (of distributions or of entry points) unless that is None. Raises BestiaryError for a name that is not installed,
    and where our own plugins are missing."""
    try:
        found = [_candidate(point, point.dist) for point in metadata.entry_points(group=group)]
    except Exception:  # one damaged file of any distribution ends the whole listing: each alone, then
        found = list(_one_by_one(group))
    found.sort(key=lambda candidate: (normal(candidate.origin.distribution), candidate.origin.plugin))
    own = [candidate for candidate in found if normal(candidate.origin.distribution) == OWN]
    others = [candidate for candidate in found if normal(candidate.origin.distribution) != OWN]
    if not own:
        raise BestiaryError("bestiary is not installed, so its own plugins cannot be found: "
                            "run `pip install -e .` in its source folder")
    if names is not None:
        wanted = {normal(name) for name in names}
        called = {candidate: {normal(candidate.origin.distribution), normal(candidate.origin.plugin)}
                  for candidate in others}
        if missing := sorted(wanted.difference({OWN}, *called.values())):
            listed = ", ".join(sorted({candidate.origin.distribution for candidate in others})) or "none"
            raise BestiaryError(f"plugin {missing[0]!r} is asked for (BESTIARY_PLUGINS) and not installed; "
                                f"installed: {listed}")
        others = [candidate for candidate in others if called[candidate] & wanted]
    return own + others


def _one_by_one(group: str) -> Iterator[Candidate]:
    """As importlib.metadata lists them; a distribution that cannot be read is a plugin that cannot be loaded, unless
    it is readable enough to say that it has none."""
    seen = set()
    for distribution in metadata.distributions():
        origin = _origin(distribution, "", "entry_points.txt")
        if normal(origin.distribution) in seen:  # an older one further down the path
            continue
        seen.add(normal(origin.distribution))
        try:
            if f"[{group}]" in (distribution.read_text("entry_points.txt") or ""):
                yield from [_candidate(point, distribution) for point in distribution.entry_points
                            if point.group == group]
        except Exception as error:
            yield Candidate(origin, partial(_damaged, error))


def _candidate(point: metadata.EntryPoint, distribution: metadata.Distribution | None) -> Candidate:
    return Candidate(_origin(distribution, point.name, point.value), partial(_load_point, point))


def _origin(distribution: metadata.Distribution | None, plugin: str, value: str) -> Origin:
    """A distribution whose METADATA is damaged or gone is called by the folder that it should stand in."""
    folder = Path(str(getattr(distribution, "_path", "unknown"))).stem  # no public name leads there
    name, _, version = folder.partition("-")
    with contextlib.suppress(Exception):
        about: Any = distribution.metadata if distribution is not None else {}
        name, version = str(about["Name"] or name), str(about["Version"] or version)
    return Origin(plugin or name, name, version, value)


def _load_point(point: metadata.EntryPoint) -> object:
    if not re.fullmatch(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\]\s*)?", point.value):
        raise ImportError(f"its entry point is {point.value!r}, not \"module\" or \"module:object\"")
    return point.load()


def _damaged(error: Exception) -> object:
    raise ImportError(f"what pip wrote of it is damaged: {error}") from error


def one_file(file: str) -> Candidate:
    """The plugin that a single Python file is. Raises BestiaryError where there is no such file."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise BestiaryError(f"--plugin {file}: " + ("there is no such file" if path.suffix == ".py" else
                                                    "a plugin is a file with the suffix .py"))
    return Candidate(Origin(path.stem, path.name, "", str(path)), partial(_load_file, path))


def _load_file(path: Path) -> object:
    """Imports the file under a name that follows from its path alone, so that what it defines can be pickled and found
    again by a process that loads the same file. A file that is loaded already is not loaded twice: its classes must
    stay the same objects."""
    import hashlib  # late: only who loads a file needs it

    name = f"bestiary_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
