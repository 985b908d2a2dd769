"""Two checkpoints that make one: a base and a delta, whose sum is the model, or a base and the adapters made for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bestiary.architecture import Architecture
from bestiary.canonical import from_canonical, ignorable, listed, matches, spelled, to_canonical
from bestiary.checkpoint import Adapter, Checkpoint, TokenizerMaterial, check_model
from bestiary.encoding import F16, F32, PLAIN, Encoding
from bestiary.errors import BestiaryError, short
from bestiary.graph import Graph
from bestiary.tensor import Tensor, encode_plain
from bestiary.tied import OUTPUT, embedding_of, equal, is_tied
from bestiary.transform import Transpose

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size")
"""What the configs of a delta and of its base say alike."""
CONTEXT = "max_position_embeddings"
NUMBERS = ("rms_norm_eps", "layer_norm_eps", "rope_theta", CONTEXT)
"""What they usually say alike: where they do not, the base is perhaps another model of the same sizes."""
LARGEST_F16 = 65520.0
"""From here on f16 rounds to infinity."""

TIED = "tie_word_embeddings"

FamilyOf = Callable[[Checkpoint], Architecture]


class Sum(Tensor):
    """The sum of tensors of one width, added in float32 in their order and rounded once to a plain encoding. Those
    after the first may have fewer rows: the sum's other rows are the first's alone."""

    def __init__(self, name: str, parts: Sequence[Tensor], encoding: Encoding, givers: Sequence[Path] = ()) -> None:
        """givers: whose each of the parts is, for errors."""
        self.shape, self.encoding, self._parts, self._name = parts[0].shape, encoding, tuple(parts), name
        self._givers = tuple(givers)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        values = self._parts[0].decode(start, stop)
        for part in self._parts[1:]:
            held = max(min(stop, part.rows) - start, 0)
            with np.errstate(over="ignore", invalid="ignore"):  # said below
                added = values[:held] + part.decode(start, start + held)
            values = added if held == len(values) else np.concatenate([added, values[held:]])
        if not np.isfinite(values).all():
            self.refuse(start, stop)
        if self.encoding == F16 and values.size and (largest := float(np.abs(values).max())) >= LARGEST_F16:
            raise BestiaryError(f"tensor {self._name}: a weight of the sum is {largest:g}, more than f16 holds "
                                "(65504); bf16 and f32 hold it")
        return encode_plain(values, self.encoding)

    def refuse(self, start: int, stop: int) -> NoReturn:
        for i, part in enumerate(self._parts):
            if not np.isfinite(part.decode(min(start, part.rows), min(stop, part.rows))).all():
                whose = f"{self._givers[i]}: " if i < len(self._givers) else ""
                raise BestiaryError(f"{whose}what it holds for tensor {self._name} is not finite (NaN or infinite): "
                                    "the weights are damaged")
        raise BestiaryError(f"tensor {self._name}: a weight of the sum is more than f32 holds")


def merged(source: Checkpoint, base: Checkpoint | None, adapters: Sequence[Checkpoint], family_of: FamilyOf,
           encoding: Encoding | None = None) -> Checkpoint:
    """The model that a delta (`source`) and its base make, or a base (`source`; `base`, where that is an adapter) and
    adapters in their order: a view, in the naming of the delta or of the adapters. encoding: plain, what the sums of
    matrices are rounded to; by default the delta's type, with adapters the base's. Raises BestiaryError where they do
    not belong together."""
    if source.adapter is not None and base is not None:
        source, base, adapters = base, None, [source, *adapters]
    check_model(source)
    for checkpoint in adapters:
        if checkpoint.adapter is None:
            raise BestiaryError(f"{checkpoint.path} is no adapter; a delta, which is as large as its base and is added "
                                "to all of it, is named as one")
    if base is None:
        return adapted(source, adapters, family_of(source), encoding) if adapters else source
    check_model(base)
    if adapters:
        raise BestiaryError("a delta and adapters are not merged in one go: merge the delta first, then the adapters")
    return delta(base, source, family_of(base), family_of(source), encoding)


def delta(base: Checkpoint, other: Checkpoint, base_family: Architecture, family: Architecture,
          encoding: Encoding | None = None) -> Checkpoint:
    """Base + other, tensor by tensor, with the config and the tokenizer of the other. The base's vocabulary may have
    fewer rows; the others are then the delta's own. Where the base has another naming it is brought into the delta's.
    Raises BestiaryError where one holds a tensor that the other lacks, or of another size."""
    if base_family.name != family.name:
        raise BestiaryError(f"{base.path} is a {base_family.name}, {other.path} a delta for a {family.name}")
    if other.naming not in family.namings:
        raise BestiaryError(f"{other.path} is a converted file; a delta is merged in the form in which it was "
                            f"published ({', '.join(family.namings)})")
    there, graph = to_canonical(other, family)
    here, base_graph = to_canonical(base, family)
    for key in SIZES:
        mine, theirs = here.config.get(key), there.config.get(key)
        if mine is not None and theirs is not None and mine != theirs:
            raise BestiaryError(f"{other.path} is a delta for another model than {base.path}: {key} = {short(theirs)}, "
                                f"in the base {short(mine)}")
    held = renamed(base, here, family, other.naming).tensors
    lacking = {
        base.path: [name for name in other.tensors if name not in held and not ignorable(family, name)],
        other.path: [name for name in held if name not in other.tensors and not ignorable(family, name)]}
    for path, names in lacking.items():
        if names:
            raise BestiaryError(f"{path} lacks {listed(names)}; a delta and its base hold the same")
    tensors: dict[str, Tensor] = {}
    for name, tensor in other.tensors.items():
        if name not in held or ignorable(family, name) and tensor.encoding.name not in PLAIN:
            continue  # nobody needs it; a mask of attention may be of any type
        mine = held[name]
        if mine.shape != tensor.shape and not (tensor.rows == graph.vocabulary
                                               and grows(mine.shape, tensor.shape, base_graph.vocabulary)):
            extended = ": tokens were added to this base already; the delta wants the model as it was published" if \
                mine.rows == base_graph.vocabulary > graph.vocabulary else ""
            raise BestiaryError(f"tensor {name} is of {list(mine.shape)} in {base.path}, and of {list(tensor.shape)} "
                                f"in the delta {other.path}{extended}")
        plain(name, mine, base)
        tensors[name] = Sum(name, (tensor, mine), rounded_to(name, tensor, encoding, other),
                            (other.path, base.path))
    tokenizer = base.tokenizer if other.tokenizer.empty else other.tokenizer
    return other.having(tensors=tensors, tokenizer=tokenizer,
                        source=(delta, (base, other, base_family, family, encoding)))


def adapted(base: Checkpoint, adapters: Sequence[Checkpoint], family: Architecture,
            encoding: Encoding | None = None) -> Checkpoint:
    """The base with the adapters, in their order: a tensor of an adapter's takes the place of the base's and of what
    was added to it, what it adds is added; all of that in float32, rounded once. The last tokenizer among them is the
    model's. A model whose embedding is its output matrix has two of its own where an adapter changed one. Raises
    BestiaryError where an adapter does not fit."""
    here, graph = to_canonical(base, family)
    naming, vocabulary, tokenizer = adapters[0].naming, graph.vocabulary, base.tokenizer
    named_so = renamed(base, here, family, naming)
    held = dict(named_so.tensors)
    twins = tied_names(here, graph, family, naming, held)
    if twins is not None:
        held.setdefault(twins[1], held[twins[0]])
    turned = on_their_side(held, family, named_so)
    parts = {name: [tensor] for name, tensor in held.items()}
    givers = {name: [base.path] for name in held}
    for checkpoint in adapters:
        adapter, grown = checkpoint.adapter or Adapter(), vocabulary
        if checkpoint.naming != naming:
            raise BestiaryError(f"{checkpoint.path} has the tensor names of {checkpoint.naming!r} checkpoints, "
                                f"{adapters[0].path} those of {naming!r}")
        for given, tensor in checkpoint.tensors.items():
            name = name_in(held, given) or given
            before = parts.get(name, [tensor])[0]
            if before.shape != tensor.shape and not grows(before.shape, tensor.shape, vocabulary):
                shrinks = grows(tensor.shape, before.shape, tensor.rows) and before.rows == vocabulary
                raise BestiaryError(unfit(checkpoint, given, tensor, before, base) + (
                    ": a smaller vocabulary than that of what comes before it; adapters are named in the order in "
                    "which they were made" if shrinks else named(adapter.base)))
            if len(tensor.shape) == 2 and before.rows == vocabulary:
                grown = max(grown, tensor.rows)
            parts[name], givers[name] = [tensor], [checkpoint.path]
        vocabulary = grown
        for given, tensor in adapter.added.items():
            found = name_in(held, given)
            if found is None:
                raise BestiaryError(f"{checkpoint.path} adds to tensor {given}, and {base.path} has none of that name; "
                                    f"it was made for another model{named(adapter.base)}")
            if found in turned:
                (tensor,) = Transpose().apply([tensor])
            if parts[found][0].shape != tensor.shape:
                raise BestiaryError(unfit(checkpoint, given, tensor, parts[found][0], base) + named(adapter.base))
            parts[found].append(tensor)
            givers[found].append(checkpoint.path)
        check_complete(checkpoint.path, adapter, {name: whose[-1] for name, whose in givers.items()}, held)
        if not checkpoint.tokenizer.empty:
            tokenizer = completed(checkpoint.tokenizer, base.tokenizer)
    tensors = {name: held[name] if summed == [held.get(name)] else
               Sum(name, summed, rounded_to(name, held.get(name, summed[0]), encoding, base), givers[name])
               for name, summed in parts.items()}
    changed = {key: vocabulary for key, value in named_so.config.items()
               if key.endswith("vocab_size") and value == graph.vocabulary}
    if twins is not None:
        if stay_tied(twins, held, tensors, here, family, adapters):
            if twins[1] not in named_so.tensors:
                del tensors[twins[1]]
        else:
            changed[TIED] = False
    return base.having(tensors=tensors, naming=naming, config={**named_so.config, **changed}, tokenizer=tokenizer,
                       source=(adapted, (base, tuple(adapters), family, encoding)))


def check_complete(path: Path, adapter: Adapter, last: Mapping[str, Path], held: Mapping[str, Tensor]) -> None:
    """Raises BestiaryError where the adapter was trained on a matrix of the model and gives nothing for it. last: who
    gave something for a tensor last."""
    absent = [name for name, tensor in held.items() if adapter.trained is not None and len(tensor.shape) == 2
              and last[name] != path and adapter.trained(name)]
    if absent:
        raise BestiaryError(f"{path} says that it was trained on {listed(absent)}, and holds nothing for "
                            f"{'them' if len(absent) > 1 else 'it'}: the file is incomplete")


def on_their_side(names: Iterable[str], family: Architecture, checkpoint: Checkpoint) -> set[str]:
    """The matrices whose columns are the canonical rows: which they are follows from the family's names for them, for
    a square one shows nothing."""
    rules = [rule for rule in family.namings.get(checkpoint.naming, ()) if rule.transform is not None
             and isinstance(rule.transform(checkpoint.config), Transpose)]
    return {name for rule in rules for sources, _ in matches(rule, names) for name in sources}


def tied_names(canonical: Checkpoint, graph: Graph, family: Architecture, naming: str,
               held: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """What the embedding of a model whose output matrix it is too is called, and what an output matrix of its own
    would be. None where it has one."""
    embedding = embedding_of(graph)
    if embedding is None or not is_tied(graph):
        return None
    rules, matrix = family.spelling(naming, canonical.config), canonical.tensors[embedding]
    found = [next(iter(spelled(rules, canonical.config, {name: matrix})[0]), "") for name in (embedding, OUTPUT)]
    first = name_in(held, found[0])
    return None if first is None or not found[1] else (first, name_in(held, found[1]) or found[1])


def stay_tied(names: tuple[str, str], held: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
              canonical: Checkpoint, family: Architecture, adapters: Sequence[Checkpoint]) -> bool:
    """Whether the embedding is still the output matrix. An adapter trains the two apart: what it gives for one changes
    that alone. Raises BestiaryError where a model with two matrices cannot be made of them."""
    first, second = (tensors[name] for name in names)
    if all(tensors[name] is held[name] for name in names):
        return True
    path = adapters[-1].path
    if first.shape != second.shape:
        raise BestiaryError(f"{path} gives {list(first.shape)} for {names[0]}, which is the model's output matrix "
                            f"too, and nothing of that size for {names[1]}: the two were trained apart, and the other "
                            "half is missing")
    if equal(first, second):
        return True
    shapes = {**{name: tensor.shape for name, tensor in canonical.tensors.items()}, OUTPUT: first.shape}
    try:
        config = family.normalise({**canonical.config, TIED: False}, shapes)
        apart = OUTPUT in family.graph(config, config["max_position_embeddings"]).weights
    except BestiaryError:
        apart = False
    if not apart:
        raise BestiaryError(f"{path} trained the embedding and the output matrix apart, and {family.name} has one "
                            "matrix for both")
    return False


def grows(old: tuple[int, ...], new: tuple[int, ...], vocabulary: int) -> bool:
    """Whether the shapes are those of a matrix with a row for each of the vocabulary, and of one with more of them."""
    return len(old) == len(new) == 2 and old[1] == new[1] and old[0] == vocabulary < new[0]


def unfit(adapter: Checkpoint, given: str, tensor: Tensor, before: Tensor, base: Checkpoint) -> str:
    return (f"{adapter.path} does not fit {base.path}: for tensor {given} it holds {list(tensor.shape)}, and the model "
            f"{list(before.shape)}")


def named(base: str) -> str:
    return f" (made for {short(base)})" if base else ""


def renamed(base: Checkpoint, canonical: Checkpoint, family: Architecture, naming: str) -> Checkpoint:
    """The base in another naming, by way of the canonical one."""
    return base if base.naming == naming else from_canonical(canonical, family, naming)


def rounded_to(name: str, tensor: Tensor, encoding: Encoding | None, of: Checkpoint) -> Encoding:
    """What a sum is rounded to. Vectors are not rounded to less than the type they have."""
    plain(name, tensor, of)
    return encoding if encoding is not None and (len(tensor.shape) > 1 or encoding == F32) else tensor.encoding


def plain(name: str, tensor: Tensor, of: Checkpoint) -> None:
    """Raises BestiaryError for a type that nothing can be added to."""
    encoding = tensor.quantized_as or tensor.encoding
    if encoding.name not in PLAIN:
        raise BestiaryError(f"{of.path}: tensor {name} is {encoding.name}; merging wants the model before it was "
                            f"quantized, in one of {', '.join(PLAIN)}")


def name_in(held: Mapping[str, Tensor], given: str) -> str | None:
    """The base's name of a tensor: one of the two may have a prefix (the name of the model's body) that the other
    lacks."""
    if given in held:
        return given
    longer = [name for name in held if name.endswith(f".{given}")]
    shorter = [name for name in (given[match.end():] for match in re.finditer("[.]", given)) if name in held]
    found = [*longer, *shorter]
    return found[0] if len(found) == 1 else None


def doubts(source: Checkpoint, base: Checkpoint | None, adapters: Sequence[Checkpoint],
           family_of: FamilyOf) -> list[str]:
    """What makes it doubtful that the parts of `merged` belong together, though all of them fit, a line each: sizes
    alone do not tell two models apart."""
    if source.adapter is not None and base is not None:
        source, base, adapters = base, None, [source, *adapters]
    if base is None:
        return [line for checkpoint in adapters for line in other_name(checkpoint, source)]
    there, here = (to_canonical(checkpoint, family_of(source))[0].config for checkpoint in (source, base))
    said = [f"{key} = {short(there[key])}, in the base {short(here[key])}" for key in NUMBERS
            if key in there and key in here and not alike(there[key], here[key])]
    if said and said[0].startswith(CONTEXT):
        return []  # alone it may be what the delta was trained for
    names = [short(checkpoint.config["_name_or_path"]) for checkpoint in (source, base)
             if checkpoint.config.get("_name_or_path")]
    if len(names) == 2 and said:
        said.append(f"they name themselves {' and '.join(names)}")
    return [f"{source.path} may be a delta for another model than {base.path}: {'; '.join(said)}"] if said else []


def alike(one: Any, other: Any) -> bool:
    """Whether two numbers are the same but for the precision of a file."""
    if not isinstance(one, (int, float)) or not isinstance(other, (int, float)):
        return bool(one == other)
    return abs(one - other) <= 1e-6 * abs(one)


def other_name(adapter: Checkpoint, base: Checkpoint) -> list[str]:
    """A line where the adapter says it was made for a model of another name."""
    wanted = (adapter.adapter or Adapter()).base
    names = [base.path.absolute().name, base.path.absolute().parent.name, str(base.config.get("_name_or_path") or "")]
    if not bare(wanted) or bare(wanted) in map(bare, names):
        return []
    return [f"{adapter.path} says it was made for {short(wanted)}; the base is {base.path}. On another model of the "
            "same size it makes nonsense"]


def bare(name: str) -> str:
    """A model's name without what differs between copies of it."""
    return re.sub("-?hf$|[^a-z0-9]", "", re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold())


def completed(material: TokenizerMaterial, base: TokenizerMaterial) -> TokenizerMaterial:
    """An adapter's folder has no config.json, which says the ids that begin and end a text."""
    return replace(material, bos=base.bos if material.bos is None else material.bos,
                   eos=base.eos if material.eos is None else material.eos, ends=material.ends or base.ends)


def check_vocabulary(checkpoint: Checkpoint, rows: int, pieces: int, family: Architecture) -> None:
    """Raises BestiaryError where the vocabulary and the tokenizer of a merged model disagree. rows: of its embedding.
    pieces: of its tokenizer."""
    wanted = [known for known in family.vocabularies if rows in known.rows]
    if pieces <= rows and (not wanted or any(known.pieces == pieces for known in wanted)):
        return
    found = next((f" ({known.words})" for known in family.vocabularies if known.pieces == pieces), "")
    belongs = " or ".join(f"{known.words}, of {known.pieces}" for known in wanted)
    raise BestiaryError(f"{checkpoint.path}: the merged model has {rows} rows in its vocabulary, and the tokenizer "
                        f"{pieces} pieces{found}: they do not belong together. "
                        + (f"The one that does is {belongs}; " if belongs else "")
                        + "--tokenizer FILE names another")
