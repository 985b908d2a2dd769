"""What a plugin provides for a model family: its names, its config, its forward pass, its ways with text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.checkpoint import TokenizerMaterial
    from bestiary.graph import Graph
    from bestiary.template import Template
    from bestiary.tensor import Tensor
    from bestiary.tokenizer import Tokenizer
    from bestiary.transform import Transform

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """Tensors of a naming and the canonical ones they are. The names are patterns: each `{}` stands for an index, at
    most two, the same on both sides; with Stack an index of the sources is missing in the target.

    transform: config -> the Transform from sources to targets; None where the tensor is the same.
    """

    sources: str | tuple[str, ...]
    targets: str | tuple[str, ...]
    transform: Callable[[Config], Transform] | None = None


@dataclass(frozen=True)
class Key:
    """A config key and the metadata key it has in a canonical file; `{arch}` stands for the architecture's name.

    to_file, from_file: conversions of the value; a value of None is left out.
    """

    config: str
    file: str
    kind: str
    """"u32", "f32", "bool", "str", "u32[]", "f32[]" ..."""
    to_file: Callable[[Any], Any] | None = None
    from_file: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer rule of byte-level BPE, for vocabularies without a tokenizer.json: the regular expressions that
    text is split by, in order (Oniguruma syntax), and whether a piece that is in the vocabulary is taken whole."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    prefix_space: bool = False


@dataclass(frozen=True)
class RankList:
    """A tokenizer file that is a bare list of byte-level BPE ranks: what it does not say itself.

    size: its ranks; by their number a list is known. pre_tokenizer: the name of its splitting rule. special: the
    spellings of the tokens whose ids follow the ranks. bos, eos, ends: of these; bos begins every prompt, any of ends
    ends a generation.
    """

    size: int
    pre_tokenizer: str
    special: tuple[str, ...]
    bos: str
    eos: str
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownVocabulary:
    """A tokenizer that models of the family come with: how many pieces it has, whose it is in words, and the sizes of
    the vocabularies (rows of the embedding) that it belongs to."""

    pieces: int
    words: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PromptLayout:
    """Where tokens stand: the positions of a prompt's tokens, (streams, n), those of the first token after it and how
    they go on from there, one number a stream, and how many tokens are the prompt's prefix."""

    positions: tuple[tuple[int, ...], ...]
    next: tuple[int, ...]
    step: tuple[int, ...]
    prefix: int = 0


class Architecture(ABC):
    """A model family."""

    name: str
    """The canonical file's name for it, unless it has `filed_as`."""
    filed_as: str = ""
    """The canonical file's name for it where that is another family's too: files of both hold all that either's `keys`
    say, and `claims` tells the configs apart."""
    namings: Mapping[str, tuple[Rule, ...]]
    """How other namings spell the canonical tensors."""
    ignorable: tuple[str, ...] = ()
    """Patterns (regular expressions, matched in full) of tensors that a checkpoint may hold and nobody needs."""
    keys: tuple[Key, ...] = ()
    """Metadata keys beside the common ones."""
    pre_tokenizers: Mapping[str, PreTokenizer] = {}
    """Splitting rules by the names they have in files, also where two names mean one rule."""
    rank_lists: tuple[RankList, ...] = ()
    vocabularies: tuple[KnownVocabulary, ...] = ()
    """Tokenizers that are taken for one another when models are merged."""
    templates: Mapping[str, Template] = {}
    prompts: Mapping[str, str] = {}
    """Texts that guides to such models begin a prompt with, by the name of the file they have there."""

    @property
    def file_name(self) -> str:
        """What canonical files call it."""
        return self.filed_as or self.name

    @abstractmethod
    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        """How sure it is that the model is of this family: 0 not at all ... 100 certain."""

    @abstractmethod
    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The config with every value that `graph` uses present, from the config, the canonical shapes, and documented
        defaults. Raises BestiaryError for a value that is not implemented, by key and value."""

    @abstractmethod
    def graph(self, config: Config, context: int) -> Graph:
        """The forward pass, from a normalised config. context: tokens that a sequence may hold; whatever it is, the
        graphs of one config declare the same weights."""

    @abstractmethod
    def example_config(self) -> dict[str, Any]:
        """A tiny config for tests."""

    def derived(self, config: Config) -> Mapping[str, Tensor]:
        """Canonical tensors that follow from the config and stand in no checkpoint."""
        return {}

    def published_config(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A normalised config as the family's authors would have published it: `normalise` gives all of its values
        again. tensors: the canonical ones, where something is only told by them; those that are then `derived` are
        left out of what is published."""
        return dict(config)

    def spelling(self, naming: str, config: Config) -> tuple[Rule, ...]:
        """The rules that give canonical tensors the names of that naming. Of several for one tensor the first counts:
        where generations of a family are spelled differently, the published config says which it is."""
        return self.namings[naming]

    def layout(self, ids: list[int], config: Config) -> PromptLayout:
        """Positions of a prompt's tokens and of those generated after it: by default one stream that counts."""
        return PromptLayout((tuple(range(len(ids))),), next=(len(ids),), step=(1,))

    def material(self, material: TokenizerMaterial, config: Config) -> TokenizerMaterial:
        """What the tokenizer is made of, with what the family's own programs know and its files do not say: further
        special tokens, which ids end a text. Of what it gave already it gives the same again."""
        return material

    def wrap(self, tokenizer: Tokenizer, config: Config) -> Tokenizer:
        """The tokenizer with the family's own handling of text around it."""
        return tokenizer


COMMON_KEYS = (
    Key("max_position_embeddings", "{arch}.context_length", "u32"),
    Key("hidden_size", "{arch}.embedding_length", "u32"),
    Key("num_hidden_layers", "{arch}.block_count", "u32"),
    Key("intermediate_size", "{arch}.feed_forward_length", "u32"),
    Key("num_attention_heads", "{arch}.attention.head_count", "u32"),
    Key("num_key_value_heads", "{arch}.attention.head_count_kv", "u32"),
    Key("head_dim", "{arch}.attention.key_length", "u32"),
    Key("head_dim", "{arch}.attention.value_length", "u32"),
    Key("rms_norm_eps", "{arch}.attention.layer_norm_rms_epsilon", "f32"),
    Key("layer_norm_eps", "{arch}.attention.layer_norm_epsilon", "f32"),
    Key("rope_theta", "{arch}.rope.freq_base", "f32"),
    Key("sliding_window", "{arch}.attention.sliding_window", "u32"),
    Key("vocab_size", "{arch}.vocab_size", "u32"),
)
"""The metadata keys that families share."""
