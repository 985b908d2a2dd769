"""Values of a config, checked for kind and range before anything is computed from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bestiary.errors import BestiaryError, short

Config = Mapping[str, Any]
LARGEST = 1 << 31


def whole(config: Config, key: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
    """An integer from `low` to `high`. Raises BestiaryError by key and value; a missing or null one needs a default."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise BestiaryError(f"the config has no {key}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BestiaryError(f"{key} = {short(value)} in the config; it must be an integer from {low} to {high}")
    return value


def real(config: Config, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
    """A finite number above `low` (itself excluded) and at most `high`."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise BestiaryError(f"the config has no {key}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        most = f" and at most {high:g}" if isinstance(value, (int, float)) and value > high else ""
        raise BestiaryError(f"{key} = {short(value)} in the config; it must be a number above {low:g}{most}")
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """True or false."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BestiaryError(f"{key} = {short(value)} in the config; it must be true or false")
    return value


def one_of(config: Config, key: str, known: Collection[str], default: str) -> str:
    """One of the known words."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, str) or value not in known:
        raise BestiaryError(f"{key} = {short(value)} is not implemented; known: {', '.join(sorted(known))}")
    return value


def words(config: Config, key: str) -> tuple[str, ...]:
    """The texts of a list; of what is none, none."""
    value = config.get(key)
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, (list, tuple)) else ()


def section(config: Config, key: str) -> Config:
    """A nested object; empty where it is missing or null."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BestiaryError(f"{key} = {short(value)} in the config; it must be an object")
    return value
