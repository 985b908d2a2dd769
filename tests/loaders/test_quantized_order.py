"""Act-order: groups that are runs of inputs only in another order keep their bits, and their inputs are put in it."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bestiary
from bestiary.backend import Plan
from bestiary.canonical import to_canonical
from bestiary.convert import types
from bestiary.errors import BestiaryError
from bestiary.forecast import forecast
from bestiary.host import Host, HostSettings
from bestiary.inspection import inspect
from bestiary.merge import plain as plain_base
from bestiary.past import needed
from bestiary.saving import save_as
from bestiary.tensor import Ordered
from bestiary.testing import LoaderContract
from bestiary.testing.tiny import LIMITS, Runs, difference, random_ids
from bestiary_plugins.backends.cpu import CpuBackend
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_gptq as gptq
from tests.loaders import test_quantized_packed as packed
from tests.loaders.quantized_folders import Folders, Packed, plain

kernels = pytest.importorskip("bestiary_kernels")


def gptq_folder(path: Path, bits: int = 4, group: int = 32, symmetric: bool = False, order: bool = True,
                alike: bool = True) -> Folders:
    return folders.write(path, gptq.packer(bits, group, symmetric, True, order, alike),
                         gptq.section(bits, group, symmetric, True, order))


def held(plan: Plan) -> Any:
    """What the cpu backend multiplies with."""
    return plan.weights  # type: ignore[attr-defined]


def orders(plan: Plan) -> int:
    return Counter(node.op for node in plan.graph.nodes)["order"]


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 32, False), (4, 128, True), (4, 64, True), (2, 32, False),
                                                          (3, 64, False), (8, 128, True), (8, 32, False)])
def test_gptq_keeps_its_bits(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture, bits: int, group: int,
                             symmetric: bool) -> None:
    made = gptq_folder(tmp_path / "made", bits, group, symmetric)
    with caplog.at_level(logging.WARNING):
        folders.check_values(host.open(made.quantized), made.values)  # decoded, for who does not ask
        folders.check_logits(made, host)
    assert not caplog.records
    straight = gptq_folder(tmp_path / "straight", bits, group, symmetric, order=False)
    one, other = (folders.plan_of(path, host, "cpu") for path in (made.quantized, straight.quantized))
    assert held(one).nbytes == held(other).nbytes
    assert {name: matrix.layout.kind for name, matrix in held(one).matrices.items()} == {
        name: matrix.layout.kind for name, matrix in held(other).matrices.items()}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("number", ["bf16", "float16", "float32"])
def test_compressed_tensors_keep_their_bits(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture, number: str,
                                            symmetric: bool) -> None:
    made, straight = (folders.write(tmp_path / str(order), packed.packer(4, 32, symmetric, number, order),
                                    packed.section(4, 32, symmetric, actorder="group")) for order in (True, False))
    with caplog.at_level(logging.WARNING):
        checkpoint = host.open(made.quantized)
        folders.check_values(checkpoint, made.values)
        folders.check_logits(made, host)
    assert not caplog.records
    for name in made.values:
        assert offered(checkpoint.tensors[name]).tensor.encoding == host.open(straight.quantized).tensors[name].encoding
    one, other = (folders.plan_of(path, host, "cpu") for path in (made.quantized, straight.quantized))
    assert held(one).nbytes == held(other).nbytes


def offered(tensor: Any) -> Ordered:
    assert isinstance(tensor.ordered, Ordered)
    return tensor.ordered


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_is_offered_is_the_weight_with_its_columns_in_that_order(tmp_path: Path, host: Host, bits: int) -> None:
    made = gptq_folder(tmp_path, bits, alike=False)
    tensors = host.open(made.quantized).tensors
    for name, values in made.exact.items():
        tensor, order = offered(tensors[name])
        assert tensor.encoding.quantized and tensor.nbytes < tensors[name].nbytes
        np.testing.assert_array_equal(tensor.array(), values[:, order])
        for start, stop in ((0, 1), (5, 40), (3, 3), (tensor.rows - 1, tensor.rows)):
            np.testing.assert_array_equal(tensor.decode(start, stop), values[start:stop][:, order])


def test_products_with_one_input_in_one_order_share_it(tmp_path: Path, host: Host) -> None:
    """q, k and v, o, gate and up, down; each has its own where the orders differ."""
    alike, mixed = (gptq_folder(tmp_path / str(alike), alike=alike) for alike in (True, False))
    assert orders(folders.plan_of(alike.quantized, host, "cpu")) == 4
    assert orders(folders.plan_of(mixed.quantized, host, "cpu")) == 7
    for made in (alike, mixed):
        folders.check_logits(made, host)


def test_all_isas_threads_and_pieces_give_the_same_bits(tmp_path: Path, host: Host) -> None:
    made = gptq_folder(tmp_path, alike=False)
    ids = random_ids(folders.VOCABULARY, 23)
    wanted = Runs(folders.plan_of(made.quantized, host, CpuBackend("scalar"))).prefill(ids)
    for isa in kernels.isas():
        runs = Runs(folders.plan_of(made.quantized, host, CpuBackend(isa)))
        np.testing.assert_array_equal(runs.prefill(ids), wanted)
        for sizes in ([1], [7, 2]):
            np.testing.assert_array_equal(runs.in_pieces(ids, sizes), wanted)


def test_what_a_plan_takes_is_foretold(tmp_path: Path, host: Host) -> None:
    made = gptq_folder(tmp_path)
    checkpoint = host.open(made.quantized)
    canonical, graph = to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))
    needs = needed(host.backends["cpu"], graph, canonical.tensors, LIMITS)
    assert needs is not None
    assert needs.weights == pytest.approx(held(folders.plan_of(made.quantized, host, "cpu")).nbytes, rel=0.001)


def test_inspect_plan_says_what_it_takes_as_it_is(tmp_path: Path, host: Host) -> None:
    rows = []
    for order in (True, False):
        made = gptq_folder(tmp_path / str(order), order=order)
        rows.append({row["type"]: row for row in forecast(made.quantized, host)["types"]})
    one, other = (by_type["as it is"] for by_type in rows)
    assert one["types"] == rows[0]["f16"]["types"] and one["bytes"] == rows[0]["f16"]["bytes"]  # no file holds an order
    assert one["runs_as"] == other["types"] and other["runs_as"] is None
    assert other["run_bytes"] < one["run_bytes"] < rows[0]["f16"]["run_bytes"]  # with inputs in another order


def test_a_model_is_loaded_so_or_in_the_type_that_is_asked_for(tmp_path: Path, host: Host,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    made = gptq_folder(tmp_path)
    ids = random_ids(folders.VOCABULARY, 9).tolist()
    with caplog.at_level(logging.WARNING), bestiary.load(made.quantized, host=host) as model:
        assert orders(model.plan) == 4
        kept = model.logits(ids)
    assert not any("act-order" in record.message for record in caplog.records)
    with caplog.at_level(logging.WARNING), bestiary.load(made.quantized, type="f16", host=host) as model:
        assert orders(model.plan) == 0
        np.testing.assert_array_less(difference(model.logits(ids), kept), 0.02)
    assert [record.message for record in caplog.records if "act-order" in record.message] == [
        "7 weights were quantized in another order of their inputs (act-order), which is lost on the way "
        "to f16: they become f16"]


def test_a_conversion_decodes_and_says_so(tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    made = gptq_folder(tmp_path / "made")
    with caplog.at_level(logging.WARNING):
        save_as(made.quantized, tmp_path / "folder", "f32", host, format="huggingface")
    assert [record.message for record in caplog.records if "act-order" in record.message] == [
        "7 weights were quantized in another order of their inputs (act-order), which no file holds: "
        "they become f32"]
    folders.check_values(host.open(tmp_path / "folder"), made.values)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        save_as(made.quantized, tmp_path / "m.gguf", None, host)
    assert [record.message.partition("they become ")[2] for record in caplog.records if "act-order" in record.message
            ] == ["f16; --outtype TYPE --allow-requantize makes them smaller"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        save_as(made.quantized, tmp_path / "m.gguf", "q8_0", host, force=True, requantize=True)
    assert [record.message.partition("they become ")[2] for record in caplog.records if "act-order" in record.message
            ] == ["q8_0"]


def uneven_folder(path: Path) -> Folders:
    """Groups that are runs of so many inputs in no order."""
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        given = gptq.packer(4, 32, True, True, True)(rng, outputs, inputs)
        index = given.parts[".g_idx"][1].copy()
        index[np.flatnonzero(index == 1)[0]] = 2  # 31 of group 1, 33 of group 2
        codes = np.stack([given.parts[".qweight"][1].view(np.uint32) >> 4 * i & 15 for i in range(8)], 1)
        values = given.parts[".scales"][1].astype(np.float32)[index] * (
            codes.reshape(inputs, outputs).astype(np.float32) - 8)
        values = values.astype(np.float16).astype(np.float32)
        return Packed({**given.parts, ".g_idx": plain(index)}, np.ascontiguousarray(values.T))

    return folders.write(path, pack, gptq.section(4, 32, True, True, True))


def test_codes_in_another_order_are_quantized_again_only_by_leave(tmp_path: Path, host: Host) -> None:
    for name, made, codes in (
            ("gptq", gptq_folder(tmp_path / "gptq", 4, 32, True), "q4_0"),
            ("uneven", uneven_folder(tmp_path / "uneven"), "q4_0"),
            ("compressed", folders.write(tmp_path / "compressed", packed.packer(4, 32, True, "float16", True),
                                         packed.section(4, 32, True, actorder="group")), "q4_0"),
            ("straight", gptq_folder(tmp_path / "straight", 4, 32, False, False), "uint4_f16_32")):
        for kind in ("q8_0", "q5_1"):
            decoded = ", decoded to f16," if name != "straight" else ""
            with pytest.raises(BestiaryError, match=f"already: blk.0.attn_q.weight from {codes}{decoded} to {kind} and "
                                                    "6 more.*--allow-requantize"):
                save_as(made.quantized, tmp_path / f"{name}.gguf", kind, host)
        save_as(made.quantized, tmp_path / f"{name}.gguf", "q8_0", host, requantize=True)
        save_as(made.quantized, tmp_path / f"{name}.gguf", "f32", host, force=True)


def test_what_was_quantized_is_no_base_to_merge_with_in_whatever_order(tmp_path: Path, host: Host) -> None:
    for made in (gptq_folder(tmp_path / "a"), uneven_folder(tmp_path / "b")):
        weight = host.open(made.quantized).tensors["model.layers.0.mlp.up_proj.weight"]
        with pytest.raises(BestiaryError, match="is (uint4_f16_32|q4_0); merging wants the model before it was quanti"):
            plain_base("w", weight, host.open(made.quantized))


def test_inspect_and_what_runs_name_the_type_that_is_held(tmp_path: Path, host: Host) -> None:
    made, straight = gptq_folder(tmp_path / "a", 4, 64, True), gptq_folder(tmp_path / "b", 4, 64, True, order=False)
    one, other = (inspect(path, host) for path in (made.quantized, straight.quantized))
    for key in ("types", "kinds", "bits_per_weight", "weight_bytes"):
        assert one[key] == other[key]
    assert one["types"]["q4_0"]["tensors"] == 7
    for backend, held_as in (("cpu", "q4_0"), ("numpy", "q4_0" if host.backends["numpy"].orders else "f16")):
        with bestiary.load(made.quantized, backend, host=host) as model:
            assert types(model.held)[held_as]["tensors"] == 7
    with bestiary.load(made.quantized, type="f16", host=host) as model:
        assert types(model.held)["f16"]["tensors"] == 9  # with the embedding and the output matrix
    assert inspect(uneven_folder(tmp_path / "c").quantized, host)["types"]["f16"]["tensors"] == 7


def test_groups_of_uneven_sizes_are_decoded_and_said_once(tmp_path: Path, host: Host,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    made = uneven_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        folders.check_values(host.open(made.quantized), made.values)
    assert [record.message for record in caplog.records] == [
        f"{made.quantized}: 7 weights have groups of uneven sizes (g_idx), which can only be run decoded to f16; "
        "`convert --outtype q8_0 --allow-requantize` makes them smaller"]
    folders.check_logits(made, host)


class TestContract(LoaderContract):
    """What is offered is read by rows, is the weight, and may be damaged."""

    loader = Host(HostSettings(names=())).loaders["huggingface"]
    damages = 60

    def sample(self, folder: Path) -> Path:
        return gptq_folder(folder).quantized


class TestContractOfTheOther(TestContract):
    def sample(self, folder: Path) -> Path:
        return folders.write(folder, packed.packer(4, 32, False, "bf16", True),
                             packed.section(4, 32, False, actorder="group")).quantized


@pytest.mark.parametrize(("index", "said"), [
    (np.full(128, 4), "g_idx holds 4 to 4; groups are counted from 0 to 3"),
    (np.full(128, -1), "g_idx holds -1 to -1"),
    (np.arange(64), r"g_idx has the shape \[64\]; .* asks for \[128\]"),
    (np.arange(128) % 4 + 0.0, "g_idx is f32; it must be I32 or I64")])
def test_a_wrong_list_of_groups_is_refused(tmp_path: Path, host: Host, index: Any, said: str) -> None:
    kind = np.float32 if index.dtype.kind == "f" else np.int32

    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> Packed:
        given = packed.packer(4, 32, True, "float16", True)(rng, outputs, inputs)
        return Packed({**given.parts, ".weight_g_idx": plain(index.astype(kind))}, given.values)

    made = folders.write(tmp_path, pack, packed.section(4, 32, True))
    with pytest.raises(BestiaryError, match=said):
        host.open(made.quantized)
