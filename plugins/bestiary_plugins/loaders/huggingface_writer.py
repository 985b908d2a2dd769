"""Writes a canonical checkpoint as a Hugging Face folder, streaming, such that transformers loads it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.canonical import from_canonical
from bestiary.checkpoint import Checkpoint, TokenizerMaterial
from bestiary.convert import types
from bestiary.errors import BestiaryError
from bestiary.folders import replacing_folder
from bestiary.loader import Writer
from bestiary_plugins.loaders.huggingface import NAMING
from bestiary_plugins.loaders.rebuilt_tokenizer import text, tokenizer_files
from bestiary_plugins.loaders.safetensors_writer import check_plain, save_tensors
from bestiary_plugins.loaders.written_bytes import counting
from bestiary_plugins.loaders.written_family import PATH, family_of, last_part, path_of

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.host import Host

log = logging.getLogger("bestiary")
SHARD = 5_000_000_000
"""Bytes of a shard at most, as transformers has it."""
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class HuggingFaceWriter(Writer):
    """A folder: config.json, safetensors, the tokenizer's files. shard_bytes: of a file of weights, at most."""

    name = NAMING
    suffix = ""
    rank = 10
    marks = ("config.json",)

    def __init__(self, shard_bytes: int = SHARD) -> None:
        self.shard_bytes = shard_bytes

    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        check_plain(checkpoint.tensors, "a Hugging Face folder")
        family = family_of(checkpoint, host)
        with host.calling(family, f"write {path}"):
            theirs = from_canonical(checkpoint, family, NAMING)
        files: dict[str, bytes] = {"config.json": text_of(config_of(theirs)), **generation(checkpoint.tokenizer)}
        try:
            files |= tokenizer_files(checkpoint.tokenizer, family, host)
        except BestiaryError as error:
            log.warning("%s is written without a tokenizer: %s", path, error)
        with replacing_folder(path, self.marks, force) as folder:
            for name, data in files.items():
                folder.write(name, data)
            save_tensors(folder, theirs.tensors, self.shard_bytes, counting(theirs.tensors, progress))


def config_of(theirs: Checkpoint) -> dict[str, Any]:
    """config.json: as the family publishes it, with the ids of the tokenizer and the type that most weights have."""
    config = dict(theirs.config)
    main = DTYPES[next(iter(types(theirs)), "f32")]
    config.update(dict.fromkeys(config.keys() & {"dtype", "torch_dtype"} or {"torch_dtype"}, main))
    for role, token in (("bos", theirs.tokenizer.bos), ("eos", theirs.tokenizer.eos)):
        if config.get(f"{role}_token_id") is None and token is not None:
            config[f"{role}_token_id"] = token
    name = theirs.metadata.get("general.name")
    if isinstance(name, str) and last_part(name):
        config[PATH] = path_of(config, last_part(name))
    return config


def generation(material: TokenizerMaterial) -> dict[str, bytes]:
    """generation_config.json: what ends a generation. No file where nothing says."""
    ends = list(material.ends) or ([] if material.eos is None else [material.eos])
    said = {"bos_token_id": material.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {"generation_config.json": text(said)} if any(value is not None for value in said.values()) else {}


def text_of(config: Mapping[str, Any]) -> bytes:
    """Also what is null: in a config that may say something."""
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=float) + "\n").encode()
