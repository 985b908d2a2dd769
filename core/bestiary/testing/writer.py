"""The contract of a writer: what it writes is read back, and nothing is ever half-written or overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.loader import Loader, Writer
from bestiary.tensor import Tensor
from bestiary.testing.contract import Broken, Contract, HostWith, expect
from bestiary.testing.loader import contents
from bestiary.testing.tiny import make_model, quantized


class Gone(BestiaryError):
    """What a source that vanishes while it is read raises."""


class VanishingTensor(Tensor):
    """A weight whose last row cannot be read."""

    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        if stop >= self.rows:
            raise Gone("the source was truncated while it was read")
        return self._base.read(start, stop)


class WriterContract(Contract):
    """Subclass it as TestSomething with `writer`. reader: the loader that reads its files, by default the one that
    recognises them; where there is none, override `read_back`."""

    kind = "writers"
    writer: Writer
    reader: Loader | None = None

    @pytest.fixture
    def host(self, writer: Writer) -> Host:
        """What is installed and the writer."""
        return HostWith(self.kind, writer)

    def read_back(self, path: Path, host: Host) -> Checkpoint:
        return host.open(path) if self.reader is None else host.open_as(self.reader, path)

    def checkpoints(self, host: Host) -> Iterator[tuple[str, Checkpoint]]:
        """A tiny canonical one of every family, and of the first family in every encoding that is known."""
        for name, family in host.architectures.items():
            yield name, make_model(family, family.example_config()).checkpoint
        family = next(iter(host.architectures.values()))
        plain = make_model(family, family.example_config()).checkpoint
        for name, quantizer in host.quantizers.items():
            yield f"{family.name} in {name}", plain.having(tensors=quantized(plain.tensors, quantizer))

    def plain(self, host: Host) -> Checkpoint:
        return next(iter(self.checkpoints(host)))[1]

    def target(self, writer: Writer, folder: Path, name: str = "model") -> Path:
        return folder / f"{name}{writer.suffix}"

    def test_the_host_takes_it(self, writer: Writer) -> None:
        self.check_contribution(writer)

    def test_it_pickles(self, writer: Writer) -> None:
        self.check_pickles(writer)

    def test_its_import_is_light(self, writer: Writer) -> None:
        self.check_import(writer)

    def test_what_it_writes_is_read_back(self, writer: Writer, host: Host, tmp_path: Path) -> None:
        """The same weights, bit by bit in their encodings, and a config that leads to the same graph."""
        written = 0
        for number, (what, checkpoint) in enumerate(self.checkpoints(host)):
            path = self.target(writer, tmp_path, str(number))
            try:
                writer.save(checkpoint, path, host)
            except BestiaryError:
                expect(not path.exists(), f"{what} is refused, and {path.name} exists")
                continue  # it says what it cannot hold
            written += 1
            foretold: object = writer.size(checkpoint, host)
            expect(type(foretold) is int and foretold >= 0, f"{what}: size() gives {foretold!r}, not a number of bytes")
            family = host.architecture_of(checkpoint.config, checkpoint.tokenizer)
            again, graph = to_canonical(self.read_back(path, host), family)
            expect(graph == to_canonical(checkpoint, family)[1], f"{what}: read back it has another graph")
            for name, tensor in checkpoint.tensors.items():
                found = again.tensors[name]
                expect((found.encoding, found.shape) == (tensor.encoding, tensor.shape),
                       f"{what}: {name} is read back as {found.encoding.name} of {found.shape}")
                expect(np.array_equal(found.read(0, found.rows), tensor.read(0, tensor.rows)),
                       f"{what}: {name} is read back with other bytes")
        expect(written, "every checkpoint is refused")

    def test_it_says_of_every_encoding_whether_it_holds_it(self, writer: Writer, host: Host) -> None:
        for name, encoding in host.encodings.items():
            answer: object = writer.holds(encoding)
            expect(isinstance(answer, bool), f"holds() of {name} gives {answer!r}, neither True nor False")

    def test_the_same_checkpoint_gives_the_same_bytes(self, writer: Writer, host: Host, tmp_path: Path) -> None:
        first, second = (self.target(writer, tmp_path / name) for name in ("a", "b"))
        for path in (first, second):
            path.parent.mkdir()
            writer.save(self.plain(host), path, host)
        expect(contents(first) == contents(second), "written twice the file differs")

    def test_nothing_is_overwritten_unasked(self, writer: Writer, host: Host, tmp_path: Path) -> None:
        path = self.target(writer, tmp_path)
        writer.save(self.plain(host), path, host)
        before = contents(path)
        with pytest.raises(BestiaryError):
            writer.save(self.plain(host), path, host)
        expect(contents(path) == before, "a refused writing changed the file")
        writer.save(self.plain(host), path, host, force=True)
        expect(contents(path) == before, "with force the file is another")

    def test_a_source_that_ends_leaves_nothing(self, writer: Writer, host: Host, tmp_path: Path) -> None:
        checkpoint = self.plain(host)
        *_, last = checkpoint.tensors
        broken = checkpoint.having(tensors={**checkpoint.tensors, last: VanishingTensor(checkpoint.tensors[last])})
        path = self.target(writer, tmp_path)
        with pytest.raises(Gone):
            writer.save(broken, path, host)
        expect(not any(tmp_path.iterdir()), f"a writing that failed left {[file.name for file in tmp_path.iterdir()]}")
        writer.save(checkpoint, path, host)
        before = contents(path)
        with pytest.raises(Gone):
            writer.save(broken, path, host, force=True)
        expect(contents(path) == before, "a writing that failed took the file that was there before")

    def test_it_reads_by_ranges_and_each_row_once(self, writer: Writer, host: Host, tmp_path: Path) -> None:
        family = next(iter(host.architectures.values()))
        checkpoint = make_model(family, {**family.example_config(), "vocab_size": 1 << 16}).checkpoint
        counted = {name: CountingTensor(tensor) for name, tensor in checkpoint.tensors.items()}
        large = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].nbytes)  # about 20 MB
        try:
            writer.save(checkpoint.having(tensors=counted), self.target(writer, tmp_path), host)
        except BestiaryError as error:
            raise Broken(f"{large} of {counted[large].nbytes} bytes is refused: {error}") from error
        for name, tensor in counted.items():
            expect(tensor.read_rows == tensor.rows, f"{name} has {tensor.rows} rows, and {tensor.read_rows} were read")
        expect(counted[large].most < counted[large].nbytes, f"a tensor of {counted[large].nbytes} bytes is read at "
               "once; in ranges of a few megabytes memory would not grow with the model")


class CountingTensor(Tensor):
    """Counts what is read of another one."""

    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base
        self.read_rows = self.most = 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        rows = self._base.read(start, stop)
        self.read_rows, self.most = self.read_rows + stop - start, max(self.most, rows.nbytes)
        return rows
