"""Where plugins are: entry points of installed distributions, and single files. Nothing is imported here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

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
    found = []
    for point in metadata.entry_points(group=group):
        about = point.dist.metadata if point.dist is not None else {"Name": "unknown", "Version": ""}
        found.append(Candidate(Origin(point.name, about["Name"], about["Version"], point.value), point.load))
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
