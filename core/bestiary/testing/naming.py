"""A canonical model in the names of other programs, in every way that an architecture's rules allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bestiary.architecture import Rule
from bestiary.canonical import applications, spelled
from bestiary.tensor import Tensor


def spellings(rules: Sequence[Rule], config: Mapping[str, Any], tensors: Mapping[str, Tensor],
              ) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Every way to spell the tensors: as `spelled`, then once with each rule first that was not used before although
    all of its tensors are there."""
    made, left, used = spelled(rules, config, tensors)
    yield made, left
    for rule in rules:
        if rule not in used and any(True for _ in applications(rule, tensors)):
            made, left, more = spelled([rule, *(other for other in rules if other != rule)], config, tensors)
            used += more
            yield made, left
