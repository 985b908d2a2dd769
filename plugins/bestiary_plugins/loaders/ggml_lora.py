"""LoRA adapters of llama.cpp before GGUF ("ggla"): what its convert-lora-to-ggml.py made of one of PEFT's.

Source: ggerganov/llama.cpp, convert-lora-to-ggml.py of May 2023 and of after August 2023. The script names tensors as
llama.cpp does, and leaves the rows of the queries and keys in the order of Hugging Face, where llama.cpp's models have
Meta's. llama.cpp added them as they stand; here they are given the names they came from, so that the sum is what was
trained.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.checkpoint import Adapter, Checkpoint, Provenance
from bestiary.encoding import F16, F32, Encoding
from bestiary.errors import BestiaryError, short
from bestiary.files import DataFile, FileTensor
from bestiary.loader import Loader
from bestiary.low_rank import LowRank
from bestiary.tensor import Tensor
from bestiary.transform import Transpose
from bestiary_plugins.loaders.ggml_container import Entry, read_entries
from bestiary_plugins.loaders.huggingface import NAMING
from bestiary_plugins.loaders.peft import MOST_RANK

if TYPE_CHECKING:
    from bestiary.host import Host

MAGIC, ALIGNMENT = 0x67676C61, 32
TYPES = {0: F32, 1: F16}
NAME = re.compile(r"(?:layers|blk)\.(0|[1-9][0-9]{0,4})\.([a-z0-9_.]+)\.weight\.lora([AB])")
MODULES = {ours: theirs for theirs, names in {
    "self_attn.q_proj": ("attention.wq", "attn_q"), "self_attn.k_proj": ("attention.wk", "attn_k"),
    "self_attn.v_proj": ("attention.wv", "attn_v"), "self_attn.o_proj": ("attention.wo", "attn_output"),
    "mlp.gate_proj": ("feed_forward.w1", "ffn_gate"), "mlp.down_proj": ("feed_forward.w2", "ffn_down"),
    "mlp.up_proj": ("feed_forward.w3", "ffn_up")}.items() for ours in names}
"""Until August 2023 the script took Meta's names of the modules, then those of GGUF."""


def is_lora(file: DataFile) -> bool:
    return file.size >= 16 and struct.unpack("<I", file.read(0, 4))[0] == MAGIC


def module_of(name: str, path: Path) -> tuple[str, str]:
    """The matrix that a tensor belongs to, by its published name; A or B."""
    match = NAME.fullmatch(name)
    module = MODULES.get(match[2]) if match else None
    if match is None or module is None:
        raise BestiaryError(f"{path}: tensor {short(name, 120)} is of no adapter that llama.cpp's "
                            "convert-lora-to-ggml.py made; others, as of its finetune, are not implemented")
    return f"model.layers.{match[1]}.{module}.weight", match[3]


def open_lora(path: Path) -> Checkpoint:
    """The adapter of a file. u32 magic, i32 version, i32 rank, i32 alpha; then tensors: A as (columns, rank), B as
    (rows, rank). Raises BestiaryError for what is damaged."""
    file = DataFile(path)
    if not is_lora(file):
        raise BestiaryError(f"{path} is no LoRA adapter of llama.cpp")
    version, rank, alpha = struct.unpack("<3i", file.read(4, 12))
    if version != 1:
        raise BestiaryError(f"{path} is a LoRA adapter of llama.cpp of version {version}; known: 1")
    if not 1 <= rank <= MOST_RANK:
        raise BestiaryError(f"{path}: r = {rank}; it must be from 1 to {MOST_RANK}")

    def encoding_of(entry: Entry) -> Encoding:
        if entry.code not in TYPES:
            raise BestiaryError(f"{path}: tensor {entry.name} has type {entry.code}; known: 0 (f32), 1 (f16)")
        return TYPES[entry.code]

    sides: dict[str, dict[str, Tensor]] = {}
    for entry, encoding in read_entries(file, 16, ALIGNMENT, encoding_of):
        name, side = module_of(entry.name, path)
        if len(entry.shape) != 2 or entry.shape[1] != rank:
            raise BestiaryError(f"{path}: tensor {entry.name} is of {list(entry.shape)}; with r = {rank} it is of "
                                f"[{'rows' if side == 'B' else 'columns'}, {rank}]")
        if side in sides.setdefault(name, {}):
            raise BestiaryError(f"{path}: of {name} lora{side} is there twice")
        sides[name][side] = FileTensor(file, entry.offset, entry.shape, encoding, entry.name)
    if not sides:
        raise BestiaryError(f"{path} holds no tensors")
    added: dict[str, Tensor] = {}
    for name, found in sides.items():
        if len(found) != 2:
            raise BestiaryError(f"{path}: of {name} there is lora{next(iter(found))} alone; the file is incomplete")
        (down,) = Transpose().apply([found["A"]])
        added[name] = LowRank(found["B"], down, alpha / rank)
    return Checkpoint(path, {}, {}, NAMING, adapter=Adapter(added), source=(open_lora, (path,)), provenance=Provenance(
        "llama.cpp, convert-lora-to-ggml.py", "April 2023 to 2024", "ggla, version 1",
        lacks=("the name of the model it was made for",)))


class GgmlLora(Loader):
    """A single file."""

    name = "ggml-lora"

    def recognise(self, path: Path) -> int:
        if not path.is_file():
            return 0
        try:
            return 100 if is_lora(DataFile(path)) else 0
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_lora(path)
