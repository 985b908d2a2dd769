"""Checkpoints as Meta publishes LLaMA: consolidated.NN.pth, one a rank of the training, beside a params.json.

Sources: meta-llama/llama and meta-llama/llama-models, model.py; transformers' convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.checkpoint import Checkpoint, TokenizerMaterial
from bestiary.config import flag, real, section, whole
from bestiary.encoding import F16
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary.strict_json import read_object
from bestiary.tensor import Tensor
from bestiary.transform import Join, JoinColumns
from bestiary_plugins.loaders.tokenizer_files import folder_material
from bestiary_plugins.loaders.torch_file import open_torch

if TYPE_CHECKING:
    from bestiary.host import Host

SHARD = re.compile(r"consolidated\.([0-9]{2,3})\.pth")
MOST_SHARDS = 256
PARAMS = "params.json"


class Meta(Loader):
    """A folder, or a consolidated.NN.pth in one."""

    name = "meta"

    def recognise(self, path: Path) -> int:
        try:
            if not path.is_dir():
                return 85 if SHARD.fullmatch(path.name) and path.is_file() else 0
            return 0 if not shards_of(path) else 85 if (path / PARAMS).is_file() else 60
        except OSError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_meta(path)


def open_meta(path: Path) -> Checkpoint:
    """The checkpoint of a folder, or of the one that the shard lies in. Raises BestiaryError for what is missing,
    damaged or not understood."""
    folder = path if path.is_dir() else path.parent
    if not (folder / PARAMS).is_file():
        raise BestiaryError(f"no {PARAMS} in {folder}, beside the weights")
    params = read_object(folder / PARAMS)
    params = dict(section(params, "model")) or params  # some wrap everything in {"model": {...}}
    shards = open_shards(folder)
    heads = whole(params, "n_heads", high=1 << 16)
    head_dim = whole(params, "dim") // heads
    key_rows = whole(params, "n_kv_heads", heads) * head_dim
    if not key_rows:
        raise BestiaryError(f"{folder / PARAMS}: dim = {params['dim']} is less than n_heads = {heads}")
    check_count(folder, shards, heads * head_dim)
    tensors = {name: joined(folder, name, [shard[name] for shard in shards], params["dim"], key_rows)
               for name in shards[0]}
    return Checkpoint(path, config_of(folder, params, tensors), tensors, "meta", material_of(folder),
                      source=(open_meta, (path,)))


def shards_of(folder: Path) -> dict[int, str]:
    """Rank -> file name."""
    found = (SHARD.fullmatch(file.name) for file in folder.iterdir())
    return dict(sorted((int(match[1]), match[0]) for match in found if match))


def open_shards(folder: Path) -> list[dict[str, Tensor]]:
    """The tensors of each shard, by rank. Raises BestiaryError where one is missing between the others, or holds other
    tensors than they do."""
    named = shards_of(folder)
    if not named or len(named) > MOST_SHARDS:
        raise BestiaryError(f"{folder} holds {len(named)} files consolidated.NN.pth; 1 to {MOST_SHARDS} are read")
    for rank in range(max(named)):
        if rank not in named:
            raise BestiaryError(f"{folder}: shard consolidated.{rank:02d}.pth is missing")
    shards = [open_torch(DataFile(folder / name)) for name in named.values()]
    for shard, name in zip(shards, named.values(), strict=True):
        if different := sorted(shard.keys() ^ shards[0].keys()):
            raise BestiaryError(f"{folder}: only one of {named[0]} and {name} holds tensor {different[0]}; they do not "
                                "belong together")
    return shards


def check_count(folder: Path, shards: Sequence[Mapping[str, Tensor]], rows: int) -> None:
    """Each rank holds its share of the heads, so that one shard says how many there are."""
    first = next((tensor for name, tensor in shards[0].items() if name.endswith("attention.wq.weight")), None)
    if first is None or not first.rows or rows % first.rows:
        return  # the architecture says what is missing
    count = rows // first.rows
    if count > len(shards):
        raise BestiaryError(f"{folder}: shard consolidated.{len(shards):02d}.pth is missing; the model is in {count}")
    if count < len(shards):
        raise BestiaryError(f"{folder} holds {len(shards)} files consolidated.NN.pth; the model is in {count}")


ROWS, COLUMNS, EMBEDDING, KEYS, COPIES = "rows", "columns", "embedding", "keys", "copies"
JOINS = {
    "attention.wq": ROWS, "attention.wk": KEYS, "attention.wv": KEYS, "attention.wo": COLUMNS,
    "feed_forward.w1": ROWS, "feed_forward.w2": COLUMNS, "feed_forward.w3": ROWS, "output": ROWS,
    "tok_embeddings": EMBEDDING, "attention_norm": COPIES, "ffn_norm": COPIES, "norm": COPIES, "rope": COPIES,
}
"""How a tensor is divided among the ranks, by its name without the layer and what comes after the last dot."""


def joined(folder: Path, name: str, parts: list[Tensor], width: int, key_rows: int) -> Tensor:
    """One tensor out of its shards, lazily. width: of the model. key_rows: of all heads of keys."""
    if len(parts) == 1:
        return parts[0]
    how = JOINS.get(re.sub(r"layers\.[0-9]+\.", "", name).rpartition(".")[0])
    if how is None:
        raise BestiaryError(f"{folder}: it is not known how the shards of tensor {name} are joined")
    if how == EMBEDDING:  # LLaMA 1 and 2 divide its columns, Llama 3 its rows
        how = ROWS if parts[0].columns == width else COLUMNS
    try:
        if how == KEYS:
            parts, how = without_replicas(parts, key_rows), ROWS
        if how == COPIES:
            return parts[0]
        if how == ROWS:
            return Join(tuple(part.rows for part in parts)).apply(parts)[0]
        return JoinColumns(tuple(part.columns for part in parts)).apply(parts)[0]
    except BestiaryError as error:
        raise BestiaryError(f"{folder}: tensor {name}: {error}") from None


def without_replicas(parts: list[Tensor], rows: int) -> list[Tensor]:
    """Where there are fewer heads of keys than ranks, neighbours hold the same head; each once."""
    times, rest = divmod(sum(part.rows for part in parts), rows)
    if times < 2 or rest or len(parts) % times:
        return parts
    kept = parts[::times]
    for i, part in enumerate(parts):
        if not np.array_equal(part.read(0, 1), kept[i // times].read(0, 1)):
            raise BestiaryError(f"{len(parts)} shards hold {times} times the {rows} rows of all heads, but neighbours "
                                "do not hold the same")
    return kept


CONTEXTS = {500000.0: 8192, 1000000.0: 16384}
"""rope_theta -> tokens that the model was made for: Llama 3, Code Llama. params.json does not say it."""
SCALED_CONTEXT = 131072
SCALING = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
SMALL, SMALL_FACTOR, FACTOR = 3072, 32.0, 8.0
"""use_scaled_rope means a factor of 8 in Llama 3.1 and 3.3, and of 32 in the two small models of 3.2, which are at most
this wide."""


def config_of(folder: Path, params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """In Hugging Face's keys. What params.json leaves open follows from the tensors: vocab_size is -1 there in LLaMA 1
    and 2, and the width of the feed-forward part follows by a formula that some checkpoints break."""
    try:
        heads, theta, width = whole(params, "n_heads"), real(params, "rope_theta", 10000.0), whole(params, "dim")
        layers = whole(params, "n_layers", high=10_000)
        vocabulary = whole(params, "vocab_size", -1, low=-1)
        scaled = flag(params, "use_scaled_rope")
        config: dict[str, Any] = {
            "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": whole(params, "n_kv_heads", heads),
            "rms_norm_eps": real(params, "norm_eps", 1e-5), "rope_theta": theta,
        }
        if scaled:
            factor = real(params, "rope_scaling_factor", SMALL_FACTOR if width <= SMALL else FACTOR)
            config["rope_scaling"] = {**SCALING, "factor": factor}
    except BestiaryError as error:
        raise BestiaryError(f"{folder / PARAMS}: {error}") from None
    gate, embedding = tensors.get("layers.0.feed_forward.w1.weight"), tensors.get("tok_embeddings.weight")
    if gate is not None:
        config["intermediate_size"] = gate.rows
    if vocabulary > 0 or embedding is not None:
        config["vocab_size"] = vocabulary if vocabulary > 0 else embedding.rows  # type: ignore[union-attr]
    first = embedding is not None and embedding.encoding == F16  # LLaMA 1 was published as f16, its successors as bf16
    config["max_position_embeddings"] = SCALED_CONTEXT if scaled else CONTEXTS.get(theta, 2048 if first else 4096)
    return config


def material_of(folder: Path) -> TokenizerMaterial:
    """The tokenizer beside the shards, else the one in the folder above: LLaMA's sizes share one."""
    material = folder_material(folder)
    if not material.empty:
        return material
    above = folder_material(folder.resolve().parent).files.get("tokenizer.model")
    return material if above is None else replace(material, files={**material.files, "tokenizer.model": above})
