"""The contract of a loader: what it recognises, what it opens, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.contributions import one_line
from bestiary.errors import BestiaryError
from bestiary.guarded_checkpoint import is_order
from bestiary.host import Host
from bestiary.loader import Loader, Writer
from bestiary.model import make_tokenizer
from bestiary.tensor import Ordered, Tensor
from bestiary.testing.contract import Broken, Contract, HostWith, expect, pickled
from bestiary.testing.damage import damaged
from bestiary.testing.hostile import MEMORY, SECONDS, only_refused

UNRELATED = {"of zeros": bytes(4096), "of noise": np.random.default_rng(2).bytes(5000),
             "of text": b"Once upon a time there was a file that was no model.\n" * 40, "of one byte": b"\x80"}

ROUNDED = 2.0 ** -7
"""By how much of its largest number a weight that is decoded to bf16 may be off, and more."""


class LoaderContract(Contract):
    """Subclass it as TestSomething with `loader`, and override `sample`. writer: one whose files the loader reads.
    header: bytes at the front of a file that say how to read the rest; at least half of the damage is there.
    damages: how many damaged variants of the sample are opened. memory, seconds: what one of them may take."""

    kind = "loaders"
    loader: Loader
    writer: Writer | None = None
    header: int | None = None
    damages: int = 300
    memory: int = MEMORY
    seconds: int = SECONDS

    @pytest.fixture
    def host(self, loader: Loader) -> Host:
        """What is installed and the loader."""
        return HostWith(self.kind, loader)

    def sample(self, folder: Path) -> Path:
        """Writes a small valid file, or folder, of the format into the folder, and says where."""
        raise NotImplementedError(f"{type(self).__name__} needs `def sample(self, folder)`, which writes a small valid "
                                  "file of the format there and returns its path")

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """The sample, alone with what belongs to it in a folder."""
        folder = tmp_path / "sample"
        folder.mkdir()
        return self.sample(folder)

    def test_the_host_takes_it(self, loader: Loader) -> None:
        self.check_contribution(loader)

    def test_it_pickles(self, loader: Loader) -> None:
        self.check_pickles(loader)

    def test_its_import_is_light(self, loader: Loader) -> None:
        self.check_import(loader)

    def test_it_recognises_its_own(self, loader: Loader, path: Path, host: Host) -> None:
        sure = loader.recognise(path)
        expect(type(sure) is int and 0 < sure <= 100, f"recognise() of the sample is {sure!r}; 1 to 100 say that it is "
                                                      "of this format")
        found = host.recognise(path)
        expect(found is loader, f"the sample is taken for {found.name}, which is surer of it")

    def test_it_leaves_others_alone(self, loader: Loader, path: Path, tmp_path: Path) -> None:
        """And never raises: one odd file must not stop the others."""
        folder = tmp_path / "unrelated"
        (folder / "empty").mkdir(parents=True)
        others = {"an empty folder": folder / "empty", "a folder of other things": folder,
                  "what does not exist": folder / "missing"}
        for what, data in {**UNRELATED, "that is empty": b""}.items():
            others[f"a file {what}"] = folder / what.replace(" ", "-")
            others[f"a file {what}"].write_bytes(data)
        for what, other in others.items():
            sure = self.said(loader, other, what)
            expect(sure == 0, f"recognise() of {what} is {sure}; it must be 0")
        for what, data in {**UNRELATED, "that is empty": b""}.items():
            named = folder / f"named{path.suffix}"
            named.write_bytes(data)
            sure = self.said(loader, named, f"a file {what} with the sample's suffix")
            expect(0 <= sure <= 100, f"recognise() is {sure}; the range is 0 to 100")

    def said(self, loader: Loader, path: Path, what: str) -> int:
        try:
            sure = loader.recognise(path)
        except Exception as error:
            raise Broken(f"recognise() of {what} raises {one_line(error)}; it must answer 0") from error
        expect(type(sure) is int, f"recognise() of {what} is {sure!r}, not a number")
        return sure

    def test_what_it_opens_is_a_checkpoint(self, loader: Loader, path: Path, host: Host) -> None:
        before = contents(path)
        opened = loader.open(path, host)
        expect(isinstance(opened, Checkpoint), f"open() gives {type(opened).__name__}, not a Checkpoint")
        expect(isinstance(opened.config, Mapping) and isinstance(opened.naming, str) and opened.naming,
               "config must be a mapping, naming the name of a naming")
        try:
            json.dumps(opened.config, default=float)
        except (TypeError, ValueError) as error:
            raise Broken(f"the config holds what JSON cannot: {error}") from None
        held = held_by(opened)
        expect(opened.config or held or not opened.tokenizer.empty, "the sample's checkpoint is empty")
        for name, tensor in held:
            expect(isinstance(name, str) and isinstance(tensor, Tensor), f"tensors has {name!r}: {tensor!r:.60}")
            expect(isinstance(tensor.shape, tuple) and all(type(size) is int and size > 0 for size in tensor.shape),
                   f"tensor {name} has the shape {tensor.shape}; a tuple of whole numbers above 0 is needed")
        outline: object = loader.outline(path, host)
        expect(outline is None or isinstance(outline, Checkpoint), f"outline() gives {type(outline).__name__}, not a "
                                                                   "Checkpoint or None")
        expect(contents(path) == before, "opening the file changes it")

    def test_a_tensor_reads_by_rows(self, loader: Loader, path: Path, host: Host) -> None:
        """Any range of rows is that of the whole, from several threads at once."""
        for name, tensor in held_by(loader.open(path, host)):
            whole, rows = tensor.read(0, tensor.rows), tensor.rows
            expect(whole.dtype == np.uint8 and whole.shape == (rows, tensor.row_bytes),
                   f"tensor {name}: read() gives {whole.dtype} of {whole.shape}; needed: uint8 of "
                   f"{(rows, tensor.row_bytes)}")
            ranges = sorted({(0, 0), (0, 1), (rows - 1, rows), (rows // 3, rows - rows // 3), (rows // 2, rows)})
            with ThreadPoolExecutor(3) as pool:
                parts = list(pool.map(lambda part, tensor=tensor: tensor.read(*part), ranges))
            for (start, stop), part in zip(ranges, parts, strict=True):
                expect(np.array_equal(part, whole[start:stop]), f"tensor {name}: rows {start} to {stop} by themselves "
                                                                "are other bytes than in the whole")
            expect(tensor.array().shape == tensor.shape, f"tensor {name}: array() has another shape")

    def test_what_a_tensor_offers_in_another_order_is_the_weight(self, loader: Loader, path: Path, host: Host) -> None:
        """But for the rounding of what is decoded."""
        for name, tensor in loader.open(path, host).tensors.items():
            if (offer := tensor.ordered) is None:
                continue
            fits = isinstance(offer, Ordered) and isinstance(offer.tensor, Tensor) \
                and offer.tensor.shape == tensor.shape and is_order(offer.order, tensor.columns)
            expect(fits, f"tensor {name}: ordered is {offer!r:.80}, not a tensor of its shape and an int64 array of "
                         "its columns")
            found, wanted = offer.tensor.array(), tensor.array()[..., offer.order]
            off = float(np.abs(found - wanted).max(initial=0))
            expect(off <= ROUNDED * np.abs(wanted).max(initial=0), f"tensor {name}: what it offers in another order of "
                                                                   f"columns is off by {off:.2g}")

    def test_a_checkpoint_comes_out_of_its_pickle(self, loader: Loader, path: Path, host: Host) -> None:
        opened = loader.open(path, host)
        expect(opened.source is not None, "the checkpoint has no source=(function, arguments), by which another "
                                          "process opens it again")
        same(pickled(opened, "the checkpoint"), opened, "from its pickle")

    def test_a_family_uses_every_tensor(self, loader: Loader, path: Path, host: Host) -> None:
        """Where a family that is installed claims the sample."""
        opened = loader.open(path, host)
        try:
            family = host.architecture_of(opened.config, opened.tokenizer)
        except BestiaryError:
            return  # the sample is nobody's
        if opened.tensors:
            try:
                to_canonical(opened, family)
            except BestiaryError as error:
                raise Broken(f"{family.name} claims the sample and cannot use it: {error}") from error

    def test_a_damaged_file_is_refused_in_words(self, loader: Loader, path: Path, host: Host, tmp_path: Path) -> None:
        """By a BestiaryError, or it opens, its tensors are read, and its tokenizer is made; with little memory, in
        little time."""
        originals = contents(path)
        names = sorted(name for name, data in originals.items() if data)
        whole = {name: originals[name] for name in names}
        target = tmp_path / "damaged" / path.name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copytree(path.parent, target.parent)

        def done(seed: int) -> tuple[str, str, bytes]:
            name = names[seed % len(names)]
            words, data = damaged(whole[name], seed, self.header)
            return name, words, data

        def case(seed: int) -> None:
            name, _, data = done(seed)
            place = target / name if path.is_dir() else target
            try:
                place.write_bytes(data)
                loader.recognise(target)
                opened = loader.open(target, host)
                for _, tensor in held_by(opened):
                    for start in range(0, tensor.rows, step := max(1, (1 << 20) // max(tensor.row_bytes, 1))):
                        tensor.decode(start, min(start + step, tensor.rows))
                make_tokenizer(opened.tokenizer, None, opened.config, host)
            finally:
                place.write_bytes(whole[name])

        seeds = range(self.damages)
        words = [f"{done(seed)[0]} with {done(seed)[1]} (damaged(data, {seed}, {self.header}))" for seed in seeds]
        tally = only_refused(case, words, "a damaged file", self.memory, self.seconds)
        expect(tally.refused, f"none of {self.damages} damaged files was refused: {tally}")

    def test_what_its_writer_writes_it_reads(self, loader: Loader, path: Path, host: Host, tmp_path: Path) -> None:
        """Where the class names a writer."""
        if self.writer is None:
            return
        opened = loader.open(path, host)
        if opened.naming != CANONICAL:
            opened, _ = to_canonical(opened, host.architecture_of(opened.config, opened.tokenizer))
        target = tmp_path / f"written{self.writer.suffix}"
        self.writer.save(opened, target, host)
        found = loader.open(target, host)
        if found.naming != CANONICAL:  # its config says the same in other keys
            family = host.architecture_of(opened.config, opened.tokenizer)
            found, graph = to_canonical(found, family)
            expect(graph == to_canonical(opened, family)[1], "written and read again it has another graph")
            opened = opened.having(config=found.config)
        same(found, opened, "written and read again")


def held_by(opened: Checkpoint) -> list[tuple[str, Tensor]]:
    """The tensors of a checkpoint, with those that they offer in another order of columns, and what an adapter adds."""
    offers = [(f"{name} (ordered)", offer.tensor) for name, tensor in opened.tensors.items()
              if (offer := tensor.ordered) is not None]
    return [*opened.tensors.items(), *offers, *(opened.adapter.added.items() if opened.adapter else ())]


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of each in a folder, by name."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {path.name: path.read_bytes()}


def same(found: Checkpoint, wanted: Checkpoint, what: str) -> None:
    """Raises Broken where two checkpoints differ."""
    expect(dict(found.config) == dict(wanted.config), f"{what} the config is another: {found.config}")
    expect(found.naming == wanted.naming, f"{what} the naming is {found.naming!r}, not {wanted.naming!r}")
    expect(found.tokenizer == wanted.tokenizer, f"{what} the tokenizer is another")
    expect(list(found.tensors) == list(wanted.tensors), f"{what} there are other tensors: {', '.join(found.tensors)}")
    for name, tensor in wanted.tensors.items():
        other = found.tensors[name]
        expect((other.shape, other.encoding) == (tensor.shape, tensor.encoding),
               f"{what} tensor {name} is {other.encoding.name} of {other.shape}")
        expect(np.array_equal(other.read(0, other.rows), tensor.read(0, tensor.rows)), f"{what} {name} has other bytes")
