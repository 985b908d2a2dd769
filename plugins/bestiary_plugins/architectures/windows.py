"""Which layers see a window of the last positions only, as configs list them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bestiary.config import one_of, whole
from bestiary.errors import BestiaryError, short

Config = Mapping[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"


def sliding_window(config: Config, default: int = 0) -> int | None:
    """The width of the window; None (in files also 0) for no window. default: where the config says nothing."""
    if "sliding_window" in config and config["sliding_window"] is None:
        return None
    return whole(config, "sliding_window", default, low=0) or None


def layer_types(config: Config, slides: Callable[[int], bool]) -> list[str]:
    """For each layer what it sees. slides: whether layer i has the window, where the config does not list them."""
    layers = whole(config, "num_hidden_layers", high=10_000)
    given = config.get("layer_types")
    if given is None:
        return [SLIDING if slides(i) else FULL for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers:
        raise BestiaryError(f"layer_types = {short(given)} in the config; it must list the {layers} layers")
    return [one_of({"layer_types": kind}, "layer_types", (FULL, SLIDING), FULL) for kind in given]


def window_of(config: Config, i: int) -> int:
    """What `attention` of layer i is told, by a normalised config."""
    return (config["sliding_window"] or 0) if config["layer_types"][i] == SLIDING else 0
