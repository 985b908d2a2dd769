"""docs/coming-from.md: every row whose part is there does what it says, on small models laid out as in guides."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import bestiary
import bestiary.model
import bestiary.saving
from bestiary.cli.main import main
from bestiary.host import Host
from bestiary_plugins.demo.beasts import publish
from bestiary_plugins.demo.command import HERE
from bestiary_plugins.demo.command import model as demo_model
from bestiary_plugins.demo.merges import MERGES
from tests.loaders.ggml_lora_files import written

PAGE = Path(__file__).parents[2] / "docs/coming-from.md"
LATER = "(later)"
AS_GUIDES_HAVE_THEM = (
    "python convert.py zh-models/7B/",
    "python3 convert-pth-to-ggml.py models/7B/ 1",
    "python convert-hf-to-gguf.py DIR --outfile X.gguf --outtype q8_0",
    "./quantize ./zh-models/7B/ggml-model-f16.bin ./zh-models/7B/ggml-model-q4_0.bin 2",
    "./quantize f16 out q4_0",
    "./quantize --allow-requantize in-q8_0.gguf out-q4_1.gguf Q4_1",
    "./main -m M --color -f ./prompts/alpaca.txt -ins -c 2048 --temp 0.2 -n 256 --repeat_penalty 1.3",
    './main -m M -p "Building a website can be done in 10 simple steps:" -n 512',
    """./main -m M -n -1 -ngl 256 -t 12 --color -r "User:" --in-prefix " " -i -p '...'""",
    """./main -m M -p 'Translate "Hi, how are you?" in French:' -t 8 -n 256""",
)
SAID = {"text": r"\S+ \S+", "the same figure": r"Final estimate: PPL = \d+\.\d+ \+/- \d",
        "tokens a second": r"decode +16 ", "instructions and answers": r"> .*### Response:",
        "ids and pieces": r"\d  '▁\w+'",
        "the config and every tensor": r"hidden_size.*norm\.weight"}
"""What must be in the output of a row that gives this, where that is more than something."""
JSON = ("the same as JSON", "a list of ids", "all metadata and tensors")
PROGRAMS = {"python convert.py": "convert", "python3 convert-pth-to-ggml.py": "convert",
            "python convert-hf-to-gguf.py": "convert", "./quantize": "quantize", "./main": "run"}


@dataclass(frozen=True)
class Row:
    section: str
    theirs: str
    ours: str
    """A command line, Python, or LATER."""
    gives: str

    @property
    def writes(self) -> list[str]:
        return re.findall(r"writes `([^`]+)`", self.gives)


def rows() -> list[Row]:
    found, section = [], ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and not line.startswith("| theirs"):
            theirs, ours, gives = (cell.strip() for cell in line[1:-1].split(" | "))
            found.append(Row(section, theirs.strip("`"), ours.strip("`"), gives))
    return found


ROWS = rows()
SECTIONS = list(dict.fromkeys(row.section for row in ROWS))


@pytest.fixture(scope="module")
def files(data: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rows name: checkpoints in the form and the place that guides have them, all of them small."""
    folder = tmp_path_factory.mktemp("files")
    stories = data / "tiny-llama/stories260K.bin"
    for place in ("models/7B", "models/13B", "models/65B", "zh-models/7B"):
        (folder / place).mkdir(parents=True)
        for file in (data / "legacy-models/meta-pth").iterdir():
            target = folder / place if file.name != "tokenizer.model" else (folder / place).parent
            shutil.copyfile(file, target / file.name)
    shutil.copytree(demo_model(), folder / "DIR")
    bestiary.saving.save_as(demo_model(), folder / "M", "q8_0", host)
    bestiary.saving.save_as(stories, folder / "f16", "f16", host)
    bestiary.saving.save_as(stories, folder / "in-q8_0.gguf", "q8_0", host)
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copyfile(data / "tiny-llama" / name, folder / name)
    shutil.copyfile(HERE / "held_back.txt", folder / "TEXT")
    for family, name in (("bloom", "bigscience/bloomz-7b1"), ("bloom", "FreedomIntelligence/phoenix-inst-chat-7b"),
                         ("falcon", "falcon-7b"), ("chatglm1", "THUDM/chatglm-6b"), ("chatglm", "THUDM/chatglm2-6b")):
        (folder / name).parent.mkdir(exist_ok=True)
        publish(host.architectures[family], folder / name, 4, **({"seq_length": 2048} if family == "bloom" else {}))
    parts = MERGES["chimera"](host.architectures["llama"], folder / "chimera", publish, 4)
    assert parts.base is not None
    parts.base.rename(folder / "llama-7b")
    parts.source.rename(folder / "FreedomIntelligence/chimera-chat-7b-delta")
    parts = MERGES["chinese-llama"](host.architectures["llama"], folder / "chinese", publish, 4)
    parts.source.rename(folder / "llama-hf")
    parts.adapters[0].rename(folder / "lora")
    for old, name in (("llama-ggjt1-q4_1.bin", "old.bin"), ("bloom-bloomzcpp-q4_0.bin", "old-bloomz.bin"),
                      ("falcon7-ggcc-q4_0.bin", "old-falcon.bin")):
        shutil.copyfile(data / "legacy-models" / old, folder / name)
    (folder / "adapter.bin").write_bytes(written(3, 6, {
        "0.mlp.up_proj.A": np.ones((3, 64), np.float32), "0.mlp.up_proj.B": np.zeros((172, 3), np.float32)}))
    (folder / "prompts").mkdir()
    (folder / "prompts/alpaca.txt").write_text("Below is an instruction. Write a response.\n")
    split(folder / "f16", folder)
    return folder


def split(whole: Path, folder: Path) -> None:
    """The same model in two files."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(whole)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(folder / f"f16-0000{number + 1}-of-00002.gguf", "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith("GGUF.") or field.name == "general.architecture":
                    continue
                kind = field.types[0]
                sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@contextlib.contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(row: Row, names: dict[str, object]) -> str:
    """Runs the row's right side; what is wrong with it, or nothing."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if row.ours.startswith("bestiary "):
                status = main(shlex.split(row.ours)[1:])
                if status != 0:
                    return f"exit status {status}: {err.getvalue().strip().splitlines()[-1:]}"
            else:
                exec(compile(row.ours, str(PAGE), "exec"), names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for name in row.writes:
        if not Path(name).is_file():
            return f"{name} was not written"
        if bestiary.model.load_tokenizer(name).size < 100:
            return f"{name} has no tokenizer"
    if not row.ours.startswith("bestiary "):
        return ""
    said = out.getvalue()
    if row.gives in JSON and not json.loads(said):
        return "there is nothing in its JSON"
    if not re.search(SAID.get(row.gives, r"\S"), said, re.DOTALL):
        return f"it said {said[-200:]!r}"
    return ""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_of_a_section_runs(section: str, files: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    shutil.copytree(files, tmp_path / "here", copy_function=os.link)
    names: dict[str, object] = {"bestiary": bestiary}
    wrong, ran = [], 0
    with standing_in(tmp_path / "here"):
        for row in ROWS:
            if row.section == section and row.ours != LATER:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who is Otto?\n")))
                if complaint := run(row, names):
                    wrong.append(f"{row.ours}: {complaint}")
                ran += 1
    later = sum(row.section == section and row.ours == LATER for row in ROWS)
    print(f"{section}: {ran} rows run, {later} later")
    assert not wrong, "\n".join(wrong)


def test_the_lines_of_guides_stand_there_and_run_with_the_name_replaced() -> None:
    ours = {row.theirs: row.ours for row in ROWS}
    for line in AS_GUIDES_HAVE_THEM:
        program = next(program for program in PROGRAMS if line.startswith(program + " "))
        assert ours[line] == line.replace(program, f"bestiary {PROGRAMS[program]}", 1)


def test_the_rows_are_counted() -> None:
    counts = Counter(row.ours == LATER for row in ROWS)
    print(f"{counts[False]} rows run, {counts[True]} later")
    assert counts[False] > 55
    assert [row.theirs for row in ROWS if not row.theirs or not row.ours] == []
    assert len({(row.section, row.theirs) for row in ROWS}) == len(ROWS)
