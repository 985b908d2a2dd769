"""What a user says in place of a checkpoint's own words: values of its config, and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bestiary.architecture import COMMON_KEYS, Architecture
from bestiary.checkpoint import Checkpoint, TokenizerMaterial
from bestiary.config import whole
from bestiary.errors import BestiaryError, short
from bestiary.graph import Graph

IDS = {"bos_token_id": "bos", "eos_token_id": "eos"}
"""Keys of a config that stand with the tokenizer too."""
EPS = "rms_norm_eps"
SOME_EPS = re.compile(r"[a-z_]*eps(ilon)?")


def overridden(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with values of its config replaced, as `spelled` gives them; of the ids that begin and end a text,
    its tokenizer's too."""
    for key in IDS.keys() & config.keys():
        whole(config, key, low=0)
    ids = {role: config[key] for key, role in IDS.items() if key in config}
    return checkpoint.having(config={**checkpoint.config, **config}, tokenizer=replace(checkpoint.tokenizer, **ids))


def spelled(config: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, that for the norms under the name which the checkpoint's config has for it."""
    names = [key for key in own if SOME_EPS.fullmatch(key)]
    if EPS not in config or EPS in own or len(names) != 1:
        return config
    return {names[0] if key == EPS else key: value for key, value in config.items()}


def check_taken(wanted: Mapping[str, Any], given: Mapping[str, Any], normal: Mapping[str, Any],
                family: Architecture) -> None:
    """Raises BestiaryError where a value in place of the checkpoint's own changes nothing: a key that neither the
    checkpoint nor its family knows, or what follows from something else."""
    known = {*given, *IDS, *(key.config for key in (*COMMON_KEYS, *family.keys))}
    for key, value in wanted.items():
        if key not in known:
            raise BestiaryError(f"{short(key)} is no key of this config; known: {', '.join(sorted(known))}")
        if key in normal and not isinstance(value, Mapping) and normal[key] != value:
            raise BestiaryError(f"{key} = {short(value)} is not taken: {short(normal[key])} follows from the rest")


def unused(config: Mapping[str, Any], graph: Graph) -> str | None:
    """In words, a value that no operation of the graph takes."""
    if "rope_theta" in config and all(node.op != "rope" for node in graph.nodes):
        return f"rope_theta = {config['rope_theta']} changes nothing: this model's positions are not rotated"
    return None


def in_place_of(own: TokenizerMaterial, other: TokenizerMaterial) -> TokenizerMaterial:
    """Another's tokenizer for the same model. Which ids begin and end a text a tokenizer's own file often does not say:
    then they stay."""
    return replace(other, bos=own.bos if other.bos is None else other.bos,
                   eos=own.eos if other.eos is None else other.eos, ends=other.ends or own.ends)
