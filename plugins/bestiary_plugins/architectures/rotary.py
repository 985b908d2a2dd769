"""Ways to stretch rotary positions beyond the context that a model was trained for, and what configs say of them.

Source of YaRN: Peng et al. 2023 (arXiv 2309.00071), sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bestiary.config import real, whole
from bestiary.errors import BestiaryError, short

Config = Mapping[str, Any]
FAST, SLOW = 32, 1
"""Turns within the old context from which on a frequency is kept, and up to which it is divided."""
NOT_YARNS = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "truncate": True, "beta_fast": FAST,
             "beta_slow": SLOW}
"""What a config may say of YaRN beside the factor, and the only value of it that is implemented."""


def refuse_partial(config: Config, scaling: Config) -> None:
    """Raises BestiaryError where only a part of a head is to be rotated."""
    for said in (config, scaling):
        if said.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise BestiaryError(f"partial_rotary_factor = {short(said['partial_rotary_factor'])} is not implemented "
                                "here; known: 1.0")


def yarn_scaling(config: Config, scaling: Config, base: float, context: int) -> dict[str, Any]:
    """The values of a config's YaRN: the section, and the numbers of it that canonical files know. context: the
    model's, which is the old one where nothing else is said."""
    for key, usual in NOT_YARNS.items():
        if scaling.get(key) not in (None, usual):
            raise BestiaryError(f"rope_scaling: {key} = {short(scaling[key])} is not implemented; known: {usual}")
    if base <= 1:
        raise BestiaryError(f"rope_theta = {base:g} with rope_scaling 'yarn'; it must be above 1")
    factor = real(config, "rope_factor", real(scaling, "factor", 1.0))
    context = whole(config, "rope_original_context", whole(scaling, "original_max_position_embeddings", context))
    return {"rope_factor": factor, "rope_original_context": context, "rope_scaling": {
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}}


def yarn(count: int, base: float, scaling: Config) -> dict[str, Any]:
    """Keywords of `rope`: frequencies that turn often within the old context are kept, slow ones divided by the factor,
    those between mixed; queries and keys each grow by 0.1 ln(factor) + 1."""
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        """The pair that turns so often within the old context."""
        return count * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair_of(FAST)), 0), min(math.ceil(pair_of(SLOW)), count - 1)
    width = high - low or 0.001
    mixed = [min(max((j - low) / width, 0), 1) for j in range(count // 2)]
    return {"factors": [1 / (share / factor + 1 - share) for share in mixed],
            "magnitude": 0.1 * math.log(factor) + 1 if factor > 1 else 1.0}
