"""Bestiary: checkpoints of large language models, quantized and run on a CPU; everything that varies is a plugin."""

from __future__ import annotations

from typing import Any

from bestiary.errors import BestiaryError

__version__ = "0.1.0"
__all__ = ["BestiaryError", "__version__", "load", "load_tokenizer"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """load and load_tokenizer are imported when they are asked for: numpy would slow down `bestiary --help`."""
    if name in ("load", "load_tokenizer"):
        from bestiary import model

        return getattr(model, name)
    raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
