"""torch files are read without torch, and whatever else a pickle or an archive may hold is refused."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.host import Host
from bestiary.tensor import Tensor
from bestiary_plugins.loaders.huggingface import HuggingFace, open_huggingface
from bestiary_plugins.loaders.torch_file import open_torch
from bestiary_plugins.loaders.torch_pickle import MOST_STEPS, STEPS, read_pickle
from bestiary_plugins.loaders.zip_archive import MOST_ENTRIES

if TYPE_CHECKING:
    from tests.loaders.conftest import TorchFiles

Array = NDArray[Any]


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.standard_normal((3, 5)).astype(np.float32),
            "b.weight": rng.standard_normal((2, 4)).astype(np.float16),
            "c.bias": rng.standard_normal(7).astype(np.float32), "d.scalar": np.array(2.5, np.float32)}


def opened(path: Path, content: bytes) -> dict[str, Tensor]:
    path.write_bytes(content)
    return open_torch(DataFile(path))


def refusal(path: Path, content: bytes) -> str:
    """The error's text; all is read that can be."""
    with pytest.raises(BestiaryError) as caught:
        for tensor in opened(path, content).values():
            tensor.array()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("form", ["zip", "old"])
def test_every_tensor_has_its_numbers(path: Path, torch_files: type[TorchFiles], form: str) -> None:
    tensors = opened(path, getattr(torch_files, form)(arrays()))
    assert list(tensors) == list(arrays())
    for name, array in arrays().items():
        assert tensors[name].shape == array.shape
        assert tensors[name].encoding.name == {"float32": "f32", "float16": "f16"}[array.dtype.name]
        assert np.array_equal(tensors[name].array(), array.astype(np.float32))


def test_bfloat16_is_read(path: Path, torch_files: type[TorchFiles]) -> None:
    bits = np.array([[0x3F80, 0xC000], [0x4049, 0]], np.uint16)
    tensor = opened(path, torch_files.zip({"x": bits}))["x"]
    assert tensor.encoding.name == "bf16"
    assert tensor.array().tolist() == [[1.0, -2.0], [3.140625, 0.0]]


def test_a_type_that_is_not_read_stands_there_until_somebody_wants_it(path: Path, torch_files: type[TorchFiles]
                                                                     ) -> None:
    tensors = opened(path, torch_files.zip({"ids": np.arange(4), "x": np.ones(3, np.float32)}))
    assert tensors["x"].array().tolist() == [1, 1, 1]
    with pytest.raises(BestiaryError, match="tensor ids is I64, which is not read; known: F32, F16, BF16"):
        tensors["ids"].array()


def bytes_of(files: type[TorchFiles], dtype: str, storage: str = "UntypedStorage", version: int = 3) -> Any:
    """What torch writes for a tensor of 2 x 3 floats of 8 bits."""
    reference = files.Reference(("storage", files.Name("torch.storage", storage), "0", "cpu", 6))
    arguments: tuple[Any, ...] = reference, 0, (2, 3), (3, 1), False, {}
    return files.Call(files.Name("torch._utils", f"_rebuild_tensor_v{version}"),
                      (*arguments, files.Name("torch", dtype)) if version == 3 else arguments)


@pytest.mark.parametrize(("dtype", "kind"), [("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"),
                                             ("float8_e8m0fnu", "F8_E8M0")])
def test_floats_of_8_bits_lie_there_for_who_knows_their_scales(path: Path, torch_files: type[TorchFiles], dtype: str,
                                                               kind: str) -> None:
    file = torch_files.archive(torch_files.pickled({"w": bytes_of(torch_files, dtype)}), {"0": bytes(range(6))})
    tensor = opened(path, file)["w"]
    assert (tensor.encoding.name, tensor.shape) == (kind, (2, 3))
    assert isinstance(tensor, FileTensor) and FileTensor.read(tensor, 0, 2).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_bytes_of_no_type_are_refused(path: Path, torch_files: type[TorchFiles]) -> None:
    for record, said in ((bytes_of(torch_files, "uint16"), "the global 'torch.uint16', which is not read"),
                         (bytes_of(torch_files, "x", version=2), "a tensor of bytes whose type it does not say"),
                         (bytes_of(torch_files, "float8_e4m3fn", "FloatStorage"), "'torch.storage.FloatStorage'")):
        assert said in refusal(path, torch_files.archive(torch_files.pickled({"w": record}), {"0": bytes(6)}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_view_of_a_matrix_has_the_numbers_that_numpy_gives_it(path: Path, torch_files: type[TorchFiles],
                                                                    data: st.DataObject) -> None:
    base = np.arange(60, dtype=np.float32).reshape(6, 10)
    rows, columns = (data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, 3))) for n in base.shape)
    view = base[rows[0]::rows[1], columns[0]::columns[1]]
    view = view.T if data.draw(st.booleans()) else view
    view = view[0] if data.draw(st.booleans()) else view
    offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
    record = torch_files.tensor("0", "FloatStorage", 60, view.shape, tuple(s // 4 for s in view.strides), offset)
    tensor = opened(path, torch_files.archive(torch_files.pickled({"x": record}), {"0": base.tobytes()}))["x"]
    assert np.array_equal(tensor.array(), view)
    start = data.draw(st.integers(0, tensor.rows))
    stop = data.draw(st.integers(start, tensor.rows))
    assert np.array_equal(tensor.decode(start, stop), view.reshape(tensor.rows, -1)[start:stop])


def test_tied_tensors_share_their_storage(path: Path, torch_files: type[TorchFiles]) -> None:
    one = torch_files.tensor("0", "FloatStorage", 6, (2, 3))
    tensors = opened(path, torch_files.archive(torch_files.pickled({"a": one, "b": one}),
                                               {"0": np.arange(6, dtype=np.float32).tobytes()}))
    assert tensors["a"].array().tolist() == tensors["b"].array().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_parameters_modules_state_and_the_memo_are_understood(path: Path, torch_files: type[TorchFiles]) -> None:
    """As a module's state_dict() is written: an OrderedDict with _metadata, what stood there before taken from the
    memo."""
    t = torch_files
    one, empty = t.tensor("0", "FloatStorage", 2, (2,)), t.Call(t.Name("collections", "OrderedDict"), ())
    parameter = t.Call(t.Name("torch._utils", "_rebuild_parameter"), (one, True, empty))
    state = {"_metadata": t.State(empty, {"_metadata": empty})}
    code = t.opcodes(empty) + b"(" + t.opcodes("x") + t.opcodes(parameter) + b"q\x07" + t.opcodes("y") + b"h\x07" \
        + t.opcodes("z") + b"j\x07\0\0\0u" + t.opcodes(state) + b"b"
    tensors = opened(path, t.archive(b"\x80\x02" + code + b".", {"0": np.array([1, 2], np.float32).tobytes()}))
    assert {name: tensor.array().tolist() for name, tensor in tensors.items()} == dict.fromkeys("xyz", [1, 2])


def test_newer_protocols_are_understood(path: Path, torch_files: type[TorchFiles]) -> None:
    def name(text: str) -> bytes:
        return b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94"

    body = b"}\x94(" + name("x") + name("torch._utils") + name("_rebuild_tensor_v2") + b"\x93((" + name("storage") \
        + name("torch") + name("FloatStorage") + b"\x93" + name("0") + name("cpu") + b"K\x02tQK\0K\x02\x85K\x01\x85" \
        + b"\x89" + name("collections") + name("OrderedDict") + b"\x93)RtRu."
    code = b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body
    tensors = opened(path, torch_files.archive(code, {"0": np.array([3, 4], np.float32).tobytes()}))
    assert tensors["x"].array().tolist() == [3, 4]


# Folders

CONFIG = {"model_type": "llama", "hidden_size": 8}
INDEX = "pytorch_model.bin.index.json"
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture
def folder(tmp_path: Path, torch_files: type[TorchFiles]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(torch_files.zip(arrays()))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path, torch_files: type[TorchFiles]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    places = {name: SHARDS[i > 0] for i, name in enumerate(arrays())}
    for shard, form in zip(SHARDS, (torch_files.zip, torch_files.old), strict=True):
        (tmp_path / shard).write_bytes(form({name: arrays()[name] for name in places if places[name] == shard}))
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "sharded"])
def test_a_folder_is_read_and_pickles(kind: str, request: pytest.FixtureRequest, host: Host) -> None:
    path = request.getfixturevalue(kind)
    checkpoint = pickle.loads(pickle.dumps(host.open(path)))
    assert (checkpoint.config, checkpoint.naming) == (CONFIG, "huggingface")
    assert {name: tensor.array().tolist() for name, tensor in checkpoint.tensors.items()} == {
        name: array.astype(np.float32).tolist() for name, array in arrays().items()}


def test_a_weights_file_that_is_named_brings_its_folder(folder: Path, host: Host) -> None:
    assert host.open(folder / "pytorch_model.bin").config == CONFIG


def test_a_shard_that_is_named_brings_the_others(sharded: Path, host: Host) -> None:
    assert host.open(sharded / SHARDS[1]).tensors.keys() == arrays().keys()


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(BestiaryError, match=f"shard {SHARDS[1]} is missing"):
        open_huggingface(sharded)


@pytest.mark.parametrize("kind", ["model.safetensors", "model.safetensors.index.json"])
def test_safetensors_are_preferred(folder: Path, kind: str) -> None:
    from safetensors.numpy import save_file

    save_file({"other": np.ones(3, np.float32)}, folder / "model.safetensors")
    if kind.endswith("json"):
        (folder / "model.safetensors").rename(folder / "m.safetensors")
        (folder / kind).write_text(json.dumps({"weight_map": {"other": "m.safetensors"}}))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\2\0\0\0lsR.")  # is not even looked at
    assert list(open_huggingface(folder).tensors) == ["other"]


def test_a_pointer_in_place_of_the_weights_is_said_in_words(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert HuggingFace().recognise(folder / "pytorch_model.bin") == 95
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(BestiaryError, match="pytorch_model.bin is a Git LFS pointer"):
            open_huggingface(path)


def test_python_files_of_a_checkpoint_are_never_imported(folder: Path, host: Host, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py", "torch.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w')\n")
    auto = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "auto_map": auto}))
    assert host.open(folder).tensors.keys() == arrays().keys()
    assert not canary.exists()


# What a pickle may do

def payloads(canary: Path, t: type[TorchFiles]) -> dict[str, bytes]:
    """Each writes the canary where Python's own unpickler reads it, unless it is said that it does not."""
    code = f"open({str(canary)!r}, 'w')"
    run, argument = t.Name("builtins", "exec"), (code,)
    body, ends = t.opcodes(code), b"."

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    def inside(call: Any) -> bytes:
        return t.pickled(call)

    call = t.Call(run, argument)
    good = t.tensor("0", "FloatStorage", 1, (1,))
    empty = t.Call(t.Name("collections", "OrderedDict"), ())
    return {
        "REDUCE": inside(call),
        "REDUCE in python 2's names": inside(t.Call(t.Name("__builtin__", "exec"), argument)),
        "REDUCE of the memo": b"\x80\x02" + t.opcodes(run) + b"q\x000(h\0" + body + b"\x85Rl.",
        "STACK_GLOBAL": b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + body + b"\x85R.",
        "STACK_GLOBAL of memoised names": b"\x80\x04(" + text("builtins") + b"\x94" + text("exec") + b"\x941h\0h\1\x93"
                                          + body + b"\x85R.",
        "STACK_GLOBAL of a dotted name": b"\x80\x04" + text("torch") + text("_utils._rebuild_tensor_v2.__globals__")
                                         + b"\x93.",  # needs torch
        "INST": b"\x80\x02(" + body + b"ibuiltins\nexec\n.",
        "OBJ": b"\x80\x02(" + t.opcodes(run) + body + b"o.",
        "NEWOBJ": b"\x80\x02" + t.opcodes(t.Name("collections", "OrderedDict")) + b")\x81.",  # harmless, not needed
        "EXT1": b"\x80\x02\x82\x01" + body + b"\x85R.",
        "EXT2": b"\x80\x02\x83\x01\0" + body + b"\x85R.",
        "EXT4": b"\x80\x02\x84\x01\0\0\0" + body + b"\x85R.",
        "PERSID": b"\x80\x02P" + code.encode() + b"\n.",  # the reader of the file decides
        "BUILD": b"\x80\x02" + t.opcodes(t.Name("collections", "OrderedDict")) + b")R}" + t.opcodes("__class__")
                 + t.opcodes(call) + b"sb" + ends,
        "BUILD with slots": b"\x80\x02" + t.opcodes(empty) + b"N}" + t.opcodes("move_to_end") + t.opcodes(call)
                            + b"s\x86b.",
        "BUILD of the metadata": t.pickled(t.State(empty, {"_metadata": call})),
        "BUILD beside the metadata": t.pickled(t.State(empty, {"_metadata": empty, "x": call})),
        "in a tensor's name": b"\x80\x02}" + t.opcodes(call) + t.opcodes(good) + b"s.",
        "in a tensor": t.pickled({"x": good, "y": call}),
        "in a tensor's storage": t.pickled({"x": t.Call(good.function, (call, *good.arguments[1:]))}),
        "in a tensor's hooks": t.pickled({"x": t.Call(good.function, (*good.arguments[:5], call))}),
        "in a tensor's metadata": t.pickled({"x": t.Call(good.function, (*good.arguments, call))}),
        "in an OrderedDict's items": t.pickled(t.Call(empty.function, ([("x", call)],))),
        "in a parameter": t.pickled({"x": t.Call(t.Name("torch._utils", "_rebuild_parameter"), (call, True, empty))}),
        "in a persistent id": t.pickled({"x": t.Call(good.function, (t.Reference(("storage", call, "0", "cpu", 1)),
                                                                     *good.arguments[1:]))}),
        "in the state dict of an entry": t.pickled({"model": {"x": good, "y": {"z": [call, (call,)]}}}),
        "after the end": t.pickled({"x": good}) + inside(call),  # never runs, and does not belong there
        "a pickle in a pickle": inside(t.Call(t.Name("pickle", "loads"), (t.Raw(
            b"C" + bytes([len(inside(call))]) + inside(call)),))),
        "attribute of an allowed module": inside(t.Call(t.Name("torch._utils", "_import_dotted_name"), ("os.system",))),
        "a look-up": inside(t.Call(t.Name("operator", "attrgetter"), ("system",))),
        "getattr": inside(t.Call(t.Name("builtins", "getattr"), (t.Name("os", "system"), "__call__"))),
        "torch's own loader": inside(t.Call(t.Name("torch", "load"), ("x",))),
        "a dotted name": inside(t.Call(t.Name("collections", "OrderedDict.fromkeys"), ("ab",))),
        "numpy": inside(t.Call(t.Name("numpy.core.multiarray", "scalar"), ())),
        "a byte array of protocol 5": b"\x80\x05\x96\1\0\0\0\0\0\0\0x.",
        "a buffer of protocol 5": b"\x80\x05\x97.",
        "a set": b"\x80\x04\x8f.",
        "a number as text": b"\x80\x02I1\n.",
        "a long number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b".",
    }


RUNS = ("REDUCE", "REDUCE of the memo", "STACK_GLOBAL", "INST", "OBJ", "BUILD", "in a tensor's name",
        "in an OrderedDict's items", "a pickle in a pickle")


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(path: Path, tmp_path: Path, form: str,
                                                                   torch_files: type[TorchFiles]) -> None:
    canary = tmp_path / "canary"
    magic = torch_files.pickled(0x1950A86A20F9469CFC6C)
    for name, payload in payloads(canary, torch_files).items():
        content = {"zip": torch_files.archive(payload, {"0": bytes(4)}), "old": magic + payload * 4,
                   "bare": payload}[form]
        assert refusal(path, content), name
        assert not canary.exists(), name


@pytest.mark.parametrize("name", RUNS)
def test_the_payloads_are_real(tmp_path: Path, torch_files: type[TorchFiles], name: str) -> None:
    """Else their refusal would say nothing."""
    canary = tmp_path / "canary"
    with suppress(Exception):
        pickle.loads(payloads(canary, torch_files)[name])
    assert canary.exists()


MESSAGES = {
    "REDUCE": "holds the global 'builtins.exec', which is not read", "STACK_GLOBAL": "the global 'builtins.exec'",
    "INST": "the opcode INST", "OBJ": "the global 'builtins.exec'", "EXT1": "the opcode EXT1",
    "EXT4": "the opcode EXT4", "PERSID": "the opcode PERSID", "NEWOBJ": "the opcode NEWOBJ",
    "numpy": "the global 'numpy.core.multiarray.scalar'", "a long number": "the opcode LONG4",
    "after the end": "goes on for", "a set": "the opcode EMPTY_SET",
    "a dotted name": "'collections.OrderedDict.fromkeys'",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_refused_is_named(path: Path, torch_files: type[TorchFiles], name: str) -> None:
    payload = payloads(path, torch_files)[name]
    assert MESSAGES[name] in refusal(path, torch_files.archive(payload, {"0": bytes(4)}))


def test_no_global_is_ever_imported(path: Path, torch_files: type[TorchFiles]) -> None:
    import sys

    before = set(sys.modules)
    assert "antigravity" in refusal(path, torch_files.archive(b"\x80\x02cantigravity\nfly\n.", {}))
    assert "antigravity" not in set(sys.modules) - before


def test_the_opcodes_are_those_of_the_documentation() -> None:
    """Each has the argument that pickletools gives it: the reader never falls out of step."""
    import pickletools

    known = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
    assert set(STEPS) <= set(known)
    dangerous = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "DUP", "LONG4"}
    assert {known[code].name for code in STEPS} & dangerous == set()


# What fills the memory or takes for ever

BOMBS: dict[str, Callable[[], bytes]] = {
    "nested tuples": lambda: b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "tuples that double": lambda: b"\x80\x02)" + b"q\0h\0\x86" * 50_000 + b".",
    "a doubled tuple as a key": lambda: b"\x80\x02}q\1)" + b"q\0h\0\x86" * 60 + b"Ns.",
    "a doubled tuple as a storage's type": lambda: b"\x80\x02(X\7\0\0\0storage)" + b"q\0h\0\x86" * 60
                                                   + b"X\1\0\0\x000X\1\0\0\x000K\1tQ.",
    "a doubled tuple as a function": lambda: b"\x80\x02)" + b"q\0h\0\x86" * 60 + b")R.",
    "a list in itself": lambda: b"\x80\x02]q\0h\0a.",
    "a dict in itself": lambda: b"\x80\x02}q\0X\1\0\0\0ah\0s.",
    "dicts": lambda: b"\x80\x02(" + b"}" * 300_000 + b"t.",
    "memo": lambda: b"\x80\x02N" + b"r\xff\xff\xff\xff" * 10 + b"".join(
        b"r" + struct.pack("<I", i << 8) for i in range(100_000)) + b".",
    "a text of 4 GB": lambda: b"\x80\x02X\xff\xff\xff\xffabc.",
    "a frame of 2^63": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.",
    "a name without an end": lambda: b"\x80\x02c" + b"a" * 5_000_000,
    "nothing": lambda: b"",
    "no value": lambda: b"\x80\x02.",
    "a mark": lambda: b"\x80\x02(.",
    "an empty stack": lambda: b"\x80\x020R.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory_and_time(path: Path, name: str) -> None:
    content = BOMBS[name]()
    tracemalloc.start()
    started = time.perf_counter()
    with suppress(BestiaryError):
        value, _ = read_pickle(content, "x")
        assert name in ("nested tuples", "tuples that double", "a list in itself", "a dict in itself", "memo", "dicts")
        del value
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 60
    assert peak < 64 << 20


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_is_a_state_dict(path: Path, torch_files: type[TorchFiles], name: str) -> None:
    assert refusal(path, torch_files.archive(BOMBS[name](), {}))


def test_the_number_of_opcodes_is_limited(path: Path, torch_files: type[TorchFiles]) -> None:
    assert "more than" in refusal(path, torch_files.archive(b"\x80\x02" + b"(" * MOST_STEPS, {}))
    assert "16777216 are the most" in refusal(path, torch_files.archive(bytes(17 << 20), {}))


# What an archive may hold

def deflated(t: type[TorchFiles]) -> bytes:
    """A zip bomb: a storage that is a thousand times larger than what is in the file."""
    return t.archive(t.pickled({"x": t.tensor("0", "FloatStorage", 1 << 22, (1 << 22,))}), {"0": bytes(4 << 22)},
                     method=zipfile.ZIP_DEFLATED)


def twice(t: type[TorchFiles], name: str) -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return t.zip(arrays(), more={name: bytes(60)})


def patched(content: bytes, place: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    place %= len(content)
    return content[:place] + struct.pack(form, value) + content[place + size:]


def central(content: bytes, name: bytes) -> int:
    """Where the directory's line of an entry begins."""
    return content.rindex(name) - 46


def no_prefix(t: type[TorchFiles], name: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as target:
        target.writestr(name, t.pickled({}))
    return written.getvalue()


ARCHIVES: dict[str, tuple[Callable[[type[TorchFiles]], bytes], str]] = {
    "a zip bomb": (deflated, "compressed, encrypted or elsewhere; only stored"),
    "a pickle twice": (lambda t: twice(t, "archive/data.pkl"), "'archive/data.pkl' stands there twice"),
    "a storage twice": (lambda t: twice(t, "archive/data/0"), "'archive/data/0' stands there twice"),
    "two folders": (lambda t: t.zip(arrays(), more={"other/data.pkl": b"N."}), "must hold one folder with"),
    "an entry outside the folder": (lambda t: t.zip(arrays(), more={"../x": b""}), "must hold one folder"),
    "an absolute entry": (lambda t: t.zip(arrays(), more={"/etc/x": b""}), "must hold one folder"),
    "no folder": (lambda t: no_prefix(t, "data.pkl"), "must hold one folder"),
    "no pickle": (lambda t: no_prefix(t, "archive/other.pkl"), "must hold one folder"),
    "big-endian": (lambda t: t.zip(arrays(), order=b"big"), "byteorder is b'big'; only little-endian"),
    "a storage that is missing": (lambda t: t.archive(t.pickled(t.records(arrays())), {}), "storage '0', which is"),
    "a storage of another size": (lambda t: t.archive(t.pickled({"x": t.tensor("0", "FloatStorage", 2, (2,))}),
                                                      {"0": bytes(9)}), "has 9 bytes; tensor 'x' asks for 8"),
    "a storage elsewhere": (lambda t: t.archive(t.pickled({"x": t.tensor("../data.pkl", "ByteStorage", 1, (1,))}),
                                                {"0": b"0"}), "'../data.pkl', which is missing"),
    "a comment": (lambda t: patched(t.zip(arrays()), -2, "<H", 1), "with a comment"),
    "several disks": (lambda t: patched(t.zip(arrays()), -18, "<H", 1), "in several parts"),
    "more entries than there are": (lambda t: patched(patched(t.zip(arrays()), -14, "<H", 7), -12, "<H", 7), "damaged"),
    "fewer entries than there are": (lambda t: patched(patched(t.zip(arrays()), -14, "<H", 2), -12, "<H", 2),
                                     "holds more than its 2 entries"),
    "a directory elsewhere": (lambda t: patched(t.zip(arrays()), -6, "<I", 0), "does not fit the file"),
    "a directory of 4 GB": (lambda t: patched(t.zip(arrays()), -10, "<I", 0xFFFFFFFE), "does not fit the file"),
    "another name in the entry itself": (lambda t: t.zip(arrays()).replace(b"archive/data/1", b"archive/data/9", 1),
                                         "says something else than the directory"),
    "an entry that is another's": (lambda t: patched(c := t.zip(arrays()), central(c, b"archive/data/1") + 42, "<I", 0),
                                   "overlaps|something else"),
    "an entry outside the file": (lambda t: patched(c := t.zip(arrays()), central(c, b"archive/data/1") + 42, "<I",
                                                    1 << 30), "lies outside the file"),
    "an entry larger than the file": (
        lambda t: patched(patched(c := t.zip(arrays()), central(c, b"archive/data/3") + 20, "<I", 1 << 30),
                          central(c, b"archive/data/3") + 24, "<I", 1 << 30), "lies outside the file"),
    "an entry over the next": (
        lambda t: patched(patched(c := t.zip(arrays()), central(c, b"archive/data/1") + 20, "<I", 50),
                          central(c, b"archive/data/1") + 24, "<I", 50), "overlaps the one before"),
    "sizes that differ": (lambda t: patched(c := t.zip(arrays()), central(c, b"archive/data/1") + 24, "<I", 1),
                          "compressed"),
    "a sum that is wrong": (lambda t: patched(c := t.zip(arrays()), central(c, b"archive/data.pkl") + 16, "<I", 5),
                            "does not have the checksum"),
    "encrypted": (lambda t: patched(c := t.zip(arrays()), central(c, b"archive/data.pkl") + 8, "<H", 1), "encrypted"),
    "a name that is no text": (lambda t: t.zip(arrays()).replace(b"archive/data/1", b"archive/data\xff1"), "no UTF-8"),
    "text": (lambda t: b"hello, this is text", "no file of torch.save: it begins with b'hello, t'"),
    "nothing": (lambda t: b"", "no file of torch.save"),
    "another archive": (lambda t: b"7z\xbc\xaf\x27\x1c" + bytes(99), "no file of torch.save"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_torch_would_not_write_is_refused(path: Path, torch_files: type[TorchFiles], name: str) -> None:
    import re

    make, message = ARCHIVES[name]
    assert re.search(message, refusal(path, make(torch_files)))


def zip64(content: bytes, **changed: int) -> bytes:
    """With the second end that large archives have."""
    count, size, start = struct.unpack("<HII", content[-12:-2])
    fields = {"count": count, "size": size, "start": start, "place": len(content) - 22, **changed}
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, fields["count"], fields["count"], fields["size"],
                         fields["start"])
    return content[:-22] + record + struct.pack("<4sIQI", b"PK\6\7", 0, fields["place"], 1) + content[-22:]


def test_archives_of_more_than_4_GB_are_read(path: Path, torch_files: type[TorchFiles]) -> None:
    """By their form; the entries' long sizes and places stand in an extra field."""
    content = torch_files.zip(arrays())
    assert opened(path, zip64(content)).keys() == arrays().keys()
    line = central(content, b"archive/data/3")
    size, place = (struct.unpack_from("<I", content, line + at)[0] for at in (24, 42))
    extra = struct.pack("<HH3Q", 1, 24, size, size, place)
    long = bytearray(content[line:line + 46 + len("archive/data/3")])
    long[20:28], long[30:32], long[42:46] = b"\xff" * 8, struct.pack("<H", len(extra)), b"\xff" * 4
    end = patched(content[-22:], -10, "<I", struct.unpack("<I", content[-10:-6])[0] + len(extra))
    content = content[:line] + bytes(long) + extra + content[line + len(long):-22] + end
    for whole in (content, zip64(content)):
        assert opened(path, whole)["d.scalar"].array() == 2.5


@pytest.mark.parametrize("changed", [{"count": 5}, {"size": 1}, {"start": 1 << 40}, {"place": 0}, {"place": 1 << 60}],
                         ids=str)
def test_two_ends_that_contradict_each_other_are_refused(path: Path, torch_files: type[TorchFiles],
                                                        changed: dict[str, int]) -> None:
    assert refusal(path, zip64(torch_files.zip(arrays()), **changed))


# What a tensor may claim

VIEWS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None, int, str]] = {
    "more rows than there are": ((4, 4), None, 0, "outside its storage of 12"),
    "an offset": ((3, 4), None, 1, "outside its storage"),
    "an offset behind the end": ((1,), None, 12, "outside its storage"),
    "a huge offset": ((1,), None, (1 << 63) - 1, "outside its storage"),
    "a stride": ((3, 4), (5, 1), 0, "outside its storage"),
    "a huge stride": ((2, 2), ((1 << 63) - 1, 1), 0, "outside its storage"),
    "a stride of 0 that repeats": ((1 << 40, 1), (0, 1), 0, "a view that repeats them"),
    "overlapping rows": ((6, 4), (1, 1), 0, "a view that repeats them"),
    "nothing": ((0, 4), None, 0, "a dimension of 0"),
    "nothing, many times": ((0, 1 << 62), None, 0, "a dimension of 0"),
    "three dimensions, transposed": ((2, 3, 2), (1, 2, 6), 0, "only tensors in one piece"),
    "a negative stride": ((3, 4), (-4, 1), 8, "no whole numbers"),
    "a negative offset": ((3, 4), None, -1, "no whole numbers"),
    "a negative size": ((-3, 4), None, 0, "no whole numbers"),
    "a size beyond 63 bits": ((1 << 64, 1), (0, 1), 0, "no whole numbers"),
    "strides that are too few": ((3, 4), (1,), 0, "that belong together"),
    "nine dimensions": ((1,) * 9, None, 0, "that belong together"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_outside_its_storage_is_refused(path: Path, torch_files: type[TorchFiles], name: str) -> None:
    shape, strides, offset, message = VIEWS[name]
    record = torch_files.tensor("0", "FloatStorage", 12, shape, strides, offset)
    assert message in refusal(path, torch_files.archive(torch_files.pickled({"x": record}), {"0": bytes(48)}))


ENTRIES: dict[str, tuple[Any, str]] = {
    "a number": (5, "the entry 'x' is a int; it must be a tensor"), "nothing": (None, "is a NoneType"),
    "a dict": ({}, "is a dict"), "a text": ("y", "is a str")}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_no_tensor_is_named(path: Path, torch_files: type[TorchFiles], name: str) -> None:
    value, message = ENTRIES[name]
    assert message in refusal(path, torch_files.archive(torch_files.pickled({"x": value}), {}))


def test_a_name_that_stands_twice_is_refused(path: Path, torch_files: type[TorchFiles]) -> None:
    t = torch_files
    one = t.opcodes("x") + t.opcodes(t.tensor("0", "FloatStorage", 1, (1,)))
    assert "the key 'x' twice" in refusal(path, t.archive(b"\x80\x02}(" + one + one + b"u.", {"0": bytes(4)}))


@pytest.mark.parametrize("options", [{"little": False}, {"version": 1002}, {"magic": 5}], ids=str)
def test_old_files_of_another_kind_are_refused(path: Path, torch_files: type[TorchFiles], options: dict[str, Any]
                                              ) -> None:
    assert refusal(path, torch_files.old(arrays(), **options))


# Damage

@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_file_cut_off_anywhere_is_refused(path: Path, torch_files: type[TorchFiles], form: str) -> None:
    content = getattr(torch_files, form)(arrays())
    for length in range(0, len(content), 7):
        assert refusal(path, content[:length])


@pytest.mark.parametrize("form", ["zip", "old"])
def test_mutated_files_are_read_or_refused(path: Path, tmp_path: Path, torch_files: type[TorchFiles], form: str
                                           ) -> None:
    content, rng = getattr(torch_files, form)(arrays()), random.Random(form)
    refused = 0
    for _ in range(1500):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(changed))
            match rng.randrange(4):
                case 0:
                    changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 1:
                    changed[place] ^= 1 << rng.randrange(8)
                case 2:
                    del changed[place:place + rng.randrange(1, 9)]
                case _:
                    changed[place:place] = changed[rng.randrange(len(changed)):][:rng.randrange(1, 9)]
        try:
            for tensor in opened(path, bytes(changed)).values():
                tensor.array()
        except BestiaryError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, b"R", b"b", b"i", b"0", b"o", b"q\0", b"h\0", b"K\1", b"X\1\0\0\0x",
                                 b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"ctorch\nFloatStorage\n",
                                 b"ctorch._utils\n_rebuild_tensor_v2\n"]), max_size=60))
def test_any_opcodes_are_read_or_refused(codes: list[bytes]) -> None:
    with suppress(BestiaryError):
        read_pickle(b"\x80\x02" + b"".join(codes) + b".", "x")


def test_an_archive_of_more_entries_than_make_sense_is_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "many.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i in range(MOST_ENTRIES + 1):
            archive.writestr(f"a/{i}", b"")
    with pytest.raises(BestiaryError, match=f"a zip directory of {MOST_ENTRIES + 1} entries"):
        open_torch(DataFile(path))
