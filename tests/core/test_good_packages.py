"""Packages of third parties, installed next to ours: they work from the command line and from Python, and leave
nothing behind."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary_plugins.demo.command import model
from tests.installing import PACKAGES, Completed, Place

NAMES = sorted(folder.name for folder in PACKAGES.glob("good-*"))
PROVIDES = {
    "good-architecture": {"architectures": ["heron"]}, "good-backend": {"backends": ["double"]},
    "good-command": {"commands": ["census"]}, "good-loader": {"loaders": ["crate"], "writers": ["crate"]},
    "good-nf4": {"quantizers": ["nf4"]}, "good-no-layout": {"quantizers": ["radix11"]}}

LOGITS = """
import sys
import numpy as np
from bestiary.model import load

path, backend, out = sys.argv[1:]
with load(path, backend) as model:
    np.save(out, model.logits(list(range(3, 99))))
"""

PACKED = """
import json, sys
import numpy as np
from bestiary.backend import Batch, Limits
from bestiary.graph import Graph, Node
from bestiary.host import Host
from bestiary.tensor import BlockTensor

quantizer, out = Host().quantizers["nf4"], sys.argv[1]
rows, columns = 96, 512
weights = np.random.default_rng(5).standard_normal((rows, columns), np.float32)
weights[:, :16] *= np.float32(20)  # a block whose other weights are small beside its largest
blocks = quantizer.quantize(weights)
tensor = BlockTensor(blocks, (rows, columns), quantizer.encoding)
graph = Graph((Node("input", (), columns), Node("linear", (0,), rows, {"weight": "w"})), {"w": (rows, columns)}, 1, 0)
# A row of the identity, times the code of its only entry as int8, takes a column out of the weights exactly.
ones = np.eye(columns, dtype=np.float32) * np.float32(127)
plan = Host().backends["cpu"].compile(graph, {"w": tensor}, Limits(columns, batch=columns, threads=1))
batch = Batch(None, np.arange(columns, dtype=np.int32)[None], np.zeros(columns, np.int32),
              np.arange(columns, dtype=np.int32), ones)
np.savez(out, weights=weights, decoded=tensor.decode(), packed=plan.forward(batch, plan.new_cache()).T / 127)
"""

PROMPT = "once upon a time"
GREEDY = ("-p", PROMPT, "-n", "24", "--temp", "0")


@pytest.fixture(scope="module")
def installed(place: Place) -> Place:
    """A place with all good packages."""
    place.pip_install(*(PACKAGES / name for name in NAMES))
    return place


@pytest.fixture(scope="module")
def files(installed: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's model in formats and types of ours and of the packages."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, words in {
            "f32.gguf": ("--outtype", "f32"), "f16.gguf": (), "q4_0.gguf": ("--outtype", "q4_0"),
            "nf4.gguf": ("--outtype", "nf4"), "radix11.gguf": ("--outtype", "radix11"), "f16.crate": (),
            "nf4.crate": ("--outtype", "nf4"), "heron.gguf": ("--architecture", "heron", "--outtype", "f32")}.items():
        made[name] = folder / name
        done = installed.run("convert", model(), made[name], *words)
        assert done.returncode == 0 and made[name].is_file(), done.stderr
    return made


@pytest.fixture(scope="module")
def left(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place where the packages were installed, used, and uninstalled."""
    place = Place(tmp_path_factory.mktemp("left"))
    before = contents(place)
    place.pip_install(*(PACKAGES / name for name in NAMES))
    assert place.run("run", "-m", files["nf4.crate"], *GREEDY, "--backend", "double").returncode == 0
    assert contents(place) > before
    place.pip_uninstall(*NAMES)
    assert contents(place) == before
    return place


def contents(place: Place) -> set[str]:
    return {str(path.relative_to(place.site_packages)) for path in place.site_packages.rglob("*")}


@functools.cache
def logits(place: Place, path: Path, backend: str) -> NDArray[np.float32]:
    """(96, vocabulary), of tokens 3 to 98."""
    out = path.parent / f"{path.name}-{backend}-{place.folder.name}.npy"
    done = place.python(LOGITS, path, backend, out)
    assert done.returncode == 0, done.stderr
    found: NDArray[np.float32] = np.load(out)
    assert len(found) == 96 and np.isfinite(found).all() and np.ptp(found) > 1
    return found


def apart(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference as a share of the range."""
    return float(np.abs(got - expected).max() / np.ptp(expected))


@functools.cache
def text(place: Place, *words: str | Path) -> str:
    done = place.run("run", "-m", *words, *GREEDY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT) and len(done.stdout) > len(PROMPT) + 24
    return done.stdout


def refused(done: Completed) -> str:
    """The one line that a command that fails says on stderr."""
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("bestiary: error: ")


# All of them


def test_the_plugins_are_listed_with_what_they_provide(installed: Place) -> None:
    reports = json.loads(installed.run("plugins", "--json").stdout)
    assert {report["distribution"]: report["provides"] for report in reports[1:]} == PROVIDES
    assert [report["distribution"] for report in reports] == ["bestiary", *NAMES]
    assert {report["reason"] for report in reports} == {None}


def test_the_packages_pass_their_own_tests(installed: Place, tmp_path: Path) -> None:
    tests = [path for name in NAMES for path in (PACKAGES / name).glob("test_*.py")]
    assert len(tests) == len(NAMES)
    for path in tests:
        (tmp_path / path.name).write_text(path.read_text())
    done = installed.python_words("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


# The quantizer with a layout


def test_nf4_is_run_from_the_command_line_on_every_backend(installed: Place, files: dict[str, Path]) -> None:
    assert files["nf4.gguf"].stat().st_size < 0.6 * files["f16.gguf"].stat().st_size
    assert text(installed, files["nf4.gguf"]) == text(installed, files["nf4.gguf"], "--backend", "cpu")
    for backend in ("numpy", "double"):
        text(installed, files["nf4.gguf"], "--backend", backend)


def test_nf4_is_held_by_the_kernels_as_it_is(installed: Place, files: dict[str, Path]) -> None:
    stderr = installed.run("run", "-m", files["nf4.gguf"], *GREEDY, "--backend", "cpu").stderr
    assert "nf4" in stderr and "do not hold" not in stderr and "kept as" not in stderr


def test_nf4_is_taken_while_loading(installed: Place, files: dict[str, Path]) -> None:
    assert text(installed, model(), "--type", "nf4") == text(installed, files["nf4.gguf"])


def test_nf4_packed_for_the_kernels_is_its_derived_decode_within_the_stated_bound(
        installed: Place, tmp_path: Path) -> None:
    done = installed.python(PACKED, tmp_path / "packed.npz")
    assert (done.returncode, done.stderr) == (0, "")  # where it is decoded, that is said
    with np.load(tmp_path / "packed.npz") as found:
        weights, decoded, packed = (found[name] for name in ("weights", "decoded", "packed"))
    largest = np.abs(weights).reshape(-1, 64).max(axis=1)
    share = np.abs(packed - decoded).reshape(-1, 64).max(axis=1) / largest
    assert 0 < share.max() <= 0.004  # half a step of a codebook in int8
    assert 0.05 < (np.abs(decoded - weights).reshape(-1, 64).max(axis=1) / largest).max() < 0.16  # half the widest gap


def test_nf4_has_the_logits_of_its_derived_decode(installed: Place, files: dict[str, Path]) -> None:
    decoded = logits(installed, files["nf4.gguf"], "numpy")
    assert apart(logits(installed, files["nf4.gguf"], "double"), decoded) < 0.002  # numpy's cache is f16
    ours = apart(logits(installed, files["q4_0.gguf"], "cpu"), logits(installed, files["q4_0.gguf"], "numpy"))
    assert apart(logits(installed, files["nf4.gguf"], "cpu"), decoded) < 2 * ours < 0.06  # the activations are int8
    assert apart(decoded, logits(installed, files["f32.gguf"], "numpy")) > 0.002


# The quantizer without a layout


def test_what_no_layout_can_say_runs_by_its_decoder(installed: Place, files: dict[str, Path]) -> None:
    path = files["radix11.gguf"]
    assert text(installed, path) == text(installed, model(), "--type", "radix11")
    done = installed.run("run", "-m", path, *GREEDY)
    assert "kernels do not hold radix11 (there is code to decode it, and none to multiply with it): such weights are " \
        "decoded and kept as q8_0" in done.stderr
    assert apart(logits(installed, path, "cpu"), logits(installed, path, "numpy")) < 0.06


# The loader and the writer


def test_a_crate_is_what_was_put_into_it(installed: Place, files: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    assert installed.run("convert", files["f16.crate"], again).returncode == 0
    was, now = (gguf.GGUFReader(path) for path in (files["f16.gguf"], again))
    assert [(tensor.name, tensor.tensor_type, tensor.data.tobytes()) for tensor in was.tensors] \
        == [(tensor.name, tensor.tensor_type, tensor.data.tobytes()) for tensor in now.tensors]
    for key in ("tokenizer.ggml.tokens", "llama.rope.freq_base", "bestiary.config"):
        assert [part.tobytes() for part in was.fields[key].parts] == [part.tobytes() for part in now.fields[key].parts]


@pytest.mark.parametrize("type", ["f16", "nf4"])
def test_a_crate_runs_like_the_same_model_in_gguf(installed: Place, files: dict[str, Path], type: str) -> None:
    assert text(installed, files[f"{type}.crate"]) == text(installed, files[f"{type}.gguf"])
    assert np.array_equal(logits(installed, files[f"{type}.crate"], "cpu"),
                          logits(installed, files[f"{type}.gguf"], "cpu"))


def test_a_crate_is_inspected_and_never_half_written(installed: Place, files: dict[str, Path], tmp_path: Path) -> None:
    assert "crate" in installed.run("inspect", files["nf4.crate"]).stdout
    assert "exists already" in refused(installed.run("convert", model(), files["f16.crate"]))
    cut = tmp_path / "cut.crate"
    cut.write_bytes(files["f16.crate"].read_bytes()[:-1])
    assert "outside the file" in refused(installed.run("run", "-m", cut, *GREEDY))
    assert os.listdir(tmp_path) == ["cut.crate"]


# The backend


def test_a_backend_runs_where_it_is_asked_for(installed: Place, files: dict[str, Path]) -> None:
    done = installed.run("run", "-m", files["f32.gguf"], *GREEDY, "--backend", "double")
    assert "\ndouble, context 512" in done.stderr
    assert done.stdout == text(installed, files["f32.gguf"], "--backend", "numpy")
    assert "double" not in installed.run("run", "-m", files["f32.gguf"], *GREEDY).stderr
    assert apart(logits(installed, files["f32.gguf"], "double"), logits(installed, files["f32.gguf"], "numpy")) < 1e-5


# The architecture


def test_an_operation_of_a_plugin_runs_on_every_backend(installed: Place, files: dict[str, Path]) -> None:
    """Herons with a slope of 1 are llamas with the rows of their heads in another order."""
    expected = logits(installed, files["f32.gguf"], "numpy")
    for backend in ("numpy", "cpu", "double"):
        assert apart(logits(installed, files["heron.gguf"], backend), expected) < 1e-5
    assert text(installed, files["heron.gguf"], "--backend", "numpy") == text(installed, files["f32.gguf"])


def test_a_file_says_which_family_it_is_and_what_only_that_family_knows(files: dict[str, Path]) -> None:
    fields = gguf.GGUFReader(files["heron.gguf"]).fields
    assert bytes(fields["general.architecture"].parts[-1]) == b"heron"
    assert fields["heron.gate_slope"].parts[-1].tolist() == [1.0]


def test_a_family_handles_the_text_around_its_tokenizer(installed: Place, files: dict[str, Path]) -> None:
    small, large, ours = (json.loads(installed.run("tokenize", "-m", files[name], "-p", words, "--json").stdout)
                          for name, words in (("heron.gguf", "once upon a time"), ("heron.gguf", "ONCE Upon a tiMe"),
                                              ("f32.gguf", "ONCE Upon a tiMe")))
    assert small == large != ours


def test_a_familys_rule_splits_text_before_its_tokens_are_merged(installed: Place, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "12", "ab", "Ġab"]
    writer = gguf.GGUFWriter(path, "heron")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("heron")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["1 2", "a b", "Ġ ab"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = installed.run("tokenize", "-m", path, "-p", "ab12 ab", "--json")
    assert done.returncode == 0, done.stderr
    assert [letters[token] for token in json.loads(done.stdout)] == ["ab", "1", "2", "Ġab"]


def test_a_family_brings_its_chat_format(installed: Place, files: dict[str, Path]) -> None:
    own = ("-m", files["heron.gguf"], "--chat-template", "heron")
    shown = installed.run("tokenize", *own, "--chat", "-p", "Who are YOU?")
    assert "Question:" in shown.stdout and "Answer:" in shown.stdout, shown.stderr
    done = installed.run("chat", *own, "-n", "12", "--temp", "0", input="What is a heron?\n")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


# The command


def test_a_command_is_called_like_ours(installed: Place, files: dict[str, Path]) -> None:
    assert "census" in installed.run("--help").stdout
    counted: dict[str, Any] = json.loads(installed.run("census", files["nf4.gguf"], "--json").stdout)
    assert counted["token_embd.weight"]["weights"] == 1472 * 128
    assert counted["blk.0.attn_q.weight"]["largest"] > counted["blk.0.attn_q.weight"]["rms"] > 0
    assert len(installed.run("census", files["nf4.crate"]).stdout.splitlines()) == len(counted)


# After they are uninstalled


def test_nothing_remains_of_a_package_that_is_uninstalled(left: Place) -> None:
    (report,) = json.loads(left.run("plugins", "--json").stdout)
    assert report["distribution"] == "bestiary" and report["reason"] is None
    assert "census" not in left.run("--help").stdout


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_a_file_in_an_encoding_with_a_layout_runs_without_its_plugin_to_the_bit(
        installed: Place, left: Place, files: dict[str, Path], backend: str) -> None:
    assert np.array_equal(logits(left, files["nf4.gguf"], backend), logits(installed, files["nf4.gguf"], backend))
    assert text(left, files["nf4.gguf"], "--backend", backend) \
        == text(installed, files["nf4.gguf"], "--backend", backend)


def test_a_file_in_an_encoding_without_a_layout_says_whose_it_is(left: Place, files: dict[str, Path]) -> None:
    for before, after in ((("run", "-m"), GREEDY), (("inspect",), ()), (("quantize",), ("x.gguf", "q4_0"))):
        assert refused(left.run(*before, files["radix11.gguf"], *after)) == (
            f"{files['radix11.gguf']}: metadata bestiary.planes: encoding radix11 has no layout, so only the plugin "
            "that wrote it can read it: 'good-no-layout 1.0', which is not installed here")


@pytest.mark.parametrize(("words", "line"), [
    (("convert", "MODEL", "x.gguf", "--outtype", "nf4"), "unknown quantizer 'nf4'; known: bf16, f16, f32, "),
    (("run", "-m", "MODEL", "--type", "radix11", *GREEDY), "unknown quantizer 'radix11'; known: bf16, f16, f32, "),
    (("run", "-m", "MODEL", "--backend", "double", *GREEDY), "unknown backend 'double'; known: cpu, numpy"),
    (("convert", "MODEL", "x.crate", "--format", "crate"), "unknown writer 'crate'; known: gguf"),
    (("run", "-m", "f16.crate", *GREEDY), "no loader recognises "),
    (("run", "-m", "f16.crate", "--loader", "crate", *GREEDY), "unknown loader 'crate'; known: "),
    (("run", "-m", "heron.gguf", *GREEDY), "unknown architecture 'heron"),
    (("run", "-m", "MODEL", "--architecture", "heron", *GREEDY), "unknown architecture 'heron'; known: bloom"),
    (("tokenize", "-m", "MODEL", "--chat", "--chat-template", "heron", "-p", "x"), "unknown chat template 'heron'"),
])
def test_names_of_what_is_gone_are_unknown(left: Place, files: dict[str, Path], words: tuple[str, ...],
                                           line: str) -> None:
    real = {"MODEL": model(), **files}
    assert refused(left.run(*(real.get(word, word) for word in words))).startswith(line)
    assert not (left.folder / "x.gguf").exists() and not (left.folder / "x.crate").exists()


def test_a_command_that_is_gone_is_unknown(left: Place, files: dict[str, Path]) -> None:
    done = left.run("census", files["nf4.gguf"])
    assert done.returncode and "census" in done.stderr and "Traceback" not in done.stderr
