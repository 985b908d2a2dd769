"""What a writer calls a model: its family, whose names and keys it writes, and its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.checkpoint import Checkpoint
    from bestiary.host import Host

PATH = "_name_or_path"
"""Where a config says where the model came from."""


def family_of(checkpoint: Checkpoint, host: Host) -> Architecture:
    """The one that the checkpoint's GGUF named, else the one that claims it."""
    named = checkpoint.metadata.get("general.architecture")
    families = host.filed_as(named, checkpoint.config, checkpoint.tokenizer) if isinstance(named, str) else []
    return families[0] if len(families) == 1 else host.architecture_of(checkpoint.config, checkpoint.tokenizer)


def name_of(checkpoint: Checkpoint) -> str:
    """What the model is called: as the source says, else like its file or folder."""
    said = checkpoint.metadata.get("general.name") or checkpoint.config.get(PATH)
    if name := last_part(said):
        return name
    path = checkpoint.path.absolute()
    return path.name if path.is_dir() else path.stem


def path_of(config: Mapping[str, Any], name: str) -> str:
    """What the config says of where the model came from, if it is of that name; else the name."""
    said = config.get(PATH)
    return said if isinstance(said, str) and last_part(said) == name else name


def last_part(said: Any) -> str:
    """Of a path the last part; empty where there is none."""
    return said.rstrip("/").rpartition("/")[2] if isinstance(said, str) and said.strip("/.") else ""
