"""The contract of a quantizer and of the encoding it writes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.contributions import one_line
from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.host import Host, HostSettings
from bestiary.quantizer import Quantizer
from bestiary.saving import choose_writer
from bestiary.tensor import BlockTensor
from bestiary.testing.contract import Broken, Contract, HostWith, expect, pickled
from bestiary.testing.operations import VOCABULARY, products
from bestiary.testing.tiny import (
    LIMITS,
    Floats,
    Runs,
    difference,
    make_model,
    quantized,
    random_ids,
    random_weights,
    running_backends,
)

ROWS = 6
SCALES = (1e-2, 1.0, 1e2)
"""What rows are multiplied by: the weights of a model are somewhere there, and so is what f16 holds."""
ROUNDED_FACTORS = 1 + 2**-9
"""Scales in f16 and minimums besides lose a little more than half a step."""


def usual_bound(encoding: Encoding) -> float:
    """What an encoding can promise, where the contract's class says nothing: the rounding of plain numbers; of a
    codebook half of its widest gap; of b bits of code 2 ** (1 - b), a whole step, since the end of the range opposite
    to the largest weight is often missing."""
    if encoding.number is not None:
        return {F32.name: 0.0, F16.name: 2.0**-11, BF16.name: 2.0**-8}.get(encoding.number, 0.0)
    if encoding.layout is None:
        return float(2.0 ** (1 - math.floor(encoding.bits_per_weight)))
    if encoding.layout.codebook:
        values = sorted(encoding.layout.codebook)
        widest = max(b - a for a, b in zip(values, values[1:], strict=False))
        return widest / 2 / max(map(abs, values)) * ROUNDED_FACTORS
    return float(2.0 ** (1 - sum(piece.width for piece in encoding.layout.codes))) * ROUNDED_FACTORS


def span(encoding: Encoding, columns: int) -> int:
    """How many weights share what the largest of them decides: a block, or a row of plain numbers."""
    if not encoding.quantized:
        return columns
    group = encoding.layout.group or columns if encoding.layout else 1
    return max(encoding.block_size, group)


class QuantizerContract(Contract):
    """Subclass it as TestSomething with `quantizer`. bound: the largest error of a weight that is allowed, as a share
    of the largest weight in its block (its row, for plain numbers and where a row has one scale); by default what
    usual_bound says. backends_bound: how far the logits of a model in the encoding may be from those of the reference,
    as a share of their spread, since a backend may round activations."""

    kind = "quantizers"
    quantizer: Quantizer
    bound: float | None = None
    reference: str = "numpy"
    backends_bound: float = 0.03

    @pytest.fixture
    def host(self, quantizer: Quantizer) -> Host:
        """What is installed and the quantizer."""
        return HostWith(self.kind, quantizer)

    def allowed(self, quantizer: Quantizer) -> float:
        return usual_bound(quantizer.encoding) if self.bound is None else self.bound

    def columns(self, quantizer: Quantizer) -> int:
        """Of the rows that are tried: three blocks at least."""
        encoding = quantizer.encoding
        size = math.lcm(encoding.block_size, encoding.layout.group or 1 if encoding.layout else 1)
        return size * max(3, -(-96 // size))

    def rows(self, quantizer: Quantizer) -> Iterator[tuple[str, Floats]]:
        """Rows such as models have, and what they are."""
        random, shape = np.random.default_rng(7), (ROWS, self.columns(quantizer))
        outliers = random.standard_normal(shape)
        outliers[:, ::17] *= 40
        made = {"normal": random.standard_normal(shape), "uniform": random.uniform(-1, 1, shape),
                "positive": random.uniform(0.5, 1, shape), "negative": -random.uniform(0.5, 1, shape),
                "with outliers": outliers, "constant": np.full(shape, 0.37), "steps": np.sign(outliers),
                "sparse": outliers * (random.random(shape) < 0.1)}
        for name, values in made.items():
            for scale in SCALES:
                yield f"{name} weights times {scale:g}", (values * scale).astype(np.float32)

    def write(self, quantizer: Quantizer, rows: Floats, importance: Floats | None = None) -> NDArray[np.uint8]:
        """The blocks of the rows, checked for type and shape; warnings of numpy are faults."""
        before = rows.copy()
        with _warnings_are_errors():
            blocks = quantizer.quantize(rows, importance)
        wanted = (len(rows), quantizer.encoding.row_bytes(rows.shape[1]))
        right = isinstance(blocks, np.ndarray) and (blocks.dtype, blocks.shape) == (np.dtype(np.uint8), wanted)
        found = f"{blocks.dtype} of {blocks.shape}" if isinstance(blocks, np.ndarray) else type(blocks).__name__
        expect(right, f"quantize() of {rows.shape} gives {found}; needed: uint8 of {wanted}, which is what "
                      f"{quantizer.encoding.name} takes")
        expect(np.array_equal(rows, before, equal_nan=True), "quantize() changes the rows that it is given")
        return blocks

    def read(self, quantizer: Quantizer, blocks: NDArray[np.uint8]) -> Floats:
        columns = self.columns(quantizer)
        with _warnings_are_errors():
            values = quantizer.encoding.decode(blocks, columns)
        expect(values.dtype == np.float32 and values.shape == (len(blocks), columns),
               f"decode() gives {values.dtype} of {values.shape}; needed: float32 of {(len(blocks), columns)}")
        return values

    def error(self, quantizer: Quantizer, found: Floats, wanted: Floats) -> float:
        """The largest, as a share of the largest weight of its span."""
        size = span(quantizer.encoding, wanted.shape[1])
        size = size if wanted.shape[1] % size == 0 else wanted.shape[1]
        largest = np.abs(wanted).reshape(-1, size).max(axis=1, keepdims=True).astype(np.float64)
        apart = np.abs(found.astype(np.float64) - wanted).reshape(-1, size)
        return float((apart / np.where(largest == 0, 1, largest)).max())

    def test_the_host_takes_it(self, quantizer: Quantizer) -> None:
        self.check_contribution(quantizer)

    def test_it_pickles(self, quantizer: Quantizer) -> None:
        self.check_pickles(quantizer)
        again = pickled(quantizer.encoding, f"the encoding {quantizer.encoding.name}")
        expect(again == quantizer.encoding, "the encoding comes out of its pickle as another")

    def test_its_import_is_light(self, quantizer: Quantizer) -> None:
        self.check_import(quantizer)

    def test_what_it_leaves_to_others_is_known(self, quantizer: Quantizer, host: Host) -> None:
        strange = [name for _, name in quantizer.keeps if name not in host.quantizers]
        expect(not strange, f"keeps names the quantizers {strange}; known: {', '.join(host.quantizers.names)}")
        expect(host.quantizers[quantizer.name] is quantizer, "its name is another quantizer's")

    def test_no_weight_is_further_off_than_the_bound(self, quantizer: Quantizer) -> None:
        bound = self.allowed(quantizer)
        for what, rows in self.rows(quantizer):
            for importance in (None, np.ones(rows.shape[1], np.float32)):
                found = self.error(quantizer, self.read(quantizer, self.write(quantizer, rows, importance)), rows)
                expect(found <= bound, f"{what}: a weight is {found:.4g} of the largest in its block off; the bound is "
                                       f"{bound:.4g}" + (" (importance: all alike)" if importance is not None else ""))

    def test_any_importance_is_taken(self, quantizer: Quantizer) -> None:
        _, rows = next(self.rows(quantizer))
        columns = rows.shape[1]
        random = np.random.default_rng(3)
        kinds = {"zeros": np.zeros(columns), "tiny numbers": np.full(columns, 1e-38), "huge numbers": np.full(
            columns, 1e30), "random numbers": random.random(columns), "a single column": np.arange(columns) == 1}
        for what, importance in kinds.items():
            values = self.read(quantizer, self.write(quantizer, rows, np.asarray(importance, np.float32)))
            expect(np.isfinite(values).all() and self.error(quantizer, values, rows) <= 2,
                   f"an importance of {what} gives weights that have nothing to do with the rows")

    def test_zeros_stay_zeros(self, quantizer: Quantizer) -> None:
        rows = np.zeros((ROWS, self.columns(quantizer)), np.float32)
        rows[2, :] = -0.0
        values = self.read(quantizer, self.write(quantizer, rows))
        expect(not values.any(), f"rows of zeros become {values[values != 0][:1]}, or no numbers")

    def test_rows_do_not_depend_on_one_another(self, quantizer: Quantizer) -> None:
        """They are read in ranges, from several threads, in any order."""
        rows = np.concatenate([rows for _, rows in self.rows(quantizer)])
        whole = self.write(quantizer, rows)
        again = np.concatenate([self.write(quantizer, rows[i:i + step]) for i, step in split(len(rows))])
        expect(np.array_equal(whole, again), "rows by themselves are quantized otherwise than beside others, or the "
                                             "same rows twice otherwise")
        self.write(quantizer, rows[:0])
        values = self.read(quantizer, whole)
        again = np.concatenate([self.read(quantizer, whole[i:i + step]) for i, step in split(len(rows))])
        expect(np.array_equal(values, again), "rows by themselves are decoded otherwise than beside others")

    def test_extreme_weights_harm_nobody_else(self, quantizer: Quantizer) -> None:
        """Refused by a BestiaryError, or taken without a warning; the other rows are as they would be without."""
        columns = self.columns(quantizer)
        _, rows = next(self.rows(quantizer))
        usual = self.write(quantizer, rows)
        for what, number in (("huge", 3e38), ("denormal", 1e-42), ("infinite", math.inf), ("no numbers", math.nan)):
            for count in (1, columns):
                changed = rows.copy()
                changed[1, :count] = number
                try:
                    blocks = self.write(quantizer, changed)
                except BestiaryError:
                    continue
                except (ArithmeticError, LookupError, TypeError, ValueError, Warning) as error:
                    raise Broken(f"weights that are {what} end in {one_line(error)}; they may be refused by a "
                                 "BestiaryError, or taken") from error
                others = np.arange(ROWS) != 1
                expect(np.array_equal(blocks[others], usual[others]), f"weights that are {what} change other rows")
                values = self.read(quantizer, blocks)
                expect(what != "denormal" or np.isfinite(values).all(), "denormal weights become infinite or NaN")

    def test_any_bytes_are_decoded(self, quantizer: Quantizer) -> None:
        """A damaged file holds any; the values may be anything, and the decoder agrees with the layout."""
        encoding, columns = quantizer.encoding, self.columns(quantizer)
        size, random = encoding.row_bytes(columns), np.random.default_rng(5)
        for blocks in (random.integers(0, 256, (40, size), np.uint8), np.zeros((2, size), np.uint8),
                       np.full((2, size), 255, np.uint8)):
            try:
                values = self.read(quantizer, blocks)
            except (ArithmeticError, LookupError, TypeError, ValueError, Warning) as error:
                raise Broken(f"decode() of blocks that hold any bytes ends in {one_line(error)}") from error
            if encoding.layout is not None and encoding.decoder is not None:
                derived = replace(encoding, decoder=None).decode(blocks, columns)
                expect(np.allclose(values, derived, rtol=1e-6, atol=0, equal_nan=True),
                       "the decoder gives other weights than the layout says")

    def test_quantizing_again_loses_little(self, quantizer: Quantizer) -> None:
        for what, rows in self.rows(quantizer):
            once = self.read(quantizer, self.write(quantizer, rows))
            found = self.error(quantizer, self.read(quantizer, self.write(quantizer, once)), once)
            expect(found <= self.allowed(quantizer), f"{what}: quantized again they move by {found:.4g} of the largest "
                                                     f"in their block; the bound is {self.allowed(quantizer):.4g}")

    def test_every_backend_gives_the_logits_of_the_reference(self, quantizer: Quantizer, host: Host) -> None:
        """Compiled kernels read the layout, the reference what `decode` gives."""
        graph = products(self.columns(quantizer))
        tensors = quantized(random_weights(graph.weights), quantizer)
        ids = random_ids(VOCABULARY, 21)
        wanted = Runs(host.backends[self.reference].compile(graph, tensors, LIMITS)).prefill(ids)
        expect(np.isfinite(wanted).all(), "a model in this encoding gives logits that are infinite or no numbers")
        for name, backend in running_backends(host).items():
            try:
                plan = backend.compile(graph, tensors, LIMITS)
            except BestiaryError:
                continue  # it says what it cannot run
            found = difference(Runs(plan).prefill(ids), wanted)
            expect(found <= self.backends_bound, f"the backend {name} is {found:.2e} of the spread of the logits from "
                                                 f"{self.reference}; the bound is {self.backends_bound}")

    def test_what_is_written_opens_without_the_plugin(self, quantizer: Quantizer, host: Host, tmp_path: Path) -> None:
        """Where the encoding has a layout; without one the file says whose it is."""
        encoding, columns = quantizer.encoding, self.columns(quantizer)
        family = next(iter(host.architectures.values()))
        model = make_model(family, family.example_config())
        _, rows = next(self.rows(quantizer))
        tensor = BlockTensor(self.write(quantizer, rows), (ROWS, columns), encoding)
        writer = choose_writer(host, None, None)
        path = tmp_path / f"model{writer.suffix}"
        try:
            writer.save(model.checkpoint.having(tensors={"blk.0.tried.weight": tensor}), path, host)
        except BestiaryError as error:
            expect(encoding.layout is None and encoding.quantized, f"the writer refuses the encoding: {error}")
            return
        if encoding.layout is None and encoding.quantized:
            with pytest.raises(BestiaryError, match=encoding.name):
                Host(HostSettings(names=())).open(path)
        own = host if encoding.layout is None else Host(HostSettings(names=()))
        found: Any = own.open(path).tensors["blk.0.tried.weight"]
        expect(np.array_equal(found.read(0, ROWS), tensor.read(0, ROWS)), "the saved file holds other bytes")
        expect(np.array_equal(found.array(), tensor.array()), "the saved file means other weights: does the layout say "
                                                              "what the decoder does?")


def split(count: int) -> list[tuple[int, int]]:
    """(start, size) of ranges of 1, 2 and 3 rows in turn."""
    ranges, start = list[tuple[int, int]](), 0
    while start < count:
        ranges.append((start, min(len(ranges) % 3 + 1, count - start)))
        start += ranges[-1][1]
    return ranges


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    """All but those of files that the garbage collector closes: whose they are, chance decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        yield
