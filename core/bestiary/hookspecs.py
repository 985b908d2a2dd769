"""The hooks that a plugin may implement; all return values, none gets a registry to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.backend import Backend
    from bestiary.loader import Loader, Writer
    from bestiary.quantizer import Quantizer

GROUP = "bestiary"
"""The entry point group, and pluggy's project name."""
API = 1
"""The version of these hooks. A plugin may say `bestiary_api = N`; one that asks for a newer one is not loaded."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def bestiary_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Model families."""


@hookspec
def bestiary_loaders() -> Iterable[Loader]:  # type: ignore[empty-body]
    """Checkpoint formats in."""


@hookspec
def bestiary_writers() -> Iterable[Writer]:  # type: ignore[empty-body]
    """Checkpoint formats out."""


@hookspec
def bestiary_quantizers() -> Iterable[Quantizer]:  # type: ignore[empty-body]
    """Algorithms, each with the encoding it writes."""


@hookspec
def bestiary_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Ways to execute."""


@hookspec
def bestiary_commands() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Further commands: name -> "module:function", imported when it is called."""
