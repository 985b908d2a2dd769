"""The config of a model in GGUF's metadata keys, and back, by the tables of keys that core and families own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bestiary.architecture import Key
from bestiary.errors import BestiaryError, short
from bestiary_plugins.loaders.gguf_metadata import LIMITS, Metadata


def lookup(config: Mapping[str, Any], path: str) -> Any:
    """A value by its key; dots lead into nested objects. None where there is none."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def store(config: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value by its key; dots lead into nested objects, which are copied."""
    first, _, rest = path.partition(".")
    if not rest:
        config[first] = value
        return
    inner = config.get(first)
    config[first] = dict(inner) if isinstance(inner, Mapping) else {}
    store(config[first], rest, value)


def file_value(key: Key, config: Mapping[str, Any]) -> Any:
    """What the config gives for a metadata key, of the key's kind; None where it gives nothing."""
    value = lookup(config, key.config)
    if value is not None and key.to_file is not None:
        value = key.to_file(value)
    return None if value is None else checked(value, key.kind, f"{key.config} = {short(value)}")


def checked(value: Any, kind: str, what: str) -> Any:
    """The value, if it is of the kind, as reading it back would give it. Raises BestiaryError naming `what`."""
    if kind.endswith("[]"):
        if not isinstance(value, (list, tuple)):
            raise BestiaryError(f"{what} cannot be written as {kind}; it must be a list")
        return [checked(item, kind[:-2], what) for item in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind in LIMITS and isinstance(value, float) and value.is_integer():
        value, whole = int(value), True
    if kind in LIMITS and whole and LIMITS[kind][0] <= value <= LIMITS[kind][1]:
        return value
    if kind == "f32" and (whole or isinstance(value, float)) and abs(value) < 3.4e38:
        return float(str(np.float32(value)))
    if (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    raise BestiaryError(f"{what} cannot be written as {kind}")


def to_keys(config: Mapping[str, Any], keys: Iterable[Key], architecture: str) -> dict[str, tuple[str, Any]]:
    """Metadata key -> (kind, value) for all that the config gives."""
    found = {key.file.format(arch=architecture): (key.kind, file_value(key, config)) for key in keys}
    return {name: (kind, value) for name, (kind, value) in found.items() if value is not None}


def from_keys(metadata: Metadata, keys: Iterable[Key], architecture: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """The config `base`, made to agree with the metadata keys. A value of the base that says the same as the key is
    kept: it may be more exact, or hold more. Raises BestiaryError where two keys give one value differently."""
    config, given = dict(base), dict[str, tuple[str, Any]]()
    for key in keys:
        name = key.file.format(arch=architecture)
        value = metadata.get_kind(name, key.kind)
        if value is None or says(base, key, value):
            continue
        if key.from_file is not None:
            try:
                value = key.from_file(value)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise metadata.wrong(name, f"is {short(value)}, which is not understood: {error}") from None
        if value is None:
            continue
        other, earlier = given.setdefault(key.config, (name, value))
        if earlier != value:
            raise metadata.wrong(name, f"gives {key.config} = {short(value)}, and {other} gives {short(earlier)}")
        store(config, key.config, value)
    return config


def says(config: Mapping[str, Any], key: Key, value: Any) -> bool:
    """Whether the config, written to the file, gives this value for the key."""
    try:
        return bool(file_value(key, config) == value)
    except (BestiaryError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return False  # the embedded config is input too: what the table of keys cannot convert is replaced
