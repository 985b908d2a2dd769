"""A canonical model in the names of other programs: an architecture's rules applied backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bestiary.architecture import Rule
from bestiary.canonical import matches
from bestiary.tensor import Tensor
from bestiary.testing.contract import Broken, expect


def names_of(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def applications(rule: Rule, names: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The canonical tensors that each use of the rule makes, and its indices."""
    indices = " ".join(["{}"] * names_of(rule.targets)[0].count("{}"))
    for targets, (found,) in matches(Rule(rule.targets, indices), names):
        yield targets, [int(index) for index in found.split()]


def sources(rule: Rule, indices: Sequence[int], count: int) -> list[str]:
    """The names of the `count` tensors that one use of the rule takes."""
    patterns = names_of(rule.sources)
    if patterns[0].count("{}") <= len(indices):
        return [pattern.format(*indices) for pattern in patterns]
    return [pattern.format(*indices, member) for pattern in patterns for member in range(count // len(patterns))]


def spelled(rules: Sequence[Rule], config: Mapping[str, Any], tensors: Mapping[str, Tensor],
            ) -> tuple[dict[str, Tensor], list[str], list[Rule]]:
    """The tensors under the naming's names and in its row orders; the canonical names that no rule gives; the rules
    that were used. Of several rules for one tensor the first counts."""
    left, made, used = dict(tensors), dict[str, Tensor](), list[Rule]()
    for rule in rules:
        for targets, indices in applications(rule, left):
            given = [left.pop(name) for name in targets]
            transform = rule.transform(config) if rule.transform else None
            results = transform.inverse.apply(given) if transform else given
            names = sources(rule, indices, len(results))
            expect(len(names) == len(results), f"the inverse of the rule of {', '.join(targets)} gives {len(results)} "
                                               f"tensors; its sources are {', '.join(names)}")
            if twice := [name for name in names if name in made]:
                raise Broken(f"two rules give {twice[0]} for different canonical tensors")
            made.update(zip(names, results, strict=True))
            used.append(rule)
    return made, list(left), used


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
