"""What became of a plugin, as `bestiary plugins` lists it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bestiary.registry import Origin


@dataclass(frozen=True)
class PluginReport:
    """What became of a plugin. provides: kind -> names. seconds: its import took. reason, traceback: why it is set
    aside, or None. clashes: a sentence on each name that another plugin gives too."""

    plugin: str
    distribution: str
    version: str
    entry_point: str
    provides: Mapping[str, tuple[str, ...]]
    seconds: float
    reason: str | None = None
    traceback: str | None = None
    clashes: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        return Origin(self.plugin, self.distribution, self.version, self.entry_point)
