"""Writes a canonical checkpoint as Meta publishes LLaMA, streaming: one shard, params.json, tokenizer.model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.canonical import from_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError, short
from bestiary.folders import replacing_folder
from bestiary.loader import Writer
from bestiary_plugins.loaders.meta import PARAMS, config_of
from bestiary_plugins.loaders.rebuilt_tokenizer import tokenizer_files
from bestiary_plugins.loaders.safetensors_writer import check_plain
from bestiary_plugins.loaders.torch_writer import save_torch
from bestiary_plugins.loaders.written_bytes import counting
from bestiary_plugins.loaders.written_family import family_of

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.backend import Progress
    from bestiary.host import Host
    from bestiary.tensor import Tensor

log = logging.getLogger("bestiary")
NAMING, STEM = "meta", "consolidated.00"
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
NO_DIFFERENCE = {"max_position_embeddings", "model_type", "tie_word_embeddings"}
"""Keys that may differ between a model and the same in this form."""
MULTIPLES = (256, 512, 1024, 2048, 4096)
"""Of which the published models' feed forward is a multiple."""


class MetaWriter(Writer):
    """A folder with everything in one shard. Of families whose tensors Meta has names for, and only where params.json
    can say all that the graph depends on."""

    name = NAMING
    suffix = ""
    marks = (PARAMS,)

    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False,
             progress: Progress | None = None) -> None:
        check_plain(checkpoint.tensors, "a .pth file")
        family = family_of(checkpoint, host)
        if NAMING not in family.namings:
            known = ", ".join(name for name, other in host.architectures.items() if NAMING in other.namings)
            raise BestiaryError(f"{family.name} models have no form that Meta publishes; {known} have one. --format "
                                "huggingface holds every family")
        with host.calling(family, f"write {path}"):
            theirs = from_canonical(checkpoint, family, NAMING)
            params = params_of(checkpoint.config, theirs.tensors)
            check_said(path, params, checkpoint, family, theirs.tensors, host)
        copies = {} if OUTPUT in theirs.tensors else {OUTPUT: EMBEDDING}
        files = {PARAMS: (json.dumps(params) + "\n").encode()}
        try:
            files |= tokenizer_files(checkpoint.tokenizer, family, host)
        except BestiaryError as error:
            log.warning("%s is written without a tokenizer: %s", path, error)
        if "tokenizer.json" in files and "tokenizer.model" not in files:
            log.warning("%s has its tokenizer in tokenizer.json: Meta's programs read a tokenizer.model, which this "
                        "one never was", path)
        with replacing_folder(path, self.marks, force) as folder:
            for name, data in files.items():
                folder.write(name, data)
            with folder.file(f"{STEM}.pth") as file:
                save_torch(file, STEM, theirs.tensors, copies, counting(theirs.tensors, progress))


def params_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """params.json of a normalised config: what is usual is left out, as the first programs refuse keys they do not
    know."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    params = {"dim": width, **feed_forward(width, config["intermediate_size"]), "n_heads": heads,
              "n_layers": config["num_hidden_layers"], "norm_eps": config["rms_norm_eps"],
              "vocab_size": tensors[EMBEDDING].rows}
    if config["num_key_value_heads"] != heads:
        params["n_kv_heads"] = config["num_key_value_heads"]
    if config["rope_theta"] != 10000.0:
        params["rope_theta"] = config["rope_theta"]
    if (config["rope_scaling"] or {}).get("rope_type") == "llama3":
        params |= {"use_scaled_rope": True, "rope_scaling_factor": config["rope_scaling"]["factor"]}
    return params


def feed_forward(width: int, inner: int) -> dict[str, Any]:
    """By which numbers Meta's formula gives the width of the feed forward: two thirds of 4 x width, times a factor, up
    to a multiple."""
    usual = int(2 * 4 * width / 3)
    for multiple in MULTIPLES:
        if -(-usual // multiple) * multiple == inner:
            return {"multiple_of": multiple}
    multiple = next(number for number in (256, 128, 64, 32, 16, 8, 4, 2, 1) if inner % number == 0)
    return {"multiple_of": multiple, "ffn_dim_multiplier": (inner - multiple // 2 + 0.5) / usual}


def check_said(path: Path, params: Mapping[str, Any], checkpoint: Checkpoint, family: Architecture,
               tensors: Mapping[str, Tensor], host: Host) -> None:
    """Raises BestiaryError where who reads the params gets another model; says where he gets another context."""
    found = config_of(path, params, tensors)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    other = host.architecture_of(found, checkpoint.tokenizer)
    again, wanted = other.normalise(found, shapes), checkpoint.config
    context = wanted["max_position_embeddings"]
    if other.graph(again, context) != family.graph(wanted, context):
        differ = [f"{key} = {short(wanted[key])}" for key in wanted.keys() & again.keys() - NO_DIFFERENCE
                  if wanted[key] != again[key]]
        differ = sorted(differ) or [f"what tells {family.name} from {other.name}"]
        raise BestiaryError(f"{PARAMS} cannot say {', '.join(differ)}. --format huggingface holds the model")
    if again["max_position_embeddings"] != context:
        log.warning("%s does not say that the model was made for %d tokens: who reads it takes %d", PARAMS, context,
                    again["max_position_embeddings"])
