"""AutoRound: another way to choose the codes of GPTQ and AWQ, another section of the config.

Source: what the auto-round package writes, its packing_format "auto_round:auto_gptq", "auto_round:gptqmodel" (zeros as
they are) and "auto_round:auto_awq"; extra_config: settings of single modules, 16 bits where one is not quantized.
"""

from __future__ import annotations

from typing import Any

from bestiary.errors import BestiaryError, short
from bestiary_plugins.loaders.quantized.awq import read_awq
from bestiary_plugins.loaders.quantized.gptq import read_gptq
from bestiary_plugins.loaders.quantized.parts import Parts, Settings

PACKINGS = {"auto_round:auto_gptq": "gptq", "auto_round:gptqmodel": "gptq_v2", "auto_round:auto_awq": "gemm"}
"""What the formats are called where they come from."""
AS = "AutoRound packed as "


def read_autoround(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Says how they are quantized."""
    packing = PACKINGS[settings.one_of("packing_format", PACKINGS)]
    settings.one_of("data_type", ("int",), "int")
    settings.refuse("rotation_config", "weights of rotated inputs are not read")
    said = {key: settings.values.get(key) for key in ("bits", "group_size", "sym")}
    if packing == "gemm":
        zero = {"zero_point": not settings.flag("sym", False)}
        return AS + read_awq(Settings({**said, **zero, "version": packing}, settings.where), parts)
    modules: Any = settings.values.get("extra_config") or {}
    if not isinstance(modules, dict) or not all(isinstance(own, dict) for own in modules.values()):
        raise BestiaryError(f"{settings.where}: extra_config = {short(modules)}; it must be an object of objects")
    own = {name: {key: value for key, value in module.items() if key in said}
           for name, module in modules.items() if module.get("bits") != 16}
    return AS + read_gptq(Settings({**said, "checkpoint_format": packing, "dynamic": own}, settings.where), parts)
