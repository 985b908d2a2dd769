"""Files of chatglm.cpp: a record of the config, the tokenizer's own file, the weights under the names of Hugging Face.

Source: li-plus/chatglm.cpp, convert.py and chatglm.h of June 2023 (6c6f376), of the versions 1 and 2 of its record.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.checkpoint import Checkpoint, Provenance, TokenizerMaterial
from bestiary.encoding import F16, F32, PLAIN, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from bestiary_plugins.loaders.ggml_container import LONGEST_NAME, Entry, read_entries
from bestiary_plugins.loaders.huggingface import NAMING
from bestiary_plugins.loaders.tokenizer_files import MAX_FILE

if TYPE_CHECKING:
    from bestiary.host import Host

MAGIC = b"ggml"
"""In reading order; llama.cpp and its kin have these letters the other way round in a file."""
MODELS = {1: "ChatGLM-6B", 2: "ChatGLM2-6B", 3: "ChatGLM3-6B", 4: "GLM-4"}
OTHERS = {1004: "GLM-4V", 1024: "Baichuan-7B", 1025: "Baichuan-13B", 1280: "InternLM"}
"""What the program ran as well, and this loader does not read."""
TYPES = {0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0}
"""In the blocks of today, from the first release on."""
ALIGNMENT, MOST_AXES = 16, 4
PAST, PREFIX = "past_key_values", "transformer.prefix_encoder.embedding.weight"

Fields = tuple[tuple[str, str], ...]
SIZES = ("hidden_size", "num_attention_heads", "num_layers")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _fields(*names: str, kind: str = "i") -> Fields:
    return tuple((name, kind) for name in names)


FIRST = _fields("vocab_size", *SIZES, "context", "bos_token_id", "eos_token_id", "gmask_token_id", "mask_token_id",
                "pad_token_id", "dtype")
ONE = _fields("dtype", "vocab_size", *SIZES, "inner", "context", *IDS, "sep_token_id")
ONE_GROUPED = (*ONE, *_fields("kv_heads"))
TWO = (*_fields("dtype", "vocab_size", "hidden_size", "num_attention_heads", "kv_heads", "num_layers", "inner"),
       ("epsilon", "f"), ("prefix", "i"), ("rope_theta", "f"), *_fields("context", "eos_token_id", "pad_token_id"))
FIRST_GENERATION = {"inner": "inner_hidden_size", "context": "max_sequence_length", "epsilon": "layernorm_epsilon"}
LATER = {"inner": "ffn_hidden_size", "context": "seq_length", "epsilon": "layernorm_epsilon",
         "vocab_size": "padded_vocab_size", "kv_heads": "multi_query_group_num"}
"""What the published configs call the values of a record."""


class Start(NamedTuple):
    """model: its number. version: of the record; 0 in files of the first release, which say neither. offset: of the
    record."""

    model: int
    version: int
    offset: int

    @property
    def fields(self) -> Fields | None:
        """Of the record; None where nobody wrote such a one."""
        known: Mapping[tuple[int, int], Fields] = {
            (1, 0): FIRST, (1, 1): ONE, (2, 1): ONE_GROUPED, (3, 1): ONE_GROUPED,
            **{(model, 2): TWO for model in MODELS}}
        return known.get((self.model, self.version))


def read_start(file: DataFile) -> Start | None:
    """None where the file does not begin like one of chatglm.cpp's."""
    if file.size < 52 or file.read(0, 4) != MAGIC:
        return None
    numbers = struct.unpack("<11i", file.read(4, 44))
    if 0 < numbers[0] < 1 << 16 and 0 < numbers[1] < 16:
        return Start(numbers[0], numbers[1], 12)
    sizes, kind = numbers[:5], numbers[10]
    plausible = all(low <= size <= 1 << 24 for size, low in zip(sizes, (16, 16, 1, 1, 1), strict=True))
    return Start(1, 0, 4) if plausible and sizes[1] % sizes[2] == 0 and kind in TYPES else None


def read_record(file: DataFile, start: Start) -> tuple[dict[str, Any], int]:
    """The record's values by name, and the offset behind it."""
    if start.model not in MODELS:
        name = OTHERS.get(start.model)
        known = ", ".join(MODELS.values())
        raise BestiaryError(f"{file.path} is a chatglm.cpp file of {name or 'an unknown model'} (model type "
                            f"{start.model}), which is not implemented; known: {known}")
    if start.fields is None:
        raise BestiaryError(f"{file.path} is a chatglm.cpp file of {MODELS[start.model]} whose config has version "
                            f"{start.version}; known: 1 but of GLM-4, and 2")
    form = "<" + "".join(kind for _, kind in start.fields)
    values = struct.unpack(form, file.read(start.offset, struct.calcsize(form), "the config"))
    record = {name: shortest(value) if kind == "f" else value
              for (name, kind), value in zip(start.fields, values, strict=True)}
    return record, start.offset + struct.calcsize(form)


def shortest(value: float) -> float:
    """The shortest decimal that means the same 32 bits: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def config_of(file: DataFile, start: Start, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config as it is published with such models, and what of it the file does not say."""
    given = {key: value for key, value in record.items()
             if key not in ("dtype", "prefix") and not (key.endswith("_token_id") and value < 0)}
    assumed: dict[str, Any] = {} if "epsilon" in record else {"layernorm_epsilon": 1e-5}
    if start.model != 1:
        if "rope_theta" not in record:
            assumed["rope_theta"] = 10000.0
        constant = {"multi_query_attention": True, "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True,
                    "post_layer_norm": True, "apply_residual_connection_post_layernorm": False}
        named = {LATER.get(key, key): value for key, value in given.items()}
        return {"model_type": "chatglm", **named, **constant, **assumed}, assumed
    for key, wanted in (("rope_theta", 10000.0), ("kv_heads", record["num_attention_heads"])):
        if given.pop(key, wanted) != wanted:
            raise BestiaryError(f"{file.path}: {key} = {record[key]} in the config; of a ChatGLM-6B it is: {wanted}")
    if "inner" not in record:
        assumed["inner_hidden_size"] = 4 * record["hidden_size"]
    if "bos_token_id" not in given and "eos_token_id" in given:
        assumed["bos_token_id"] = given["eos_token_id"] - 1
    sop = given.get("bos_token_id", assumed.get("bos_token_id"))
    if sop is not None and sop >= 4:
        assumed |= {key: sop - before for key, before in (("gmask_token_id", 3), ("mask_token_id", 4))
                    if key not in given}
    named = {FIRST_GENERATION.get(key, key): value for key, value in given.items()}
    return {"model_type": "chatglm", **named, "position_encoding_2d": True, **assumed}, assumed


def read_later_entry(file: DataFile, offset: int, alignment: int) -> Entry | None:
    """i32 bytes of the name, name, i32 axes, i32 an axis, i32 type, zeros to the alignment, data."""
    length = _integers(file, offset, 1)
    if length is None or not 1 <= length[0] <= LONGEST_NAME:
        return None
    name, offset = _name(file, offset + 4, length[0]), offset + 4 + length[0]
    axes = _integers(file, offset, 1)
    if name is None or axes is None or not 1 <= axes[0] <= MOST_AXES:
        return None
    numbers = _integers(file, offset + 4, axes[0] + 1)
    return None if numbers is None else _entry(name, numbers[:-1], numbers[-1], offset + 8 + 4 * axes[0], alignment)


def read_first_entry(file: DataFile, offset: int, alignment: int) -> Entry | None:
    """i32 axes, i32 bytes of the name, i32 type, i32 an axis, name, zeros to the alignment, data."""
    numbers = _integers(file, offset, 3)
    if numbers is None or not (1 <= numbers[0] <= MOST_AXES and 1 <= numbers[1] <= LONGEST_NAME):
        return None
    axes, length, code = numbers
    shape, offset = _integers(file, offset + 12, axes), offset + 12 + 4 * axes
    name = _name(file, offset, length)
    return None if shape is None or name is None else _entry(name, shape, code, offset + length, alignment)


def _integers(file: DataFile, offset: int, count: int) -> tuple[int, ...] | None:
    return struct.unpack(f"<{count}i", file.read(offset, 4 * count)) if file.size - offset >= 4 * count else None


def _name(file: DataFile, offset: int, length: int) -> str | None:
    name = file.read(offset, length) if file.size - offset >= length else b""
    return name.decode("ascii") if name and name.isascii() and name.decode("ascii").isprintable() else None


def _entry(name: str, shape: tuple[int, ...], code: int, end: int, alignment: int) -> Entry | None:
    return Entry(name, shape, code, (end + alignment - 1) // alignment * alignment) if min(shape) > 0 else None


class PastTable(Tensor):
    """The keys and values that a prompt begins with, (of all layers, heads, tokens, width of a head), as the table they
    are published as: a row a token."""

    def __init__(self, past: Tensor) -> None:
        self.encoding, self._past = past.encoding, past
        self._blocks, self._tokens = past.shape[0] * past.shape[1], past.shape[2]
        self.shape = (self._tokens, self._blocks * past.shape[3])

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.concatenate([self._past.read(block * self._tokens + start, block * self._tokens + stop)
                               for block in range(self._blocks)], axis=1)


def with_prefix(file: DataFile, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, the past by its published name. Raises BestiaryError where it is not as long as the record says."""
    count, past = record.get("prefix", 0), tensors.get(PAST)
    if past is None and count == 0:
        return dict(tensors)
    if past is None:  # the converter of ChatGLM-6B wrote the number alone
        raise BestiaryError(f"{file.path}: {count} learned tokens stand before every prompt (P-Tuning v2), and the "
                            f"file does not hold them: there is no tensor {PAST}")
    heads = record.get("kv_heads", 0)
    wanted = (2 * record["num_layers"], heads, count, record["hidden_size"] // max(record["num_attention_heads"], 1))
    if past.shape != wanted or past.encoding.name not in PLAIN:
        raise BestiaryError(f"{file.path}: tensor {PAST} is {past.encoding.name} of shape {list(past.shape)}; the "
                            f"config asks for plain numbers of shape {list(wanted)}")
    return {PREFIX if name == PAST else name: PastTable(tensor) if name == PAST else tensor
            for name, tensor in tensors.items()}


def provenance_of(start: Start, assumed: Mapping[str, Any], lacks: tuple[str, ...]) -> Provenance:
    era, form = {0: ("June 2023", "first release"), 1: ("June 2023 to 2024", "config version 1"),
                 2: ("2024 on", "config version 2")}[start.version]
    return Provenance("chatglm.cpp", era, f"chatglm.cpp's ggml, {form}, model type {start.model} "
                                          f"({MODELS[start.model]})", dict(assumed), lacks)


def open_chatglm_cpp(path: Path) -> Checkpoint:
    """The checkpoint of a file of chatglm.cpp. Raises BestiaryError for what is damaged or of another model."""
    file = DataFile(path)
    start = read_start(file)
    if start is None:
        raise BestiaryError(f"{path} is no chatglm.cpp file, or its header is damaged")
    record, offset = read_record(file, start)
    config, assumed = config_of(file, start, record)
    size = int.from_bytes(file.read(offset, 4, "the size of the tokenizer"), "little", signed=True)
    if not 0 <= size <= MAX_FILE:
        raise BestiaryError(f"{path}: a tokenizer of {size} bytes; it has from 0 to {MAX_FILE}")
    data, offset = file.read(offset + 4, size, "the tokenizer"), offset + 4 + size

    def encoding_of(entry: Entry) -> Encoding:
        if entry.code not in TYPES:
            known = ", ".join(f"{code} ({encoding.name})" for code, encoding in TYPES.items())
            raise BestiaryError(f"{path}: tensor {entry.name} has type {entry.code}; known: {known}")
        return TYPES[entry.code]

    read = read_later_entry if start.version else read_first_entry
    tensors: dict[str, Tensor] = {
        entry.name: FileTensor(file, entry.offset, entry.shape, encoding, entry.name)
        for entry, encoding in read_entries(file, offset, ALIGNMENT, encoding_of, read)}
    tensors = with_prefix(file, record, tensors)
    if PREFIX in tensors:
        config |= {"pre_seq_len": record["prefix"], "prefix_projection": False}
    eos = config.get("eos_token_id")
    material = TokenizerMaterial(files={"tokenizer.model": data} if size else {}, bos=config.get("bos_token_id"),
                                 eos=eos, ends=() if eos is None else (eos,))
    return Checkpoint(path, config, tensors, NAMING, material, source=(open_chatglm_cpp, (path,)),
                      provenance=provenance_of(start, assumed, () if size else ("the tokenizer",)))


class ChatGlmCpp(Loader):
    """A single file."""

    name = "chatglm.cpp"

    def recognise(self, path: Path) -> int:
        if not path.is_file():
            return 0
        try:
            return 100 if read_start(DataFile(path)) is not None else 0
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_chatglm_cpp(path)
