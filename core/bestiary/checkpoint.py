"""A model on disk: its config, its lazily read weights, and what its tokenizer is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bestiary.errors import BestiaryError, short
from bestiary.tensor import Tensor

CANONICAL = "canonical"
"""The naming in which graphs are written: tensor names, row orders and config of the files that `convert` writes."""

ONE_MODEL = ("model_type", "hidden_size", "num_hidden_layers", "num_layers", "num_attention_heads")
"""What the configs of two checkpoints that stand side by side say alike, where both say it."""


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as arrays, for checkpoints that carry no tokenizer file.

    algorithm: "bpe" (sentencepiece pieces, the highest score merges first), "unigram", or "bytes" (byte-level BPE by a
    list of merges). kinds: one a piece, of sentencepiece's numbers: 1 normal, 2 unknown, 3 control, 4 user defined,
    5 unused, 6 byte. pre_tokenizer: the name of the splitting rule of byte-level BPE; architectures supply the rules.
    space_prefix: a space is put before every text. charsmap, squeeze_spaces: sentencepiece's normalizer, where it is
    not the identity: its compiled table of replacements, and whether runs of spaces become one.
    """

    algorithm: str
    pieces: Sequence[bytes]
    scores: Sequence[float] = ()
    kinds: Sequence[int] = ()
    merges: Sequence[str] = ()
    pre_tokenizer: str = ""
    space_prefix: bool = True
    unknown: int | None = None
    charsmap: bytes = b""
    squeeze_spaces: bool = False


@dataclass(frozen=True)
class TokenizerMaterial:
    """Everything a checkpoint says about its tokenizer.

    files: original files by name: "tokenizer.model" (sentencepiece), "tokenizer.json" (tokenizers), and their settings.
    bos, eos: ids. add_bos, add_eos: what encoding a prompt adds; None where nothing says. ends: every id that ends a
    generation, eos or not. chat_template: Jinja source.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    bos: int | None = None
    eos: int | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None

    @property
    def empty(self) -> bool:
        return self.vocabulary is None and not self.files.keys() & {"tokenizer.model", "tokenizer.json"}


@dataclass(frozen=True)
class Adapter:
    """What makes a checkpoint no model but a change to one: its `tensors` take the places of that model's.

    added: what is added to tensors of the model, by their names, each of that tensor's shape: to the matrix of a linear
    layer (outputs, inputs), and where the family's rule for the tensor is a Transpose, its transpose. base: what the
    model is called, if the adapter says so. trained: whether an adapter for a model with a matrix of that name adds to
    it or replaces it.
    """

    added: Mapping[str, Tensor] = field(default_factory=dict)
    base: str = ""
    trained: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Provenance:
    """What a file says of itself only to who knows its kind, in words for people.

    program: what wrote it. era: when such files were written. container: the format and its version. assumed: keys of
    the config that the file does not say, with what was taken. lacks: what else is missing, each in few words.
    quantized: how its weights were, where their types do not tell.
    """

    program: str = ""
    era: str = ""
    container: str = ""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    quantized: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, or a view of one.

    config: Hugging Face's key names. naming: whose tensor names and row orders these are ("huggingface", "meta",
    CANONICAL ...), a key of Architecture.namings. metadata: further facts a writer may keep (name, author, licence).
    source: how to get it again; it is what pickles. adapter: see Adapter; None for a model. provenance: of a file whose
    kind says more than its words do. spare: names of tensors that are left out where the model has no place for them,
    since they are zeros that its file has for every weight.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    naming: str
    tokenizer: TokenizerMaterial = field(default_factory=TokenizerMaterial)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: tuple[Callable[..., Checkpoint], tuple[Any, ...]] | None = None
    adapter: Adapter | None = None
    provenance: Provenance | None = None
    spare: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[Any, ...]]:
        if self.source is None:
            raise TypeError(f"the checkpoint of {self.path} was made in memory; it cannot be pickled")
        return self.source

    @property
    def vocabulary_only(self) -> bool:
        """Whether it is a tokenizer, and nothing that could be run."""
        return self.adapter is not None or not self.config and not self.tensors

    def having(self, **changes: Any) -> Checkpoint:
        """A view with some fields replaced; it says itself how it pickles, or does not."""
        return replace(self, **{"source": None, **changes})


def check_model(checkpoint: Checkpoint) -> None:
    """Raises BestiaryError for a tokenizer without weights, and for an adapter."""
    if checkpoint.adapter is not None:
        made_for = f" ({short(checkpoint.adapter.base)})" if checkpoint.adapter.base else ""
        raise BestiaryError(f"{checkpoint.path} is an adapter and no model by itself: `merge` and `convert` put it "
                            f"together with the model it was made for{made_for}, which --base names")
    if checkpoint.vocabulary_only:
        raise BestiaryError(f"{checkpoint.path} holds a tokenizer and no weights")


def Overlay(base: Checkpoint, function: Callable[[Checkpoint], Mapping[str, Tensor]]) -> Checkpoint:  # noqa: N802
    """A checkpoint of lazy tensors over another: `function` gives the tensors it adds or replaces. It pickles where
    `base` and `function` do (a delta or an adapter binds itself with functools.partial)."""
    added = function(base)
    return base.having(tensors={**base.tensors, **added}, spare=base.spare - added.keys(),
                       source=(Overlay, (base, function)))


def extended(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The base with further tensors, a trained prefix for example, and what the other's config says and the base's
    does not. Raises BestiaryError where the two do not stand side by side."""
    if other.naming != base.naming:
        raise BestiaryError(f"{other.path} has the tensor names of {other.naming!r} checkpoints, {base.path} those of "
                            f"{base.naming!r}")
    if not other.tensors:
        raise BestiaryError(f"{other.path} holds no tensors to add")
    if both := sorted(base.tensors.keys() & other.tensors.keys()):
        raise BestiaryError(f"{other.path} and {base.path} both hold {both[0]}" +
                            (f" and {len(both) - 1} more tensors" if len(both) > 1 else ""))
    for key in ONE_MODEL:
        mine, theirs = base.config.get(key), other.config.get(key)
        if mine is not None and theirs is not None and mine != theirs:
            raise BestiaryError(f"{other.path} is made for another model than {base.path}: {key} = {short(theirs)} in "
                                f"its config, {short(mine)} in that of the model")
    config = {**other.config, **{key: value for key, value in base.config.items() if value is not None}}
    return base.having(tensors={**base.tensors, **other.tensors}, config=config, source=(extended, (base, other)))
