"""LoRA adapters as the library PEFT saves them: adapter_config.json beside adapter_model.safetensors or .bin.

Sources: huggingface/peft, tuners/lora/config.py, layer.py (get_delta_weight) and utils/save_and_load.py; Hu et al. 2021
(arXiv 2106.09685), Kalajdzievski 2023 (arXiv 2312.03732) for the factor of rslora.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import Adapter, Checkpoint
from bestiary.config import flag, one_of, real, section, whole, words
from bestiary.errors import BestiaryError, short
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary.low_rank import LowRank
from bestiary.strict_json import read_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.huggingface import NAMING
from bestiary_plugins.loaders.safetensors import open_safetensors
from bestiary_plugins.loaders.tokenizer_files import folder_material
from bestiary_plugins.loaders.torch_file import open_torch

if TYPE_CHECKING:
    from bestiary.host import Host

CONFIG = "adapter_config.json"
WEIGHTS: Mapping[str, Callable[[DataFile], Mapping[str, Tensor]]] = {
    "adapter_model.safetensors": open_safetensors, "adapter_model.bin": open_torch}
"""In the order of preference."""
MOST_RANK = 1 << 16

READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
        "base_model_name_or_path", "init_lora_weights", "bias", "use_dora", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern"}
OF_TRAINING = {"task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout",
               "megatron_core", "loftq_config", "eva_config", "corda_config", "qalora_group_size", "merge_weights",
               "runtime_config", "fan_in_fan_out"}
"""Keys that say how an adapter was trained, or which tensors it holds, as the tensors themselves do. On which side a
matrix lies follows from the model, as PEFT has it, whatever fan_in_fan_out says. What is in neither list is refused
where it is set."""
KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base as it was; after the others an adapter belongs to another base."""
FACTORS = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.default)?(?P<end>\.weight)?")
LEFT_OUT = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(?:\.default)?(?=\.)")
PREFIX = "base_model.model."
UNTRAINED = ".original_module."
"""In the name of a tensor that was saved as it is in the base, beside the trained one."""


class Peft(Loader):
    """A folder, or a file of an adapter in one."""

    name = "peft"

    def recognise(self, path: Path) -> int:
        try:
            if path.is_dir():
                return 0 if not (path / CONFIG).is_file() else 96 if weights_of(path) else 40
            return 97 if path.name in (CONFIG, *WEIGHTS) and (path.parent / CONFIG).is_file() else 0
        except OSError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_peft(path)


def weights_of(folder: Path) -> str | None:
    """The name of the file with the weights."""
    return next((name for name in WEIGHTS if os.path.lexists(folder / name)), None)


def open_peft(path: Path) -> Checkpoint:
    """The adapter of a folder, or of the one that the file lies in. Raises BestiaryError for what is missing, damaged
    or not understood."""
    folder = path if path.is_dir() else path.parent
    config = read_object(folder / CONFIG)
    try:
        check_config(config)
        name = weights_of(folder)
        if name is None:
            raise BestiaryError(f"no weights beside it: neither {' nor '.join(WEIGHTS)}")
    except BestiaryError as error:
        raise BestiaryError(f"{folder / CONFIG}: {error}") from None
    try:
        replaced, added = sorted_out(WEIGHTS[name](DataFile(folder / name)), config)
    except BestiaryError as error:
        said = str(error)
        raise BestiaryError(said if said.startswith(str(folder)) else f"{folder / name}: {said}") from None
    base = config.get("base_model_name_or_path")
    return Checkpoint(path, {}, replaced, NAMING, folder_material(folder), source=(open_peft, (path,)),
                      adapter=Adapter(added, base if isinstance(base, str) else "", trained_on(config)))


def check_config(config: Mapping[str, Any]) -> None:
    """Raises BestiaryError, by key, for what is no LoRA or more than one."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise BestiaryError(f"peft_type = {short(kind)} is not implemented; known: LORA")
    if flag(config, "use_dora"):
        raise BestiaryError("use_dora = True is not implemented: DoRA scales the merged matrix by what it learned")
    if config.get("init_lora_weights") not in KEEPS_THE_BASE:
        raise BestiaryError(f"init_lora_weights = {short(config['init_lora_weights'])} is not implemented: such an "
                            "adapter belongs to a base that was changed before the training; PEFT can save it as a "
                            "plain one")
    for key, value in config.items():
        if key not in READ | OF_TRAINING and value not in (None, False, {}, [], ""):
            raise BestiaryError(f"{key} = {short(value)} is not implemented")
    one_of(config, "bias", ("none", "all", "lora_only"), "none")


def trained_on(config: Mapping[str, Any]) -> Callable[[str], bool] | None:
    """Whether a matrix of that name is one of target_modules; None where those are told by an expression. A name there
    that no module has is nothing: people list those of several families."""
    targets, excluded, layers = (config.get(key) for key in ("target_modules", "exclude_modules",
                                                             "layers_to_transform"))
    if not isinstance(targets, list) or isinstance(excluded, str) or config.get("layers_pattern"):
        return None
    wanted, unwanted = words(config, "target_modules"), words(config, "exclude_modules")
    saved = words(config, "modules_to_save")

    def trained(name: str) -> bool:
        module = name.removesuffix(".weight")
        if module == name or any(f".{part}." in f".{module}." for part in saved):
            return False
        if any(f".{module}".endswith(f".{part}") for part in unwanted):
            return False
        if module in wanted or layers in (None, []):
            return any(f".{module}".endswith(f".{part}") for part in wanted)
        number = re.search(r"[.](\d+)[.]", module)
        return (number is not None and int(number[1]) in (layers if isinstance(layers, list) else [layers])
                and any(module.endswith(f".{part}") for part in wanted))

    return trained


def sorted_out(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that take the places of the model's, and what is added to some, by the model's names."""
    replaced: dict[str, Tensor] = {}
    factors: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for given, tensor in tensors.items():
        if not given.startswith(PREFIX):
            raise BestiaryError(f"tensor {short(given, 120)} is not understood; the names in an adapter of PEFT begin "
                                f"with {PREFIX}")
        if UNTRAINED in given:
            continue
        name = LEFT_OUT.sub("", given.removeprefix(PREFIX))
        match = FACTORS.fullmatch(name)
        if match and (match["end"] is None) == (match["kind"] is not None):
            factors.setdefault((match["module"], match["kind"] is not None), {})[match["side"]] = tensor
        elif name in replaced and replaced[name].shape == tensor.shape:
            continue  # one that has grown is saved twice: by its own name, and as a module to save
        elif ".lora_" in name or name in replaced:
            raise BestiaryError(f"tensor {short(given, 120)} is not implemented; the matrices lora_A and lora_B of "
                                "linear layers and of embeddings are")
        else:
            replaced[name] = tensor
    added: dict[str, Tensor] = {}
    for (module, embedding), sides in factors.items():
        if len(sides) != 2:
            raise BestiaryError(f"of {module} there is lora_{next(iter(sides))} alone; the file is incomplete")
        name = f"{module}.weight"
        if name in added:
            raise BestiaryError(f"{name} is added to twice")
        added[name] = product(module, sides["B"], sides["A"], embedding, config)
    for module in words(config, "modules_to_save"):
        if not any(f".{name}".startswith(f".{module}.") or f".{module}." in name for name in replaced):
            raise BestiaryError(f"modules_to_save names {short(module)}, and no tensor is of it; the file is "
                                "incomplete")
    if not added and not replaced:
        raise BestiaryError("it holds no tensors")
    return replaced, added


def product(module: str, up: Tensor, down: Tensor, embedding: bool, config: Mapping[str, Any]) -> LowRank:
    """What is added to the matrix of a module."""
    rank = whole({"r": patterned(module, config, "rank_pattern", "r", 8)}, "r", high=MOST_RANK)
    alpha = real({"lora_alpha": patterned(module, config, "alpha_pattern", "lora_alpha", 8)}, "lora_alpha")
    if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != rank or down.shape[0] != rank:
        raise BestiaryError(f"{module} has lora_B of {list(up.shape)} and lora_A of {list(down.shape)}; with r = "
                            f"{rank} they are of [rows, {rank}] and [{rank}, columns]")
    factor = alpha / (math.sqrt(rank) if flag(config, "use_rslora") else rank)
    return LowRank(up, down, factor, transposed=embedding)


def patterned(module: str, config: Mapping[str, Any], patterns: str, key: str, default: int) -> Any:
    """The value for a module: of the first of the patterns that is its name or the end of it, else the common one."""
    for pattern, value in section(config, patterns).items():
        if not re.fullmatch(r"\^?[A-Za-z0-9_.]+", pattern):
            raise BestiaryError(f"{patterns} has the key {short(pattern)}; names of modules and ends of them are read, "
                                "no other expressions: in its place a key for each module that it means will do, "
                                "'q_proj' for example")
        if module == pattern.lstrip("^") or pattern[0] != "^" and module.endswith(f".{pattern}"):
            return value
    return default if config.get(key) is None else config[key]
