"""The backend hydra: two heads, each running a part of the layers as a graph of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from bestiary.plugin import Backend, Batch, Graph, KVCache, Limits, Plan, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.backend import Progress
    from bestiary.tensor import Tensor

bestiary_api = 1  # the version of the hooks that this is written for


class HydraCache(KVCache):
    def __init__(self, first: KVCache, second: KVCache) -> None:
        self.first, self.second = first, second

    def length(self, sequence: int) -> int:
        return self.second.length(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        self.first.truncate(sequence, length)
        self.second.truncate(sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self.first.copy(source, target, length)
        self.second.copy(source, target, length)

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes


class HydraPlan(Plan):
    def __init__(self, graph: Graph, limits: Limits, first: Plan, second: Plan) -> None:
        self.graph, self.limits, self.first, self.second = graph, limits, first, second

    def new_cache(self, limits: Limits | None = None) -> HydraCache:
        return HydraCache(self.first.new_cache(limits), self.second.new_cache(limits))

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        import numpy as np

        if not isinstance(cache, HydraCache):
            raise TypeError("the cache is not one of this plan's")
        everything = np.arange(len(batch.sequences), dtype=np.int32)
        before = {int(sequence): cache.length(int(sequence)) for sequence in batch.sequences}
        hidden = self.first.forward(replace(batch, wanted=everything), cache.first, "hidden")  # (tokens, width)
        try:
            return self.second.forward(replace(batch, tokens=None, hidden=hidden), cache.second, output)
        except BaseException:
            for sequence, length in before.items():  # a forward that fails leaves the cache as it was
                cache.first.truncate(sequence, length)
            raise

    def close(self) -> None:
        self.first.close()
        self.second.close()


class Hydra(Backend):
    name = "hydra"

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *,
                share: Plan | None = None, progress: Progress | None = None) -> HydraPlan:
        from bestiary.host import Host, HostSettings

        head = Host(HostSettings(names=())).backends["numpy"]  # a built-in one does the work
        shared = (share.first, share.second) if isinstance(share, HydraPlan) else (None, None)
        first, second = (head.compile(part, tensors, limits, share=plan, progress=progress)
                         for part, plan in zip(graph.cut(graph.layers // 2), shared, strict=True))
        return HydraPlan(graph, limits, first, second)


@hookimpl
def bestiary_backends() -> Iterable[Backend]:
    return [Hydra()]
