"""Configs as a family's authors publish them: the same values under their own keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Config = Mapping[str, Any]


def published(config: Config, called: tuple[str, str], without: Iterable[str] = (),
              renamed: Mapping[str, str] | None = None, **said: Any) -> dict[str, Any]:
    """The config of a model type and class. without: keys that only the normalised one has. renamed: keys -> what they
    are called there. said: what is said beside."""
    renamed = renamed or {}
    kept = {key: value for key, value in config.items() if key not in {*without, *renamed}}
    return {**kept, **{theirs: config[ours] for ours, theirs in renamed.items()}, "model_type": called[0],
            "architectures": [called[1]], **said}


def share(part: int, whole: int, said: Any) -> float:
    """The factor by which `int(whole * factor)` is the part; as it was said, where that does it."""
    if isinstance(said, (int, float)) and int(whole * said) == part:
        return float(said)
    exact = part / whole
    return exact if int(whole * exact) == part else (part + 0.5) / whole
