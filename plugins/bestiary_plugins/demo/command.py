"""`bestiary demo`: a model is converted, quantized, and talks; then what each type costs and gives."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.errors import BestiaryError
from bestiary.host import Host

if TYPE_CHECKING:
    from bestiary.model import Model

HERE = Path(__file__).parent
TYPES = ("f16", "q8_0", "q6_k", "q5_1", "q5_0", "q5_k", "q4_1", "q4_0", "q4_k", "q3_k", "q2_k")
"""The types of the table, from the largest; those that are not provided are left out."""
SMALL = "q4_0"
SEED, PREFILL, DECODE, CHUNK = 11, 256, 64, 256
FIGURES = ("type", "size", "bits per weight", "perplexity", "prefill tokens/s", "decode tokens/s")


def model() -> Path:
    """The folder of the model that comes with the package; `bestiary run` takes it where none is named."""
    return HERE / "model"


def demo(
    context: typer.Context,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help="Backend.")] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", metavar="N", help="Threads.")] = None,
    seed: Annotated[int, typer.Option("-s", "--seed", metavar="N", help="Random seed of the stories.")] = SEED,
    beasts: Annotated[bool, typer.Option("--beasts", help="A tiny random model of every family instead.")] = False,
    keep: Annotated[Path | None, typer.Option("--keep", metavar="FOLDER", help="Keep the models there.")] = None,
) -> None:
    """Convert, quantize and run a small model, and compare the types."""
    from bestiary.model import load
    from bestiary.saving import save_as

    host = context.find_object(Host) or Host()
    if beasts:
        from bestiary_plugins.demo.beasts import beasts as every_family

        with _saying_once(), _folder(keep) as folder:
            return every_family(host, folder, backend, threads, seed)
    with _saying_once(), _folder(keep) as folder:
        files = {kind: folder / f"model-{kind}.gguf" for kind in TYPES if kind in host.quantizers}
        first = next(iter(files))
        for kind in (first, SMALL):
            source = model() if kind == first else files[first]
            saved = save_as(source, files[kind], kind, host)
            print(_command("convert" if kind == first else "quantize", source, files[kind], kind),
                  f"  # {_size(saved.bytes)}, {saved.seconds:.2f} s", flush=True)
        with load(files[SMALL], backend, threads, host=host) as small:
            for prompt in json.loads((HERE / "prompts.json").read_text("utf-8")):
                _tell(small, prompt, seed)
        _compare(files, backend, threads, host)
    print("\nNow you:  bestiary run -p \"Once upon a time\"      bestiary --help")


def _tell(small: Model, prompt: dict[str, str], seed: int) -> None:
    text = prompt["prompt"]
    print(f"\n> {text}" if prompt["kind"] == "question" else f"\n{text}", end="", flush=True)
    pieces = small.generate(text, max_tokens=400 if prompt["kind"] == "story" else 48, temperature=0.7, seed=seed,
                            stop="\n\n")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _compare(files: dict[str, Path], backend: str | None, threads: int | None, host: Host) -> None:
    """The table, a row as soon as it is measured."""
    from bestiary.benchmark import Bench
    from bestiary.convert import types
    from bestiary.model import load
    from bestiary.perplexity import perplexity
    from bestiary.saving import save_as

    text = (HERE / "held_back.txt").read_text("utf-8")
    source = files[next(iter(files))]
    print("\n" + "  ".join(title.rjust(_width(title)) for title in FIGURES), flush=True)
    for kind, file in files.items():
        if not file.exists():
            save_as(source, file, kind, host)
        with load(file, backend, threads, host=host) as loaded:
            counts: Any = types(loaded.checkpoint).values()
            bits = 8 * sum(entry["bytes"] for entry in counts) / sum(entry["weights"] for entry in counts)
            measured = perplexity(loaded, text, CHUNK)
            bench = Bench(loaded)
            prefill, decode = bench.prefill(PREFILL), bench.decode(DECODE)
        cells = (kind, _size(file.stat().st_size), f"{bits:.2f}", f"{measured.perplexity:.3f} ±{measured.error:.3f}",
                 f"{prefill.tokens_per_second:,.0f}", f"{decode.tokens_per_second:,.0f}")
        print("  ".join(cell.rjust(_width(title)) for cell, title in zip(cells, FIGURES, strict=True)), flush=True)


def _width(title: str) -> int:
    return max(len(title), 14 if title == "perplexity" else 8)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _command(name: str, source: Path, target: Path, kind: str) -> str:
    middle = f"{target.name} --outtype {kind}" if name == "convert" else f"{target.name} {kind}"
    return f"$ bestiary {name} {source.name} {middle}"


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where the models are written: a new folder that stays, or one that is gone at the end."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="bestiary-demo-") as folder:
            yield Path(folder)
        return
    try:
        kept.mkdir(parents=True)
    except FileExistsError:
        raise BestiaryError(f"{kept} is there already; remove it, or choose another with --keep") from None
    except OSError as error:
        raise BestiaryError(f"cannot write {kept}: {error.strerror}") from None
    yield kept


@contextlib.contextmanager
def _saying_once() -> Iterator[None]:
    """What the library says of each type alike is said once."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        known = message in said
        said.add(message)
        return not known

    logger = logging.getLogger("bestiary")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)
