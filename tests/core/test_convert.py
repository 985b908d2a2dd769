"""Converting: a recipe decides each weight's type, lazily, and what would do damage is refused."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.convert import Recipe, convert, recipe_for, types
from bestiary.encoding import F16, F32, Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace
from bestiary.host import Host
from bestiary.quantizer import Quantizer
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor

SIGNS = Encoding("signs", 8, (5,), Layout((Bits(1, tuple(range(8)), 40),), 8, Factor("f32", Bits(32, (8,), 40)),
                                          codebook=(-1.0, 1.0)))


class Sign(Quantizer):
    """Keeps of eight weights their signs and their mean magnitude."""

    name = "signs"
    encoding = SIGNS
    keeps = (("output.weight", "f16"),)

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        if not np.isfinite(rows).all():
            raise BestiaryError("a weight is not finite")
        blocks = rows.reshape(-1, 8)
        codes = np.packbits(blocks > 0, axis=1, bitorder="little")
        scales = np.abs(blocks).mean(axis=1, keepdims=True).astype(np.float32).view(np.uint8)
        return np.concatenate([codes, scales], axis=1).reshape(len(rows), -1)


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The built-in plugins and the quantizer above, brought by a plugin of one file."""
    from bestiary.host import HostSettings

    file = tmp_path_factory.mktemp("plugin") / "signs_plugin.py"
    file.write_text(f"""
import importlib.util
from bestiary.plugin import hookimpl

@hookimpl
def bestiary_quantizers():
    spec = importlib.util.spec_from_file_location("signs_quantizer", {str(Path(__file__))!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.Sign()]
""")
    return Host(HostSettings(names=(), files=(str(file),)))


def graph(tied: bool = False) -> Graph:
    g = Trace()
    x = g.embed("token_embd.weight", 6, 16)
    for i in g.layers(2):
        h = g.rms_norm(x, f"blk.{i}.attn_norm.weight", 1e-5)
        x = g.add(x, g.linear(g.linear(h, f"blk.{i}.ffn_up.weight", 12), f"blk.{i}.ffn_down.weight", 16))
    return g.finish(g.linear(x, "token_embd.weight" if tied else "output.weight", 6), hidden=x)


def checkpoint(tied: bool = False, tensors: Mapping[str, Tensor] | None = None) -> Checkpoint:
    random = np.random.default_rng(9)
    made: dict[str, Tensor] = {name: ArrayTensor(random.standard_normal(shape).astype(np.float32))
                               for name, shape in graph(tied).weights.items()}
    return Checkpoint(Path("toy.bin"), {}, {**made, **(tensors or {})}, CANONICAL, source=(checkpoint, (tied,)))


def encodings(made: Checkpoint) -> dict[str, str]:
    return {name: tensor.encoding.name for name, tensor in made.tensors.items()}


@pytest.mark.parametrize("quantizer", ["f32", "f16", "bf16"])
def test_plain_types_are_for_matrices_and_vectors_stay_f32(host: Host, quantizer: str) -> None:
    base = checkpoint()
    made = convert(base, graph(), recipe_for(host.quantizers[quantizer]), host)
    for name, tensor in made.tensors.items():
        assert tensor.encoding.name == ("f32" if name.endswith("norm.weight") else quantizer)
        np.testing.assert_allclose(tensor.array(), base.tensors[name].array(),
                                   rtol={"f32": 0, "f16": 2**-11, "bf16": 2**-8}[quantizer])


def test_a_recipe_takes_the_first_rule_that_matches_in_full(signs: Host) -> None:
    recipe = Recipe(((r"blk\.0\..*", "f16"), (r"blk\.\d+\.ffn_up\.weight", "signs"), (r".*", "bf16")))
    made = convert(checkpoint(), graph(), recipe, signs)
    assert encodings(made) == {
        "token_embd.weight": "bf16", "output.weight": "bf16", "blk.0.attn_norm.weight": "f32",
        "blk.0.ffn_up.weight": "f16", "blk.0.ffn_down.weight": "f16", "blk.1.attn_norm.weight": "f32",
        "blk.1.ffn_up.weight": "signs", "blk.1.ffn_down.weight": "bf16"}


def test_a_weight_that_no_rule_matches_is_refused_by_name(host: Host) -> None:
    with pytest.raises(BestiaryError, match="the recipe says nothing about token_embd.weight"):
        convert(checkpoint(), graph(), Recipe((("blk.*", "f16"),)), host)


def test_rows_that_blocks_do_not_divide_stay_f16_and_are_named(signs: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bestiary"):
        made = convert(checkpoint(), graph(), recipe_for(Sign()), signs)
    assert encodings(made)["blk.0.ffn_down.weight"] == "f16"
    (record,) = caplog.records
    assert "2 tensors" in record.getMessage() and "blk.*.ffn_down.weight (rows of 12)" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_matrix_keeps_its_better_type_even_where_it_is_the_embedding(signs: Host, tied: bool) -> None:
    output = "token_embd.weight" if tied else "output.weight"
    for pure in (False, True):
        made = encodings(convert(checkpoint(tied), graph(tied), recipe_for(Sign(), pure=pure), signs))
        assert made[output] == ("signs" if pure else "f16")
        assert made["blk.0.ffn_up.weight"] == "signs"
    if not tied:
        assert made["token_embd.weight"] == "signs"


def test_quantized_weights_are_quantized_again_only_by_leave(signs: Host) -> None:
    first = convert(checkpoint(), graph(), recipe_for(Sign(), pure=True), signs)
    others = replace(SIGNS, name="others")
    given = first.having(tensors={
        name: BlockTensor(tensor.read(0, tensor.rows), tensor.shape, others) if tensor.encoding == SIGNS else tensor
        for name, tensor in first.tensors.items()})
    with pytest.raises(BestiaryError, match="already: token_embd.weight from others to signs and .*--allow-requantize"):
        convert(given, graph(), recipe_for(Sign(), pure=True), signs)
    again = convert(given, graph(), recipe_for(Sign(), pure=True, requantize=True), signs)
    np.testing.assert_array_equal(again.tensors["output.weight"].array(), first.tensors["output.weight"].array())


def test_quantized_weights_are_decoded_without_leave(signs: Host) -> None:
    """Nothing more is lost by that."""
    first = convert(checkpoint(), graph(), recipe_for(Sign(), pure=True), signs)
    again = convert(first, graph(), recipe_for(signs.quantizers["f32"]), signs)
    np.testing.assert_array_equal(again.tensors["output.weight"].array(), first.tensors["output.weight"].array())


def test_a_weight_that_has_its_type_already_is_handed_on_as_it_is(signs: Host) -> None:
    first = convert(checkpoint(), graph(), recipe_for(Sign(), pure=True), signs)
    again = convert(first, graph(), recipe_for(Sign(), pure=True), signs)  # no leave is needed
    assert all(again.tensors[name] is tensor for name, tensor in first.tensors.items())


def test_an_unknown_quantizer_is_refused_with_the_known(host: Host) -> None:
    with pytest.raises(BestiaryError, match="unknown quantizer 'q1'; known: "):
        convert(checkpoint(), graph(), Recipe(((".*", "q1"),)), host)


class Counted(Tensor):
    def __init__(self, base: Tensor) -> None:
        self.shape, self.encoding, self._base = base.shape, base.encoding, base
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.reads.append((start, stop))
        return self._base.read(start, stop)


def test_nothing_is_quantized_before_it_is_read_and_then_only_those_rows(signs: Host) -> None:
    counted = Counted(checkpoint().tensors["token_embd.weight"])
    made = convert(checkpoint(tensors={"token_embd.weight": counted}), graph(), recipe_for(Sign()), signs)
    assert counted.reads == []
    rows = made.tensors["token_embd.weight"].read(2, 4)
    assert counted.reads == [(2, 4)]
    np.testing.assert_array_equal(rows, made.tensors["token_embd.weight"].read(0, 6)[2:4])


def test_an_error_while_quantizing_names_the_tensor(signs: Host) -> None:
    bad = ArrayTensor(np.full((6, 16), np.nan, np.float32))
    made = convert(checkpoint(tensors={"token_embd.weight": bad}), graph(), recipe_for(Sign()), signs)
    with pytest.raises(BestiaryError, match="tensor token_embd.weight: a weight is not finite"):
        made.tensors["token_embd.weight"].read(0, 1)


def test_types_count_tensors_weights_and_bytes_the_largest_first(signs: Host) -> None:
    made = convert(checkpoint(), graph(), recipe_for(Sign()), signs)
    found: dict[str, dict[str, Any]] = types(made)
    assert found["f32"] == {"tensors": 2, "weights": 32, "bytes": 128}
    assert found["signs"] == {"tensors": 3, "weights": 6 * 16 + 2 * 12 * 16, "bytes": (6 * 16 + 2 * 12 * 16) // 8 * 5}
    assert [entry["bytes"] for entry in found.values()] == sorted(
        (entry["bytes"] for entry in found.values()), reverse=True)


def test_a_converted_checkpoint_pickles_as_the_way_to_it(host: Host) -> None:
    made = convert(checkpoint(), graph(), recipe_for(host.quantizers["f16"]), host)
    copy: Checkpoint = pickle.loads(pickle.dumps(made))
    assert encodings(copy) == encodings(made)
    for name, tensor in made.tensors.items():
        np.testing.assert_array_equal(copy.tensors[name].read(0, 1), tensor.read(0, 1))


def test_plain_encodings_have_quantizers_of_their_names(host: Host) -> None:
    assert host.quantizers["F16"].encoding == F16
    assert host.quantizers["f32"].encoding == F32
