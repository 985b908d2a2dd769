"""Files of bloomz.cpp: BLOOM under the magic of LLaMA's first files, with six numbers where those have seven.

Source: NouamaneTazi/bloomz.cpp, convert-hf-to-ggml.py, quantize.cpp and utils.cpp.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.checkpoint import Checkpoint, Provenance, TokenizerMaterial
from bestiary.encoding import F16, F32
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.host import Host
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary_plugins.encodings import Q4_0_V1, Q4_1_V1
from bestiary_plugins.loaders.cursor import Cursor
from bestiary_plugins.loaders.ggml_container import (
    encoding_by,
    holds,
    read_entries,
    read_entry,
    read_start,
    read_vocabulary,
)
from bestiary_plugins.loaders.old_vocabularies import of_texts
from bestiary_plugins.loaders.planar_rows import PlanarRows, is_planar

CODES = {0: F32, 1: F16, 2: Q4_0_V1, 3: Q4_1_V1}
SPECIAL = {0: b"<unk>", 1: b"<s>", 2: b"</s>", 3: b"<pad>"}
ASSUMED = {"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
LACKS = ("the tokenizer's merges, and what pieces that are no whole characters stand for: text is cut by the order of "
         "the pieces, which is near the original and not the same; --tokenizer FILE gives that")
MOST = (1 << 20, 1 << 20, 1 << 20, 1 << 12, 1 << 12, 3)
OF_BLOOM = "layers.0.attention.query_key_value.weight"


class Numbers(NamedTuple):
    """multiple: what the width of the feed forward was rounded up to; always 1. kind: of most matrices, in CODES."""

    rows: int
    width: int
    multiple: int
    heads: int
    layers: int
    kind: int


def read_numbers(file: DataFile) -> Numbers | None:
    """None where the file begins otherwise. A LLaMA file's sixth number is the size of a head, and never so small."""
    start = read_start(file)
    if start is None or start.container != "ggml" or file.size < 28:
        return None
    numbers = Numbers(*struct.unpack("<6i", file.read(start.offset, 24)))
    low = (1, 1, 1, 1, 1, 0)
    if not all(least <= number <= most for least, number, most in zip(low, numbers, MOST, strict=True)):
        return None
    return None if numbers.width % numbers.heads else numbers


def read_pieces(file: DataFile, numbers: Numbers) -> tuple[list[bytes], int]:
    """The vocabulary, and where the tensors begin."""
    cursor = Cursor(file)
    cursor.take(28, "header")
    return read_vocabulary(cursor, numbers.rows, scored=False)[0], cursor.offset


def is_cut_off(file: DataFile, numbers: Numbers, offset: int) -> bool:
    """Whether the file ends in its first tensor, before a name is its own: then its numbers must do."""
    entry = read_entry(file, offset)
    return entry is not None and numbers.multiple == 1 and entry.shape == (numbers.rows, numbers.width) and \
        entry.name == "tok_embeddings.weight" and entry.code in CODES and \
        file.size <= entry.offset + entry.shape[0] * CODES[entry.code].row_bytes(entry.shape[1])


def open_bloomz(path: Path) -> Checkpoint:
    """The checkpoint of a bloomz.cpp file. Raises BestiaryError for what is none, or damaged."""
    file = DataFile(path)
    numbers = read_numbers(file)
    if numbers is None:
        raise BestiaryError(f"{path} is no bloomz.cpp file: it does not begin with the magic of ggml and six numbers "
                            "that could be BLOOM's")
    pieces, offset = read_pieces(file, numbers)
    tensors: dict[str, Tensor] = {}
    for entry, encoding in read_entries(file, offset, 1, encoding_by(CODES, path, "bloomz.cpp")):
        tensors[entry.name] = FileTensor(file, entry.offset, entry.shape, encoding, entry.name)
    # Its quantizer wrote planes to the end, also when the rest of the program had gone on to blocks.
    old = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, FileTensor)
           and tensor.encoding == Q4_1_V1}
    if is_planar(old.values()):
        tensors.update((name, PlanarRows(tensor)) for name, tensor in old.items())
    return Checkpoint(path, config_of(numbers, tensors), tensors, "bloomz.cpp", tokenizer_of(pieces),
                      source=(open_bloomz, (path,)), provenance=Provenance(
                          "bloomz.cpp", "March to May 2023", "ggml, unversioned, with six numbers", ASSUMED, (LACKS,)))


def config_of(numbers: Numbers, tensors: dict[str, Tensor]) -> dict[str, Any]:
    up = tensors.get("layers.0.feed_forward.w1.weight")
    inner = up.shape[0] if up is not None else 4 * numbers.width
    return {"model_type": "bloom", "vocab_size": numbers.rows, "hidden_size": numbers.width,
            "n_head": numbers.heads, "n_layer": numbers.layers, "intermediate_size": inner,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **ASSUMED}


def tokenizer_of(pieces: list[bytes]) -> TokenizerMaterial:
    """Approximate. Special tokens count where they are spelled as in every BLOOM."""
    known = {i: i < len(pieces) and pieces[i] == name for i, name in SPECIAL.items()}
    end = 2 if known[2] else None
    return TokenizerMaterial(vocabulary=of_texts(pieces, SPECIAL), bos=1 if known[1] else None, eos=end,
                             add_bos=False, add_eos=False, ends=() if end is None else (end,))


class BloomzCpp(Loader):
    """A single file of the ggml container, known by the names of its tensors."""

    name, encodings = "bloomz.cpp", (Q4_0_V1, Q4_1_V1)

    def recognise(self, path: Path) -> int:
        """The vocabulary has to be walked to come to a tensor: of LLaMA's files only where its numbers are odd."""
        try:
            if not path.is_file():
                return 0
            file = DataFile(path)
            numbers = read_numbers(file)
            if numbers is None:
                return 0
            _, offset = read_pieces(file, numbers)
            if holds(file, offset, 1, encoding_by(CODES, path, self.name), OF_BLOOM.__eq__):
                return 100
            return 60 if is_cut_off(file, numbers, offset) else 0
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_bloomz(path)
