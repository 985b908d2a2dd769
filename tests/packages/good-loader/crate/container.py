"""Crates read and written: a header of JSON, then the bytes of the tensors in any encoding.

    b"CRATE 1\\n", the header's length as 8 bytes (little-endian), the header, the data.

The header is {"naming", "config", "tensors": {name: [encoding, shape, offset in the data]}, "tokenizer": {"files":
{name: base64}, "bos", "eos", "add_bos", "add_eos", "ends", "chat_template"}}. A vocabulary that stands in no file has
no place in it.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.files import DataFile, FileTensor, replacing
from bestiary.plugin import BestiaryError, Encoding
from bestiary.readahead import read_ahead
from bestiary.strict_json import LARGEST_LIST, parse_object

if TYPE_CHECKING:
    from bestiary.backend import Progress
    from bestiary.host import Host

MAGIC = b"CRATE 1\n"
START = len(MAGIC) + 8
LARGEST_SIZE, MOST_AXES = 1 << 40, 8


def is_crate(path: Path) -> bool:
    """Whether a file begins like one."""
    try:
        file = DataFile(path)
        return file.size >= START and file.read(0, len(MAGIC)) == MAGIC
    except BestiaryError:
        return False


def open_crate(path: Path, host: Host) -> Checkpoint:
    """The checkpoint, its tensors unread. Raises BestiaryError for what is damaged."""
    file = DataFile(path)
    if file.read(0, len(MAGIC), "magic") != MAGIC:
        raise BestiaryError(f"{path} is no crate: it does not begin with {MAGIC!r}")
    (length,) = struct.unpack("<Q", file.read(len(MAGIC), 8, "length of the header"))
    file.check(START, length, "header")
    if length > LARGEST_LIST:
        raise BestiaryError(f"{path}: a header of {length} bytes; up to {LARGEST_LIST} are read")
    header = parse_object(file.read(START, length, "header"), f"{path}: header", False, LARGEST_LIST)
    config, listed, said = (of_kind(path, header, key, dict) for key in ("config", "tensors", "tokenizer"))
    naming = of_kind(path, header, "naming", str)
    tensors = {}
    for name, entry in listed.items():
        encoding, shape, offset = place(path, name, entry, host)
        tensors[name] = FileTensor(file, START + length + offset, shape, encoding, name)
    return Checkpoint(path, config, tensors, naming, material(path, said), source=(open_crate, (path, host)))


def of_kind(path: Path, values: dict[str, Any], key: str, kind: Any, default: Any = None) -> Any:
    """A value of the header. Raises BestiaryError where it is of another kind, or missing without a default."""
    value = values.get(key, default)
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        raise BestiaryError(f"{path}: {key} in the header is {str(value)[:40]!r}; {kind.__name__} is wanted")
    return value


def place(path: Path, name: str, entry: Any, host: Host) -> tuple[Encoding, tuple[int, ...], int]:
    """Encoding, shape and offset of a tensor; FileTensor compares them with the file."""
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        raise BestiaryError(f"{path}: tensor {name} is no list of encoding, shape and offset")
    encoding, shape, offset = host.encodings[entry[0]], entry[1], entry[2]
    numbers = [*shape, offset] if isinstance(shape, list) and 0 < len(shape) <= MOST_AXES else [None]
    if not all(type(number) is int and 0 <= number < LARGEST_SIZE for number in numbers) or 0 in shape:
        raise BestiaryError(f"{path}: tensor {name} has the shape {str(shape)[:40]} and the offset {str(offset)[:40]}")
    return encoding, tuple(shape), offset


def material(path: Path, said: dict[str, Any]) -> TokenizerMaterial:
    """The tokenizer's files and ids."""
    try:
        files = {name: base64.b64decode(text, validate=True)
                 for name, text in of_kind(path, said, "files", dict, {}).items()}
    except (binascii.Error, TypeError, ValueError):
        raise BestiaryError(f"{path}: a file of the tokenizer in the header is no base64") from None
    ids = {key: None if said.get(key) is None else of_kind(path, said, key, int) for key in ("bos", "eos")}
    adds = {key: None if said.get(key) is None else of_kind(path, said, key, bool)
            for key in ("add_bos", "add_eos")}
    ends = of_kind(path, said, "ends", list, [])
    if not all(type(end) is int for end in ends):
        raise BestiaryError(f"{path}: ends in the header is {str(ends)[:40]}; a list of ids is wanted")
    template = None if said.get("chat_template") is None else of_kind(path, said, "chat_template", str)
    return TokenizerMaterial(files, None, ids["bos"], ids["eos"], adds["add_bos"], adds["add_eos"], tuple(ends),
                             template)


def save_crate(checkpoint: Checkpoint, path: Path, force: bool, progress: Progress | None) -> None:
    """Writes the canonical checkpoint, each tensor once by ranges of rows."""
    if checkpoint.naming != CANONICAL:
        raise BestiaryError(f"a crate holds canonical tensors, not those of naming {checkpoint.naming!r}")
    about, tensors, offset = checkpoint.tokenizer, {}, 0
    if about.vocabulary is not None and not about.files:
        raise BestiaryError("a crate holds tokenizers as files; --tokenizer FILE gives it one")
    for name, tensor in checkpoint.tensors.items():
        tensors[name] = [tensor.encoding.name, list(tensor.shape), offset]
        offset += tensor.nbytes
    header = json.dumps({
        "naming": checkpoint.naming, "config": dict(checkpoint.config), "tensors": tensors, "tokenizer": {
            "files": {name: base64.b64encode(data).decode() for name, data in about.files.items()},
            "bos": about.bos, "eos": about.eos, "add_bos": about.add_bos, "add_eos": about.add_eos,
            "ends": list(about.ends), "chat_template": about.chat_template}}, default=float).encode()
    done, names = 0, list(tensors)
    with replacing(path, force) as file:
        file.write(MAGIC + struct.pack("<Q", len(header)) + header)
        for index, _, rows in read_ahead(checkpoint.tensors.values()):
            file.write(rows.tobytes())
            done += rows.nbytes
            if progress is not None:
                progress(done, offset, names[index])
