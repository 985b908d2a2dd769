"""Bad input: one line, status 1, nothing half-written under the final name."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bestiary_plugins.demo.command import model as demo_model

from .conftest import Cli


def wrong_magic(model: Path, folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(b"GGML" + model.read_bytes()[4:])
    return folder / "m.gguf"


def truncated(model: Path, folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(model.read_bytes()[:-5000])
    return folder / "m.gguf"


def truncated_header(model: Path, folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(model.read_bytes()[:5000])
    return folder / "m.gguf"


def empty(model: Path, folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(b"")
    return folder / "m.gguf"


def lfs_pointer(model: Path, folder: Path) -> Path:
    (folder / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    return folder / "m.gguf"


def copy_of_demo(folder: Path) -> Path:
    return Path(shutil.copytree(demo_model(), folder / "hf"))


def lfs_pointer_in_folder(model: Path, folder: Path) -> Path:
    copy = copy_of_demo(folder)
    lfs_pointer(model, folder).replace(copy / "model.safetensors")
    return copy


def without_config(model: Path, folder: Path) -> Path:
    copy = copy_of_demo(folder)
    (copy / "config.json").unlink()
    return copy


def unknown_architecture(model: Path, folder: Path) -> Path:
    copy = copy_of_demo(folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["Nessie"], "model_type": "nessie"}))
    return copy


def missing_shard(model: Path, folder: Path) -> Path:
    copy = copy_of_demo(folder)
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors"}}))
    return copy


def wrong_shape(model: Path, folder: Path) -> Path:
    copy = copy_of_demo(folder)
    data = (copy / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    entry = header["model.norm.weight"]
    entry["shape"] = [2, entry["shape"][0] // 2]
    new = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length:])
    return copy


def absent(model: Path, folder: Path) -> Path:
    return folder / "nothing.gguf"


BAD: list[tuple[Callable[[Path, Path], Path], str]] = [
    (wrong_magic, "m.gguf"), (truncated, "truncated"), (truncated_header, "truncated"), (empty, "empty"),
    (lfs_pointer, "git lfs pull"), (lfs_pointer_in_folder, "git lfs pull"), (without_config, "config.json"),
    (unknown_architecture, "llama"), (missing_shard, "model-00002-of-00002.safetensors"), (wrong_shape, "output_norm"),
    (absent, "does not exist")]


@pytest.mark.parametrize(("make", "said"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_a_bad_checkpoint_is_one_line(cli: Cli, model: Path, tmp_path: Path, make: Callable[[Path, Path], Path],
                                      said: str) -> None:
    bad = make(model, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for words in (["run", "-m", bad, "-n", "1"], ["convert", bad, tmp_path / "out.gguf"],
                  ["quantize", bad, tmp_path / "out.gguf", "q4_0"], ["bench", "-m", bad]):
        result = cli(*words)
        assert result.status == 1
        assert said in result.err
        assert result.err.count("\n") == 1 and result.err.startswith("bestiary: error: ")
        assert result.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_inspect_says_what_keeps_a_checkpoint_from_running(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("inspect", unknown_architecture(model, tmp_path))
    assert result.status == 0
    assert "Nessie" in result.out and "problem" in result.out


def test_a_tokenizer_alone_is_no_model(cli: Cli, stories: Path, tmp_path: Path) -> None:
    tokenizer = stories.parent / "tok512.bin"
    for words in (["run", "-m", tokenizer], ["convert", tokenizer, tmp_path / "x.gguf"]):
        assert "a tokenizer and no weights" in cli(*words).err
    assert "512 pieces" in cli("inspect", tokenizer).out


def test_an_existing_output_is_refused_before_any_work(cli: Cli, stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.gguf"
    out.write_text("precious")
    for words in (["convert", stories, out], ["quantize", stories, out, "q8_0"]):
        result = cli(*words)
        assert result.status == 1
        assert "--force" in result.err and result.err.count("\n") == 1
    assert out.read_text() == "precious"
    assert cli("convert", stories, out, "--force").status == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_an_output_that_cannot_be_written_is_refused(cli: Cli, stories: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letters.txt").write_text("Dear Sir")
    for out in (tmp_path / "none" / "s.gguf", tmp_path / "file" / "s.gguf", tmp_path / "folder"):
        result = cli("convert", stories, out)
        assert result.status == 1
        assert result.err.count("\n") == 1
        assert "folder" in result.err
    result = cli("convert", stories, tmp_path / "folder", "--force")
    assert result.status == 1 and "is a folder of other things" in result.err


def test_the_input_is_no_output(cli: Cli, model: Path) -> None:
    before = model.read_bytes()
    result = cli("quantize", "--force", model, model, "q4_0")
    assert result.status == 1
    assert "input itself" in result.err
    assert model.read_bytes() == before


def test_a_conversion_that_fails_midway_leaves_nothing(cli: Cli, model: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary import convert
    from bestiary.errors import BestiaryError

    def fail(self: convert.Quantized, start: int, stop: int) -> np.ndarray:
        raise BestiaryError("the disk is on fire")

    monkeypatch.setattr(convert.Quantized, "read", fail)
    result = cli("quantize", model, tmp_path / "out.gguf", "q8_0")
    assert result.status == 1
    assert "on fire" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (["--temp", "-1"], "temperature"), (["--top-p", "1.5"], "top_p"), (["--min-p", "-0.5"], "min_p"),
    (["--repeat-penalty", "0"], "repeat_penalty"), (["--repeat-last-n", "-2"], "repeat_last_n"), (["-n", "-3"], "-n"),
    (["-t", "0"], "threads"), (["-c", "-1"], "context"), (["-b", "0"], "batch"),
    (["-c", "3", "-p", "Far too long"], "3"), (["-p", "a", "-f", "b"], "two prompts"),
    (["--samplers", "top_k;magic"], "magic"), (["--backend", "abacus"], "abacus"), (["--type", "q9_9"], "q9_9"),
    (["--cache-type-k", "q9_9"], "q9_9"), (["-f", "no-such-file"], "no-such-file"),
    (["--loader", "clay-tablet"], "clay-tablet"), (["--architecture", "nessie"], "nessie"),
    (["--plugin", "no-such-plugin.py"], "no-such-plugin.py"), (["--prefer", "nobody"], "nobody")])
def test_an_option_out_of_range_is_one_line(cli: Cli, model: Path, words: list[str], said: str) -> None:
    result = cli("run", "-m", model, *words)
    assert result.status == 1
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["-p", "x"], ["-n", "-1"], ["-t", "0"], ["-r", "0"], ["--sequences", "0"], ["-d", "-1"]])
def test_an_option_of_bench_out_of_range_is_one_line(cli: Cli, model: Path, words: list[str]) -> None:
    result = cli("bench", "-m", model, *words)
    assert result.status == 1
    assert words[0] in result.err and result.err.count("\n") == 1


def test_what_is_no_regular_file_is_never_replaced(cli: Cli, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = cli("quantize", model, tmp_path / "pipe", "q8_0", "--force")
    assert result.status == 1 and "no regular file" in result.err and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_is_followed_and_stays_a_link(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old.gguf").write_bytes(b"old")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "there" / "old.gguf")
    assert cli("quantize", model, tmp_path / "link.gguf", "q8_0").status == 1
    assert cli("quantize", model, tmp_path / "link.gguf", "q8_0", "--force").status == 0
    assert (tmp_path / "link.gguf").is_symlink() and (tmp_path / "there" / "old.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("name", ["5", "6", "q4_2", "Q4_3"])
def test_types_that_are_gone_are_told_from_unknown_ones(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    result = cli("quantize", model, tmp_path / "x.gguf", name)
    assert result.status == 1 and "is gone" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K", "iq3_xs", "IQ2_M", "mxfp4_moe", "q8_0_v1", "int4_bf16_32"])
def test_types_that_are_only_read_are_told_from_unknown_ones(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    for words in (("quantize", model, tmp_path / "x.gguf", name), ("quantize", model, name),
                  ("run", "-m", model, "-p", "x", "-n", "1", "--type", name)):
        result = cli(*words)
        assert result.status == 1 and "read and run, and not written yet" in result.err, result.err
        assert result.err.count("\n") == 1 and f"quantizer {name!r}: " in result.err
    for other in ("q4_k_model", "q4_k_", "q4_j", "k_m"):
        assert f"unknown quantizer {other!r}; known: bf16, " in cli("quantize", model, other).err
    assert cli("quantize", model, tmp_path / "q4_k_model", "q8_0").status == 0


def test_sizes_beyond_reason_are_one_line(cli: Cli, model: Path) -> None:
    for words in (("-c", "100000000000"), ("-b", "100000000000")):
        result = cli("run", "-m", model, "-p", "x", "-n", "1", *words)
        assert result.status == 1 and result.err.startswith("bestiary: error: "), result.err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">/dev/full"])
def test_closed_and_full_streams_are_no_bug(model: Path, closed: str) -> None:
    command = f"{sys.executable} -m bestiary run -m {model} -p Once -n 4 --temp 0 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in closed else 0), done.stderr


def test_a_terminated_conversion_takes_back_what_is_half_done(model: Path, tmp_path: Path) -> None:
    program = ("import os, signal, sys; from bestiary.cli.main import main; from bestiary.convert import Quantized\n"
               "def read(*_): os.kill(os.getpid(), signal.SIGTERM); raise SystemExit(143)\n"
               "Quantized.read = read\n"
               f"sys.exit(main(['quantize', {str(model)!r}, {str(tmp_path / 'x.gguf')!r}, 'q8_0']))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 143 and not list(tmp_path.iterdir())
