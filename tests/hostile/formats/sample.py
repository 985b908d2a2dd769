"""A valid model or tokenizer, its damage by number, and using it as far as it gets."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from bestiary import inspection
from bestiary.backend import Limits
from bestiary.canonical import to_canonical
from bestiary.chat import template_of
from bestiary.checkpoint import Checkpoint
from bestiary.cli import inspect
from bestiary.encoding import F32
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import Model, make_tokenizer
from bestiary.past import compiled
from bestiary.saving import save_as
from bestiary.testing.damage import damaged
from bestiary.tokenizer import Stream, Tokenizer

Files = dict[str, bytes]
Damage = Callable[[Files, int], tuple[str, Files]]
MESSAGES = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello <s> world"},
            {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"})
SHARE = 4
"""One in so many is converted, as far as that gets."""
TEXT = "Hello <s>  wörld\n\x00 12345 </s>"


def generic(files: Files, seed: int) -> tuple[str, Files]:
    """Damage to one of the files, by the bytes or by the JSON."""
    source = random.Random(f"file {seed}")
    name = source.choice(sorted(files))
    if source.random() < 0.02:
        return f"{name} is gone", {other: data for other, data in files.items() if other != name}
    what, data = damaged(files[name], seed)
    return f"{name}: {what}", {**files, name: data}


@dataclass
class Sample:
    """files: by name; what is opened is the folder they lie in, or the one called `opened`. damage: what is done for a
    number. use: with what was opened; by default the model is run, and one in SHARE is converted. loader: the name
    it is read by."""

    files: Files
    loader: str
    opened: str = ""
    damage: Damage = generic
    use: Callable[[Path, str, Host], None] | None = None

    def case(self, host: Host, folder: Path) -> Callable[[int], None]:
        """Uses the sample, damaged by the seed."""
        def case(seed: int) -> None:
            self.attempt(self.damaged(seed)[1], host, folder)

        return case

    def damaged(self, seed: int) -> tuple[str, Files]:
        """What is done for the number, and the files of it: never as they were."""
        while True:
            how, files = self.damage(self.files, seed)
            if files != self.files:
                return how, files
            seed += 1_000_000_007

    def attempt(self, files: Mapping[str, bytes], host: Host, folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        for path in list(folder.iterdir()):
            if path.name not in files:
                path.unlink()
        path = folder / self.opened if self.opened else folder
        if self.use is not None:
            return self.use(path, self.loader, host)
        refusals = Refusals()
        with refusals.step():
            run(path, self.loader, host)
        with refusals.step():
            if sum(map(crc32, files.values())) % SHARE == 0:
                convert(path, self.loader, host, folder.parent / "out.gguf")
        return refusals.done()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, if the machine has that."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="bestiary-", dir=memory if memory.is_dir() else None))
    folder = place / "in"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Refusals:
    """Goes on where one step of several is refused; the first refusal is raised at the end."""

    def __init__(self) -> None:
        self.first: BestiaryError | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        try:
            yield
        except BestiaryError as error:
            self.first = self.first or error

    def done(self) -> None:
        if self.first is not None:
            raise self.first


def run(path: Path, loader: str, host: Host) -> None:
    """All that a user may do with a model, each step as far as it gets."""
    refusals = Refusals()
    with refusals.step():
        host.recognise(path)
    with refusals.step():
        look(path, loader, host)
    checkpoint = host.open(path, loader)
    with refusals.step():
        read_tokenizer(checkpoint, host)
    for tensor in checkpoint.tensors.values():
        with refusals.step():
            for row in range(0, tensor.rows, 1 << 10):
                tensor.decode(row, min(row + (1 << 10), tensor.rows))
    with refusals.step():
        forward(checkpoint, host)
    refusals.done()


def look(path: Path, loader: str, host: Host) -> None:
    """What `inspect` prints, for people and for programs: nothing of a file moves a cursor or ends a line."""
    facts = inspection.inspect(path, host, loader)
    words = [*inspect.text(facts, tensors=True).split("\n"), *inspect.as_json_text(facts).split("\n")]
    wrong = [line for line in words if not line.isprintable()]
    if wrong:
        raise ValueError(f"inspect prints {wrong[0]!r}")


def convert(path: Path, loader: str, host: Host, out: Path) -> None:
    """The model as a file of another type. What is written can be read, whatever it was made of."""
    checkpoint = host.open(path, loader)
    if not checkpoint.tensors:
        return
    save_as(path, out, "q4_0", host, loader=loader, requantize=True, force=True)
    try:
        written = host.open(out)
        for tensor in written.tensors.values():
            tensor.decode(0, min(tensor.rows, 1 << 10))
    except BestiaryError as error:
        raise ValueError(f"what was written cannot be read: {error}") from error


def read_tokenizer(checkpoint: Checkpoint, host: Host) -> None:
    """Builds the tokenizer and the chat format, and uses both."""
    refusals, family = Refusals(), None
    if checkpoint.config or checkpoint.tensors:
        with refusals.step():
            family = host.architecture_of(checkpoint.config, checkpoint.tokenizer)
    tokenizer = make_tokenizer(checkpoint.tokenizer, family, checkpoint.config, host)
    if tokenizer is not None:
        speak(tokenizer)
        if checkpoint.tokenizer.chat_template is not None:
            tokenizer.encode_segments(template_of(checkpoint.tokenizer, tokenizer, host, family).render(MESSAGES))
    refusals.done()


def speak(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(TEXT, bos=True, special=True), *tokenizer.encode(TEXT)]
    tokenizer.decode(ids)
    stream = Stream(tokenizer)
    for token in (*ids[:8], *range(min(tokenizer.size, 8)), tokenizer.size - 1):
        stream.push(token)
        tokenizer.name(token)
        tokenizer.special(token)
    stream.finish()


def forward(checkpoint: Checkpoint, host: Host) -> None:
    """Three tokens through both backends, with the limits that `load` sets."""
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer)
    checkpoint, graph = to_canonical(checkpoint, family)
    context = int(checkpoint.config["max_position_embeddings"])
    cache = "f32" if all(tensor.encoding == F32 for tensor in checkpoint.tensors.values()) else "f16"
    limits = Limits(context, 1, min(512, context), 1, 1, cache, cache)
    for name in ("numpy", "cpu"):
        backend = host.backends[name]
        if host.unavailable(backend) is None:
            plan = compiled(backend, graph, checkpoint.tensors, limits)
            with Model(checkpoint, family, backend, plan, None) as model, np.errstate(all="ignore"):
                model.logits([token % graph.vocabulary for token in range(min(3, context))])
