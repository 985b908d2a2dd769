"""What a folder says of how it is quantized, and who reads that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.errors import BestiaryError, short
from bestiary.strict_json import read_object
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.quantized.autoround import read_autoround
from bestiary_plugins.loaders.quantized.awq import read_awq
from bestiary_plugins.loaders.quantized.bitsandbytes import read_bitsandbytes
from bestiary_plugins.loaders.quantized.compressed import read_compressed
from bestiary_plugins.loaders.quantized.fp8 import read_fp8, read_modelopt
from bestiary_plugins.loaders.quantized.gptq import read_gptq
from bestiary_plugins.loaders.quantized.mxfp4 import read_mxfp4
from bestiary_plugins.loaders.quantized.parts import Parts, Settings

QUANTIZATION, OLD_NAME = "quantization_config", "compression_config"
METHODS: dict[str, Callable[[Settings, Parts], str]] = {
    "gptq": read_gptq, "awq": read_awq, "fp8": read_fp8, "fbgemm_fp8": read_fp8, "modelopt": read_modelopt,
    "compressed-tensors": read_compressed, "bitsandbytes": read_bitsandbytes, "mxfp4": read_mxfp4,
    "auto-round": read_autoround, "intel/auto-round": read_autoround,
}
"""By quant_method; each puts weights in place of the parts of theirs that it finds, and says how they are quantized."""
FILES: dict[str, Mapping[str, Any]] = {
    "quantize_config.json": {"quant_method": "gptq"}, "quant_config.json": {"quant_method": "awq"},
    "hf_quant_config.json": {"quant_method": "modelopt"}}
"""Files that say it where the config does not, and what goes without saying there."""
LOADED_IN = ("load_in_8bit", "load_in_4bit")
SIGNS = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB", ".weight.absmax", "_blocks")
"""Ends of names of parts."""


class Unquantized(NamedTuple):
    """The config without what it says of quantization, the tensors under the names that they would have without it, the
    names of the spare ones (see Checkpoint), and how they were quantized, in words."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    spare: frozenset[str] = frozenset()
    words: str = ""


def read_quantized(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor],
                   ) -> Unquantized:
    """Raises BestiaryError for a method or an option that is not read, and for tensors that do not fit together."""
    part = next((name for name in tensors if name.endswith(SIGNS)), None)
    settings = read_settings(folder, config, part is not None)
    plain = {key: value for key, value in config.items() if key not in (QUANTIZATION, OLD_NAME)}
    if settings is None:
        if part is not None:
            raise BestiaryError(f"{folder}: tensor {part} is part of a quantized weight, and neither config.json "
                                f"({QUANTIZATION}) nor {' nor '.join(FILES)} says how it is quantized")
        return Unquantized(plain, tensors)
    unnamed = "bitsandbytes" if any(settings.values.get(key) for key in LOADED_IN) else ...  # by transformers of 2023
    method = settings.one_of("quant_method", METHODS, unnamed)
    parts = Parts(tensors, folder)
    words = METHODS[method](settings, parts)
    return Unquantized(plain, parts.result(), frozenset(parts.spare), words)


def read_settings(folder: Path, config: Mapping[str, Any], files: bool) -> Settings | None:
    """None for a folder that is not quantized. files: whether other files than the config are asked."""
    for key in (QUANTIZATION, OLD_NAME):
        if section := config.get(key):
            if not isinstance(section, dict):
                raise BestiaryError(f"{folder}: {key} = {short(section)}; it must be an object")
            return Settings(section, f"{folder}: {key}")
    for name, defaults in FILES.items() if files else ():
        if (folder / name).is_file():
            return Settings({**defaults, **read_object(folder / name)}, str(folder / name))
    return None
