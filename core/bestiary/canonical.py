"""Any naming to the canonical one, and back: an architecture's rules applied to a checkpoint's tensors, and checked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bestiary.architecture import Architecture, Rule
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.errors import BestiaryError, short
from bestiary.graph import Graph
from bestiary.tensor import Tensor
from bestiary.tied import check_tied


def to_canonical(checkpoint: Checkpoint, architecture: Architecture,
                 context: int | None = None) -> tuple[Checkpoint, Graph]:
    """The checkpoint in canonical names and row orders with a normalised config, and its graph. It holds exactly the
    tensors that the graph declares. context: tokens a sequence may hold; by default what the model was made for.
    Raises BestiaryError for tensors missing, unknown, or of another shape than the graph declares."""
    tensors, spare = rename(checkpoint, architecture)
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name not in spare}
    check_causal(checkpoint)
    config = architecture.normalise(checkpoint.config, shapes)
    check_layers(checkpoint, config, len(tensors))
    graph = architecture.graph(config, context or config["max_position_embeddings"])
    check_shapes(checkpoint, graph, tensors)
    tensors = {**architecture.derived(config), **tensors}  # only now: its sizes are the config's
    missing = [name for name in graph.weights if name not in tensors]
    if missing:
        raise BestiaryError(f"{checkpoint.path}: {listed(missing)} missing from the checkpoint")
    unknown = [name for name in tensors
               if name not in graph.weights and name not in spare and not ignorable(architecture, name)]
    if unknown:
        raise BestiaryError(f"{checkpoint.path}: {architecture.name} has no use for {listed(unknown)}; "
                            "to drop what is not understood would be silent damage")
    check_shapes(checkpoint, graph, tensors)
    check_tied(checkpoint.path, graph, tensors)
    kept = {name: tensors[name] for name in graph.weights}
    again = partial(_again, architecture)
    return checkpoint.having(naming=CANONICAL, config=config, tensors=kept, source=(again, (checkpoint,)),
                             spare=frozenset(), tokenizer=architecture.material(checkpoint.tokenizer, config)), graph


def check_causal(checkpoint: Checkpoint) -> None:
    """Raises BestiaryError where tokens are to see those after them."""
    causal = checkpoint.config.get("is_causal", True)
    if causal is not True:  # no operation has such a mask, whatever the family; null means the same as false
        raise BestiaryError(f"{checkpoint.path}: is_causal = {short(causal)} is not implemented; known: True")


def check_layers(checkpoint: Checkpoint, config: Mapping[str, Any], tensors: int) -> None:
    """Raises BestiaryError where there are fewer tensors than layers: a graph of them would be traced for nothing."""
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > tensors:
        raise BestiaryError(f"{checkpoint.path}: num_hidden_layers = {layers} in the config, and only {tensors} "
                            "tensors in the checkpoint; most are missing")


def check_shapes(checkpoint: Checkpoint, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raises BestiaryError where a tensor has another shape than the graph declares."""
    for name, shape in graph.weights.items():
        if name in tensors and tensors[name].shape != shape:
            raise BestiaryError(f"{checkpoint.path}: tensor {name} has shape {list(tensors[name].shape)}; "
                                f"the config asks for {list(shape)}")


def _again(architecture: Architecture, checkpoint: Checkpoint) -> Checkpoint:
    return to_canonical(checkpoint, architecture)[0]


def from_canonical(checkpoint: Checkpoint, architecture: Architecture, naming: str) -> Checkpoint:
    """The canonical checkpoint under another naming's names, in its row orders and with the config of those who
    publish such, lazily: the way back. What follows from the config is left out. Raises BestiaryError for tensors that
    have no name there."""
    if naming not in architecture.namings:
        raise BestiaryError(f"{architecture.name} does not know the tensor names of {naming!r} checkpoints; "
                            f"known: {', '.join(architecture.namings)}")
    try:
        config = architecture.published_config(checkpoint.config, checkpoint.tensors)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        derived = architecture.derived(architecture.normalise(config, shapes))
        given = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in derived}
        tensors, left, _ = spelled(architecture.spelling(naming, config), checkpoint.config, given)
    except BestiaryError as error:
        raise BestiaryError(f"{checkpoint.path}: {error}") from None
    if left:
        raise BestiaryError(f"{checkpoint.path}: {naming!r} checkpoints of {architecture.name} have no name for "
                            f"{listed(left)}")
    back = partial(_back, architecture, naming)
    return checkpoint.having(naming=naming, config=config, tensors=tensors, source=(back, (checkpoint,)))


def _back(architecture: Architecture, naming: str, checkpoint: Checkpoint) -> Checkpoint:
    return from_canonical(checkpoint, architecture, naming)


def rename(checkpoint: Checkpoint, architecture: Architecture) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors under their canonical names, and the names of those made of spare ones alone. Rules for canonical
    checkpoints are for what older ones call otherwise: what they do not match keeps its name."""
    canonical = checkpoint.naming == CANONICAL
    if checkpoint.naming not in architecture.namings and not canonical:
        raise BestiaryError(f"{architecture.name} does not know the tensor names of {checkpoint.naming!r} checkpoints; "
                            f"known: {', '.join(architecture.namings)}")
    renamed: dict[str, Tensor] = {}
    left, spare = dict(checkpoint.tensors), set(checkpoint.spare)
    for rule in architecture.namings.get(checkpoint.naming, ()):
        for sources, targets in matches(rule, left):
            transform = rule.transform(checkpoint.config) if rule.transform else None
            given = [left.pop(name) for name in sources]
            try:
                results = transform.apply(given) if transform else given
            except BestiaryError as error:
                raise BestiaryError(f"{checkpoint.path}: {listed(sources)}: {error}") from None
            renamed.update(zip(targets, results, strict=True))
            if spare.issuperset(sources):
                spare.update(targets)
    if canonical:
        return {**renamed, **left}, spare
    unknown = [name for name in left if name not in spare and not ignorable(architecture, name)]
    if unknown:
        raise BestiaryError(f"{checkpoint.path}: {architecture.name} does not know {listed(unknown)}; "
                            "to drop what is not understood would be silent damage")
    return renamed, spare


def matches(rule: Rule, names: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """Each set of tensors that the rule applies to, and what their canonical names are. Indices that only the sources
    have count the members of a stack; raises BestiaryError where one of them is missing."""
    patterns = [rule.sources] if isinstance(rule.sources, str) else list(rule.sources)
    targets = [rule.targets] if isinstance(rule.targets, str) else list(rule.targets)
    shared = targets[0].count("{}")
    groups: Mapping[tuple[int, ...], list[tuple[int, tuple[int, ...], str]]] = defaultdict(list)
    for place, pattern in enumerate(patterns):
        expression = re.compile(re.escape(pattern).replace(r"\{\}", "(0|[1-9][0-9]{0,5})"))
        for name in names:
            if match := expression.fullmatch(name):
                indices = tuple(int(text) for text in match.groups())
                groups[indices[:shared]].append((place, indices[shared:], name))
    complete = {indices: sorted(found) for indices, found in groups.items()
                if {place for place, _, _ in found} == set(range(len(patterns)))}
    for found in complete.values():
        stacked = [(index[0], name) for _, index, name in found if index]
        for place, (number, name) in enumerate(stacked):
            if number != place % (len(stacked) // len(patterns)):
                raise BestiaryError(f"tensor {name} is there, but not all before it")
    return [([name for _, _, name in found], [target.format(*indices) for target in targets])
            for indices, found in sorted(complete.items())]


def spelled(rules: Iterable[Rule], config: Mapping[str, Any], tensors: Mapping[str, Tensor],
            ) -> tuple[dict[str, Tensor], list[str], list[Rule]]:
    """The canonical tensors under the names and in the row orders that the rules come from; the names that no rule
    gives; the rules that were used. Of several rules for one tensor the first counts. Raises BestiaryError where a
    transform's inverse or two of the rules do not fit together."""
    left, made, used = dict(tensors), dict[str, Tensor](), list[Rule]()
    for rule in rules:
        for targets, indices in applications(rule, left):
            given = [left.pop(name) for name in targets]
            transform = rule.transform(config) if rule.transform else None
            results = transform.inverse.apply(given) if transform else given
            names = sources(rule, indices, len(results))
            if len(names) != len(results):
                raise BestiaryError(f"the inverse of the rule of {', '.join(targets)} gives {len(results)} tensors; "
                                    f"its sources are {', '.join(names)}")
            if twice := [name for name in names if name in made]:
                raise BestiaryError(f"two rules give {twice[0]} for different canonical tensors")
            made.update(zip(names, results, strict=True))
            used.append(rule)
    return made, list(left), used


def applications(rule: Rule, names: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The canonical tensors that each use of the rule makes, and its indices."""
    first = rule.targets if isinstance(rule.targets, str) else rule.targets[0]
    for targets, (found,) in matches(Rule(rule.targets, " ".join(["{}"] * first.count("{}"))), names):
        yield targets, [int(index) for index in found.split()]


def sources(rule: Rule, indices: Sequence[int], count: int) -> list[str]:
    """The names of the `count` tensors that one use of the rule takes."""
    patterns = [rule.sources] if isinstance(rule.sources, str) else list(rule.sources)
    if patterns[0].count("{}") <= len(indices):
        return [pattern.format(*indices) for pattern in patterns]
    return [pattern.format(*indices, member) for pattern in patterns for member in range(count // len(patterns))]


def ignorable(architecture: Architecture, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in architecture.ignorable)


def listed(names: list[str]) -> str:
    """A few names, and how many more: errors are one line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
