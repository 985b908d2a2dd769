"""AutoRound folders: the parts of GPTQ and AWQ under another section of the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.errors import BestiaryError
from bestiary.host import Host
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_awq as awq
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders.quantized_folders import Packed


def section(packing: str = "auto_round:auto_gptq", symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"quant_method": "auto-round", "autoround_version": "0.5.1", "bits": 4, "group_size": 32, "sym": symmetric,
            "packing_format": packing, "data_type": "int", "iters": 200, "block_name_to_quantize": "model.layers",
            **more}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("one_less", [True, False])
@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_weights_are_those_of_gptq(tmp_path: Path, host: Host, symmetric: bool, one_less: bool, method: str) -> None:
    said = section("auto_round:auto_gptq" if one_less else "auto_round:gptqmodel", symmetric, quant_method=method)
    made = folders.write(tmp_path, gptq.packer(4, 32, symmetric, one_less), said)
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_those_of_awq(tmp_path: Path, host: Host, symmetric: bool) -> None:
    made = folders.write(tmp_path, awq.packer(32, zero=not symmetric), section("auto_round:auto_awq", symmetric))
    folders.check_values(host.open(made.quantized), made.values)


def test_modules_may_have_settings_of_their_own(tmp_path: Path, host: Host) -> None:
    def mixed(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        return gptq.packer(8 if inputs == folders.FORWARD else 4)(rng, outputs, inputs)

    own = {"model.layers.0.mlp.down_proj": {"bits": 8, "data_type": "int"}, "lm_head": {"bits": 16, "group_size": 0},
           **{f"model.layers.{i}.mlp.down_proj": {"bits": 8} for i in range(5000)}}  # as it lists them
    made = folders.write(tmp_path, mixed, section(extra_config=own))
    folders.check_values(host.open(made.quantized), made.values)


@pytest.mark.parametrize(("changed", "said"), [
    ({"packing_format": "auto_round:llm_compressor"}, "packing_format = 'auto_round:llm_compressor' is not read"),
    ({"packing_format": None}, "packing_format = None is not read; known: auto_round:auto_gptq"),
    ({"data_type": "mx_fp"}, "data_type = 'mx_fp' is not read; known: int"),
    ({"rotation_config": {"type": "hadamard"}}, "rotation_config = .*rotated inputs are not read"),
    ({"extra_config": {"lm_head": 4}}, "extra_config = .*it must be an object of objects"),
    ({"bits": 3}, "no weight of 3 bits"),
])
def test_what_is_not_read_is_refused(tmp_path: Path, host: Host, changed: dict[str, Any], said: str) -> None:
    made = folders.write(tmp_path, gptq.packer(), {**section(), **changed})
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)
