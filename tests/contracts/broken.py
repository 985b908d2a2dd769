"""Plugins that are right but for one thing each, and how a single test of a contract is run on one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.backend import Batch, KVCache, Limits, Plan
from bestiary.checkpoint import Checkpoint, TokenizerMaterial
from bestiary.contributions import KINDS
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.graph import Graph, Trace
from bestiary.host import Host
from bestiary.loader import Loader
from bestiary.plugin import F32, PromptLayout, Rule, Segment, Template
from bestiary.strict_json import parse_object
from bestiary.tensor import ArrayTensor, Tensor
from bestiary.testing import Contract, HostWith
from bestiary.testing.text import ByteTokenizer
from bestiary.tokenizer import Tokenizer
from bestiary.transform import Transform
from bestiary_plugins.architectures.llama import Llama
from bestiary_plugins.backends.numpy import NumpyBackend, NumpyPlan
from bestiary_plugins.loaders.gguf_writer import GgufWriter
from bestiary_plugins.quantizers.q8_0 import QuantizerQ8_0

Floats = NDArray[np.float32]
Config = Mapping[str, Any]


def run(contract: Contract, test: str, item: Any, folder: Path) -> None:
    """As pytest would."""
    function = getattr(contract, test)
    given: dict[str, Any] = {KINDS[contract.kind].singular: item, "tmp_path": folder}
    names = inspect.signature(function).parameters
    if "host" in names:
        given["host"] = HostWith(contract.kind, item)
    if "path" in names:
        (folder / "sample").mkdir()
        given["path"] = contract.sample(folder / "sample")  # type: ignore[attr-defined]
    function(**{name: given[name] for name in names})


class Dotted(Llama):
    """Right, with an operation of its own between the last layer and the output: the base of what follows."""

    name = "dotted"
    namings = {"huggingface": (
        *Llama.namings["huggingface"], Rule("dots.weight", "dots.weight"))}
    function = "dotted"

    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        return 90 if config.get("model_type") == "dotted" else 0

    def graph(self, config: Config, context: int) -> Graph:
        g, c = Trace(), config
        width = c["hidden_size"]
        x = g.embed("token_embd.weight", c["vocab_size"], width)
        for i in g.layers(c["num_hidden_layers"]):
            q, k, v = (g.linear(x, f"blk.{i}.attn_{part}.weight", width) for part in "qkv")
            q, k = (g.rope(part, c["head_dim"], c["rope_theta"], factors=None) for part in (q, k))
            x = g.add(x, g.attention(q, k, v, c["num_attention_heads"], c["num_attention_heads"]))
        x = g.call(f"{__name__}:{self.function}", x, weights={"dots": ("dots.weight", (width,))}, width=width)
        return g.finish(g.linear(x, "output.weight", c["vocab_size"]), x)

    def example_config(self) -> dict[str, Any]:
        return {"model_type": "dotted", "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "vocab_size": 41, "max_position_embeddings": 32}


def dotted(x: Floats, dots: Floats) -> Floats:
    return np.asarray(np.tanh(x) * dots, np.float32)


def summed(x: Floats, dots: Floats) -> Floats:
    return np.asarray(np.tanh(np.cumsum(x, axis=0)) * dots, np.float32)


def centred(x: Floats, dots: Floats) -> Floats:
    return np.asarray(x - x.mean(axis=0) + dots, np.float32)


def narrowed(x: Floats, dots: Floats) -> Floats:
    return x[:, 1:]


class Summing(Dotted):
    function = "summed"


class Centring(Dotted):
    function = "centred"


class Narrowing(Dotted):
    function = "narrowed"


class OneMore(Dotted):
    def graph(self, config: Config, context: int) -> Graph:
        return super().graph({**config, "vocab_size": config["vocab_size"] + 1}, context)


class BadName(Dotted):
    def graph(self, config: Config, context: int) -> Graph:
        graph = super().graph(config, context)
        nodes = tuple(replace(node, weights={part: name.replace("output", "lm_head.Layers")
                                             for part, name in node.weights.items()}) for node in graph.nodes)
        return replace(graph, nodes=nodes, weights={
            name.replace("output", "lm_head.Layers"): shape for name, shape in graph.weights.items()})


class Rolled(Transform):
    """Its inverse is not one."""

    def apply(self, sources: Any) -> list[Tensor]:
        return [ArrayTensor(np.roll(source.array(), 1, axis=0)) for source in sources]

    @property
    def inverse(self) -> Rolled:
        return self


def rolled(config: Config) -> Transform:
    return Rolled()


class OneWay(Dotted):
    namings = {"huggingface": (*Llama.namings["huggingface"], Rule("dots.weight", "dots.weight", rolled))}


class Nameless(Dotted):
    namings = Llama.namings


class Careless(Dotted):
    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().normalise({**config, "vocab_size": 1}, shapes), "vocab_size": int(config["vocab_size"])}


class Growing(Dotted):
    def normalise(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().normalise(config, shapes), "rope_theta": 2 * config.get("rope_theta", 100.0)}


class Greedy(Dotted):
    def claims(self, config: Config, tokenizer: TokenizerMaterial) -> int:
        return 90


class Unpicklable(Dotted):
    def __init__(self) -> None:
        self.made = lambda: 0


class Losing(Dotted):
    def wrap(self, tokenizer: Tokenizer, config: Config) -> Tokenizer:
        class Lower(ByteTokenizer):
            def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
                return super().encode(text.lower(), bos, special)

        return Lower()


class Misplacing(Dotted):
    def layout(self, ids: list[int], config: Mapping[str, Any]) -> PromptLayout:
        return replace(super().layout(ids, config), positions=(tuple(range(len(ids) - 1)),))


class Standing(Dotted):
    """The first token after a prompt stands at the beginning."""

    def layout(self, ids: list[int], config: Mapping[str, Any]) -> PromptLayout:
        return replace(super().layout(ids, config), next=(0,))


class Backwards(Dotted):
    def layout(self, ids: list[int], config: Mapping[str, Any]) -> PromptLayout:
        return replace(super().layout(ids, config), step=(-1,))


class Fickle(Dotted):
    """Another graph each time."""

    def __init__(self) -> None:
        self.calls = 0

    def graph(self, config: Config, context: int) -> Graph:
        self.calls += 1
        return super().graph({**config, "rope_theta": 100.0 + self.calls}, context)


class Trusting(Template):
    name = "trusting"

    def render(self, messages: Any) -> list[Segment]:
        return [Segment("".join(message["content"] for message in messages), True)]


class Injected(Dotted):
    templates = {"trusting": Trusting()}


class Coarse(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        return super().quantize(np.asarray(np.rint(rows * 8) / 8, np.float32))


class Neighbourly(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        blocks = super().quantize(rows)
        return blocks[::-1] if len(blocks) == 2 else blocks


class Short(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        return super().quantize(rows)[:, :-1]


class Strict(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        if not np.isfinite(rows).all():
            raise ValueError("weights must be finite")
        return super().quantize(rows)


class Weighing(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        return super().quantize(rows if importance is None else np.asarray(rows / importance, np.float32))


class InPlace(QuantizerQ8_0):
    def quantize(self, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        rows *= np.float32(0.5)
        return super().quantize(rows * 2)


def doubled(blocks: NDArray[np.uint8], columns: int) -> Floats:
    return 2 * QuantizerQ8_0.encoding.decode(blocks, columns)


class Lying(QuantizerQ8_0):
    """Its decoder means other weights than its layout."""

    encoding = replace(QuantizerQ8_0.encoding, name="lying", decoder=doubled)


class Forgetting(QuantizerQ8_0):
    keeps = (("output.weight", "q8_of_nobody"),)


class Flat(Loader):
    """A line of JSON, then the tensors. Right, and the base of what follows."""

    name = "flat"

    def recognise(self, path: Path) -> int:
        return 90 if path.suffix == ".flat" and path.is_file() else 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_flat(path)


def open_flat(path: Path) -> Checkpoint:
    file = DataFile(path)
    line = file.read(0, min(file.size, 1 << 16), "header").partition(b"\n")[0]
    shapes, tensors, offset = parse_object(line, f"{path}: its first line"), dict[str, Tensor](), len(line) + 1
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 1 << 40 for n in shape):
            raise BestiaryError(f"{path}: tensor {name} has a bad shape")
        tensors[name] = FileTensor(file, offset, tuple(shape), F32, name)
        offset += 4 * prod(shape)
    return Checkpoint(path, {"model_type": "flat"}, tensors, "huggingface", source=(open_flat, (path,)))


class Raising(Flat):
    """Lets json's own errors out."""

    def open(self, path: Path, host: Host) -> Checkpoint:
        json.loads(path.read_bytes().partition(b"\n")[0])
        return open_flat(path)


class Hungry(Flat):
    """Makes room before it looks whether the file has that much."""

    def open(self, path: Path, host: Host) -> Checkpoint:
        try:
            shapes = json.loads(path.read_bytes().partition(b"\n")[0])
            np.ones([min(int(size), 1 << 31) for size in next(iter(shapes.values()))])
        except (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError):
            raise BestiaryError(f"{path} is damaged") from None
        return open_flat(path)


class Everybodys(Flat):
    def recognise(self, path: Path) -> int:
        return 90


class Nervous(Flat):
    def recognise(self, path: Path) -> int:
        return 90 if path.read_bytes()[0] == ord("{") else 0


class Sourceless(Flat):
    def open(self, path: Path, host: Host) -> Checkpoint:
        return replace(open_flat(path), source=None)


class FromZero(FileTensor):
    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return super().read(0, stop - start)


class Rangeless(Flat):
    def open(self, path: Path, host: Host) -> Checkpoint:
        opened = open_flat(path)
        tensors = {name: FromZero(tensor.file, tensor.offset, tensor.shape, F32, name)
                   for name, tensor in opened.tensors.items() if isinstance(tensor, FileTensor)}
        return replace(opened, tensors=tensors)


def flat_sample(folder: Path) -> Path:
    path = folder / "model.flat"
    data = np.arange(10, dtype="<f4").tobytes()
    path.write_bytes(json.dumps({"a.weight": [2, 3], "b.weight": [4]}).encode() + b"\n" + data)
    return path


class Overwriting(GgufWriter):
    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False, progress: Any = None,
             ) -> None:
        super().save(checkpoint, path, host, force=True)


class Halving(GgufWriter):
    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False, progress: Any = None,
             ) -> None:
        with open(path, "wb") as file:
            file.write(b"GGUF")
        super().save(checkpoint, path, host, force=True)


class Dating(GgufWriter):
    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False, progress: Any = None,
             ) -> None:
        super().save(checkpoint.having(metadata={"general.path": str(path)}), path, host, force=force)


class Whole(GgufWriter):
    def save(self, checkpoint: Checkpoint, path: Path, host: Host, *, force: bool = False, progress: Any = None,
             ) -> None:
        tensors: dict[str, Tensor] = {name: ArrayTensor(tensor.array()) for name, tensor in checkpoint.tensors.items()}
        super().save(checkpoint.having(tensors=tensors), path, host, force=force)


class OtherPlan(Plan):
    """Has one graph and runs another."""

    def __init__(self, graph: Graph, limits: Limits, inner: Plan) -> None:
        self.graph, self.limits, self.inner = graph, limits, inner

    def new_cache(self, limits: Limits | None = None) -> KVCache:
        return self.inner.new_cache(limits)

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> Floats:
        return self.inner.forward(batch, cache, output)


class OtherGraph(NumpyBackend):
    """Runs another graph than it says: some operations with other params."""

    def __init__(self, op: str, **params: Any) -> None:
        self.op, self.params = op, params

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *, share: Plan | None = None,
                progress: Any = None) -> Any:
        nodes = tuple(replace(node, params={**node.params, **self.params}) if node.op == self.op else node
                      for node in graph.nodes)
        return OtherPlan(graph, limits, super().compile(replace(graph, nodes=nodes), tensors, limits))


class ChangedPlan(NumpyPlan):
    """A plan whose forward is wrapped."""

    around: Callable[[Callable[..., Floats], Batch, KVCache, str], Floats]

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> Floats:
        return type(self).around(super().forward, batch, cache, output)


class ChangedBackend(NumpyBackend):
    plan: type[ChangedPlan]

    def compile(self, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits, *, share: Plan | None = None,
                progress: Any = None) -> NumpyPlan:
        plan = super().compile(graph, tensors, limits)
        return self.plan(graph, plan.weights, limits)


class InWords(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Any:
        return forward(batch, cache, output).astype(str)


class OneWide(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Any:
        return forward(batch, cache, output)[:, :1]


class Flattened(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Any:
        return forward(batch, cache, output).ravel()


class ByCount(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Floats:
        rows: Floats = forward(batch, cache, output)
        return rows + np.float32(1e-2 * len(batch.sequences))


class AtEnd(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Floats:
        rows: Floats = forward(replace(batch, wanted=np.arange(len(batch.sequences), dtype=np.int32)), cache, output)
        return rows[:len(batch.wanted)]


class Clipping(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: KVCache, output: str) -> Floats:
        tokens = None if batch.tokens is None else batch.tokens.clip(0, 3)
        rows: Floats = forward(replace(batch, tokens=tokens), cache, output)
        return rows


class Advancing(ChangedPlan):
    @staticmethod
    def around(forward: Any, batch: Batch, cache: Any, output: str) -> Floats:
        try:
            rows: Floats = forward(batch, cache, output)
        except RuntimeError:
            cache.lengths[0] += 1
            raise
        return rows


class CountingBackend(ChangedBackend):
    plan = ByCount


class WordyBackend(ChangedBackend):
    plan = InWords


class NarrowBackend(ChangedBackend):
    plan = OneWide


class FlatBackend(ChangedBackend):
    plan = Flattened


class EndBackend(ChangedBackend):
    plan = AtEnd


class ClippingBackend(ChangedBackend):
    plan = Clipping


class AdvancingBackend(ChangedBackend):
    plan = Advancing


class Chatty(NumpyBackend):
    def describe(self) -> Any:
        return {"threads": 3}


class RefusingBackend(NumpyBackend):
    def compile(self, *given: Any, **more: Any) -> NumpyPlan:
        raise BestiaryError("not today")


class Exact(CountingBackend):
    exact = True
