"""What a plugin provides to execute graphs: a backend compiles a graph to a plan, a plan runs batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.graph import Graph
    from bestiary.tensor import Tensor

Progress = Callable[[int, int, str], None]
"""Called as progress(done bytes, all bytes, what is being done)."""


@dataclass(frozen=True)
class Limits:
    """context: tokens a sequence may hold. sequences: how many at once. batch: tokens of one forward at most.
    threads: None lets the backend choose; threads_prefill: the same for batches of many tokens.
    cache_type_k, cache_type_v: encodings of the KV cache by name: f32, f16 and what else the backend knows."""

    context: int
    sequences: int = 1
    batch: int = 512
    threads: int | None = None
    threads_prefill: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"


@dataclass(frozen=True)
class Batch:
    """What one forward runs. Tokens of one sequence stand in the order of their positions in the cache; several
    sequences may be mixed.

    tokens: ids, (n,) int32, or None where `hidden` (n, width) float32 takes their place (a graph that was cut).
    positions: (streams, n) int32, what `rope` and position embeddings use. sequences: (n,) int32.
    wanted: indices of the tokens whose output is asked for, (m,) int32.
    prefixes: sequence -> length of its prefix, for graphs with a prefix mask.
    """

    tokens: NDArray[np.int32] | None
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    wanted: NDArray[np.int32]
    hidden: NDArray[np.float32] | None = None
    prefixes: Mapping[int, int] | None = None


class KVCache(ABC):
    """The keys and values of the sequences so far."""

    @abstractmethod
    def length(self, sequence: int) -> int:
        """Tokens the sequence holds."""

    @abstractmethod
    def truncate(self, sequence: int, length: int) -> None:
        """Forgets all but the first `length` tokens of the sequence."""

    @abstractmethod
    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` the first `length` tokens of `source`."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that it takes."""


class Plan(ABC):
    """A graph bound to packed weights. One forward at a time."""

    graph: Graph
    limits: Limits

    @abstractmethod
    def new_cache(self, limits: Limits | None = None) -> KVCache:
        """An empty cache, by default for the plan's own limits."""

    @abstractmethod
    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        """Runs the batch and appends its tokens to the cache. Returns a row for each wanted token: logits,
        (m, vocabulary), or with output "hidden" the last hidden state, (m, width). Raises BestiaryError where a token
        id is outside the vocabulary or a sequence would outgrow the context; the cache is then as before."""

    def close(self) -> None:  # noqa: B027 - most plans have nothing to free
        """Frees the weights and threads; the plan is not used again."""


@dataclass(frozen=True)
class Needs:
    """Bytes of memory that a plan takes: its weights, a cache all of whose sequences are full, and, estimated, what is
    computed of a batch. The program itself is not in them."""

    weights: int
    cache: int
    work: int


class Backend(ABC):
    """A way to execute graphs."""

    name: str
    cache_types: tuple[str, ...] = ("f32", "f16")
    """The encodings that it knows for keys and values."""

    @abstractmethod
    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *,
                share: Plan | None = None, progress: Progress | None = None) -> Plan:
        """Packs the tensors that the graph uses. share: an earlier plan of this backend over the same tensors, whose
        packed weights are used again. Raises BestiaryError for an operation, encoding or cache type it cannot run."""

    def needs(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits) -> Needs | None:
        """What a plan of these would take; only shapes and encodings are looked at. None where it cannot say."""
        return None

    def available(self) -> str | None:
        """None, or the reason why this backend does not run here."""
        return None

    def describe(self) -> Mapping[str, str]:
        """Facts worth showing: the instruction set, the number of threads."""
        return {}

    rank: int = 0
    """Which backend is taken where none is named: the available one of the highest rank."""
    exact: bool = False
    """Whether a token's logits are the same to the bit whatever the threads, the batch, the pieces of its prompt."""
    orders: bool = False
    """Whether it runs the operation `order`: a weight whose encoding holds its columns in another order is then
    compiled so (see Tensor.ordered), else decoded."""
