"""A plugin that gives something of every kind under a name that is taken."""

from pathlib import Path
from typing import Any

from bestiary.plugin import (
    Architecture,
    Backend,
    Encoding,
    Loader,
    PreTokenizer,
    Quantizer,
    RankList,
    TurnTemplate,
    Writer,
    hookimpl,
)


class Llama(Architecture):
    name, namings = "llama", {}
    pre_tokenizers = {"llama-bpe": PreTokenizer((" ",))}
    rank_lists = (RankList(128000, "gpt-2", (), "a", "b"),)
    templates = {"vicuna-v0": TurnTemplate("vicuna-v0", "", "", "", "")}

    def claims(self, config: Any, tokenizer: Any) -> int:
        return 0

    def normalise(self, config: Any, shapes: Any) -> Any:
        return dict(config)

    def graph(self, config: Any, context: int) -> Any:
        raise NotImplementedError

    def example_config(self) -> Any:
        return {}


class Folder(Loader):
    name = "huggingface"

    def recognise(self, path: Path) -> int:
        return 0

    def open(self, path: Path, host: Any) -> Any:
        raise NotImplementedError


class Gguf(Writer):
    name, suffix = "gguf", ".gg"

    def save(self, checkpoint: Any, path: Path, host: Any, *, force: bool = False, progress: Any = None) -> None:
        raise NotImplementedError


def read(rows: Any, columns: int) -> Any:
    raise NotImplementedError


class Four(Quantizer):
    name, encoding = "q4_1", Encoding("q5_1", 8, (8,), decoder=read)

    def quantize(self, rows: Any, importance: Any = None) -> Any:
        raise NotImplementedError


class Slow(Backend):
    name, rank = "numpy", -1

    def compile(self, graph: Any, tensors: Any, limits: Any, *, share: Any = None, progress: Any = None) -> Any:
        raise NotImplementedError


@hookimpl
def bestiary_architectures() -> Any:
    return [Llama()]


@hookimpl
def bestiary_loaders() -> Any:
    return [Folder()]


@hookimpl
def bestiary_writers() -> Any:
    return [Gguf()]


@hookimpl
def bestiary_quantizers() -> Any:
    return [Four()]


@hookimpl
def bestiary_backends() -> Any:
    return [Slow()]


@hookimpl
def bestiary_commands() -> Any:
    return {"run": "bad_clash:run"}


def run() -> None:
    raise NotImplementedError
