"""A third party's loader brings an encoding that no quantizer writes: it is one like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from bestiary.backend import Batch, Limits
from bestiary.errors import BestiaryError
from bestiary.graph import Trace
from bestiary.host import Host, HostSettings
from bestiary.tensor import ArrayTensor
from bestiary_plugins.loaders.gguf import Gguf

CODES = "codes=(Bits(4, tuple({first} + 8 * (i % 16) + 4 * (i // 16) for i in range(32)), 8 * {size}),)"
NUMBERS = "codebook=(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)"
LAYOUT = "Layout({codes}, group=32, scale=Factor('{number}', Bits({width}, (0,), 8 * {size})), {rest})"
TYPE = "iq4_nl"  # GGUF has a code for it


@pytest.fixture(autouse=True)
def nothing_that_is_built_in_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gguf, "encodings", ())


def encoding(size: int = 18, rest: str = NUMBERS) -> str:
    """The encoding in Python. Each block a scale of 2 bytes, or 4, and 32 codes of 4 bits."""
    width = 8 * (size - 16)
    return f"Encoding({TYPE!r}, 32, ({size},), " + LAYOUT.format(
        codes=CODES.format(first=width, size=size), number=f"f{width}", width=width, size=size, rest=rest) + ")"


def loader(folder: Path, name: str, encoding: str) -> str:
    """A one-file plugin with a loader."""
    path = folder / f"{name}.py"
    path.write_text(dedent("""
        from bestiary.plugin import *
        class Own(Loader):
            name, encodings = NAME, (ENCODING,)
            def recognise(self, path): return 0
            def open(self, path, host): raise NotImplementedError
        @hookimpl
        def bestiary_loaders(): return [Own()]
    """).replace("NAME", repr(name)).replace("ENCODING", encoding))
    return str(path)


def quantizer(folder: Path, name: str, encoding: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(dedent("""
        from bestiary.plugin import *
        class Own(Quantizer):
            name, encoding = NAME, ENCODING
            def quantize(self, rows, importance=None): raise NotImplementedError
        @hookimpl
        def bestiary_quantizers(): return [Own()]
    """).replace("NAME", repr(name)).replace("ENCODING", encoding))
    return str(path)


def host_with(*files: str, prefer: tuple[str, ...] = ()) -> Host:
    return Host(HostSettings(names=(), files=files, prefer=prefer))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A GGUF file with a tensor of that type."""
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (40, 3 * 18), dtype=np.uint8)
    data.reshape(-1, 18)[:, :2] = random.uniform(-0.1, 0.1, 120).astype(np.float16).view(np.uint8).reshape(-1, 2)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType.IQ4_NL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "x.gguf"


def test_a_gguf_file_with_such_a_tensor_opens_where_the_plugin_is(tmp_path: Path, path: Path) -> None:
    with pytest.raises(BestiaryError, match=TYPE):
        host_with().open(path)
    tensor = host_with(loader(tmp_path, "newt", encoding())).open(path).tensors["x"]
    wanted = dequantize(tensor.read(0, 40), gguf.GGMLQuantizationType.IQ4_NL)
    np.testing.assert_array_equal(tensor.array(), wanted)


def test_it_is_held_by_the_kernels_as_it_is(tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In as many bytes as it has in the file, and multiplied by them: that is what their speed follows from."""
    host = host_with(loader(tmp_path, "newt", encoding()))
    tensor = host.open(path).tensors["x"]
    rows = np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)
    g = Trace()
    y = g.linear(g.embed("rows", 7, 96), "x", 40)
    plan = host.backends["cpu"].compile(g.finish(y, y), {"rows": ArrayTensor(rows), "x": tensor}, Limits(64))
    assert not caplog.records
    held: int = plan.weights.matrices["x"].nbytes  # type: ignore[attr-defined]
    assert held == 48 * tensor.row_bytes
    n = np.arange(7, dtype=np.int32)
    got = plan.forward(Batch(n, n[None], n * 0, n), plan.new_cache())
    assert np.abs(got - rows @ tensor.array().T).max() < 0.01 * np.abs(got).max()


def test_two_that_bring_the_same_one_do_not_clash(tmp_path: Path, path: Path) -> None:
    host = host_with(loader(tmp_path, "newt", encoding()), quantizer(tmp_path, "mole", encoding()),
                     loader(tmp_path, "newt2", encoding()))
    assert host.encodings[TYPE] == host.quantizers["mole"].encoding
    assert host.open(path).tensors["x"].array().any()
    assert [report.clashes for report in host.report()] == [()] * 4


@pytest.mark.parametrize("other", [loader, quantizer])
def test_two_that_mean_different_things_by_a_name_clash_and_preference_settles_it(
        tmp_path: Path, path: Path, other: Callable[[Path, str, str], str]) -> None:
    files = loader(tmp_path, "newt", encoding()), other(tmp_path, "mole", encoding(rest="offset=8"))
    host = host_with(*files)
    said = rf"^encoding '{TYPE}' is provided by \w+.py and by \w+.py; choose .*--prefer newt.py"
    with pytest.raises(BestiaryError, match=said):
        host.encodings[TYPE]
    with pytest.raises(BestiaryError, match=f"encoding '{TYPE}' is provided by "):
        host.open(path)
    assert any(TYPE in line for report in host.report() for line in report.clashes)
    settled = host_with(*files, prefer=("newt.py",)).open(path).tensors["x"]
    wanted = dequantize(settled.read(0, 40), gguf.GGMLQuantizationType.IQ4_NL)
    np.testing.assert_array_equal(settled.array(), wanted)


def test_of_two_the_one_whose_block_has_the_files_size_is_read(tmp_path: Path, path: Path) -> None:
    host = host_with(loader(tmp_path, "mole", encoding(20)), loader(tmp_path, "newt", encoding()))
    tensor = host.open(path).tensors["x"]
    assert tensor.encoding.block_bytes == (18,)
    wanted = dequantize(tensor.read(0, 40), gguf.GGMLQuantizationType.IQ4_NL)
    np.testing.assert_array_equal(tensor.array(), wanted)


@pytest.mark.parametrize(("given", "message"), [
    ("'q4'", "loader newt: str 'q4' among its encodings is no encoding"),
    ("Encoding('own', 0, (18,), decoder=len)", "is no encoding with a name and whole sizes"),
    ("Encoding('own', 32, 18, decoder=len)", "is no encoding with a name and whole sizes"),
    ("Encoding('two words', 32, (18,), decoder=len)", "is no encoding with a name and whole sizes"),
    ("Encoding('own', 2, (1,), Layout((Bits(4, (0, 9), 8),), 2, Factor('f16', Bits(16, (0,), 8))))", "cannot be read"),
    (encoding(rest="codebook=(1.0,)"), "cannot be read")])
def test_a_loader_whose_encoding_could_not_be_read_back_is_set_aside(tmp_path: Path, given: str, message: str) -> None:
    host = host_with(loader(tmp_path, "newt", given))
    assert "newt" not in host.loaders and "q4_0" in host.encodings
    assert message in str(host.report()[-1].reason)
