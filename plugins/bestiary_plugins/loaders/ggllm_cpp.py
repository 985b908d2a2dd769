"""Files of ggllm.cpp: Falcon in the containers of LLaMA's files, and in "ggcc", a container of its own.

Source: cmp-nct/ggllm.cpp, falcon_convert.py and libfalcon.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.checkpoint import Checkpoint, Provenance, TokenizerMaterial
from bestiary.encoding import F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary.host import Host
from bestiary.loader import Loader
from bestiary.tensor import Tensor
from bestiary.transform import Split
from bestiary_plugins.encodings import (
    K_QUANTS,
    OF_SPRING_2023,
    Q4_0,
    Q4_0_V1,
    Q4_0_V2,
    Q4_1,
    Q4_1_V1,
    Q4_1_V2,
    Q4_2,
    Q4_3,
    Q5_0,
    Q5_0_V1,
    Q5_1,
    Q5_1_V1,
    Q8_0,
    Q8_0_V1,
)
from bestiary_plugins.loaders.cursor import Cursor
from bestiary_plugins.loaders.ggml_container import (
    Start,
    encoding_by,
    holds,
    read_entries,
    read_start,
    read_vocabulary,
)
from bestiary_plugins.loaders.old_vocabularies import byte_level

SPRING = {0: F32, 1: F16, 2: Q4_0_V1, 3: Q4_1_V1, 4: Q4_2, 5: Q4_3, 6: Q5_0_V1, 7: Q5_1_V1, 8: Q8_0_V1}
MAY = {0: F32, 1: F16, 2: Q4_0_V2, 3: Q4_1_V2, 6: Q5_0, 7: Q5_1, 8: Q8_0_V1}
TODAY = {0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0,
         **{10 + i: encoding for i, encoding in enumerate(K_QUANTS)}}
CONTAINERS: Mapping[tuple[str, int], tuple[str, Mapping[int, Encoding], int]] = {
    ("ggml", 0): ("ggml, unversioned", SPRING, 1), ("ggmf", 1): ("ggmf v1", SPRING, 1),
    ("ggjt", 1): ("ggjt v1", SPRING, 32), ("ggjt", 2): ("ggjt v2", MAY, 32), ("ggjt", 3): ("ggjt v3", TODAY, 32),
    ("ggcc", 10): ("ggcc v10", TODAY, 32)}
"""(magic, version) -> in words, encodings by code, alignment of the tensors' data."""
KINDS = (7, 40)
ASSUMED = {"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "rope_theta": 10000.0}
LACKS = ("the tokenizer's merges: they are found by the order of its pieces, which gives all that Falcon's tokenizer "
         "has; if the pieces are others', the ids are near and not the same, and --tokenizer FILE gives the original")
END = b"<|endoftext|>"
MOST = (1 << 20, 1 << 20, 1 << 12, 1 << 12, 1 << 12, 40, 1 << 12, 1 << 20)
MATRICES = ("transformer.word_embeddings.weight", "lm_head.weight")


class Numbers(NamedTuple):
    """kind: 7 or 40, of which model's form it is. merges: how many, in a ggcc file."""

    rows: int
    width: int
    heads: int
    kv_heads: int
    layers: int
    kind: int
    type: int
    merges: int = 0


def read_numbers(file: DataFile, start: Start) -> Numbers | None:
    """None where they cannot be Falcon's. LLaMA's seven numbers have the size of a head in the place of the kind: the
    names of the tensors must tell, where that is 40."""
    count = 8 if start.container == "ggcc" else 7
    if file.size < start.offset + 4 * count:
        return None
    numbers = Numbers(*struct.unpack(f"<{count}i", file.read(start.offset, 4 * count)))
    low = (1, 1, 1, 1, 1, 7, 0, 0)
    if not all(least <= number <= most for least, number, most in zip(low, numbers, MOST, strict=True)):
        return None
    fits = numbers.kind in KINDS and not numbers.width % numbers.heads and not numbers.heads % numbers.kv_heads
    return numbers if fits else None


class Head(NamedTuple):
    """All before the tensors. merges: None where the container has none."""

    words: str
    encodings: Mapping[int, Encoding]
    alignment: int
    numbers: Numbers
    pieces: list[bytes]
    merges: list[str] | None
    offset: int


def read_head(file: DataFile) -> Head | None:
    """None where the file does not begin like one. Raises BestiaryError for a version that is not known, and where the
    vocabulary leaves the file."""
    start = read_start(file)
    if start is None:
        return None
    numbers = read_numbers(file, start)
    if numbers is None:
        return None
    known = CONTAINERS.get((start.container, start.version))
    if known is None:
        versions = ", ".join(str(version) for container, version in CONTAINERS if container == start.container)
        raise BestiaryError(f"{file.path} is of the container {start.container}, version {start.version}; known: "
                            f"{versions}")
    own = start.container == "ggcc"
    cursor = Cursor(file)
    cursor.take(start.offset + (32 if own else 28), "header")
    pieces, _ = read_vocabulary(cursor, numbers.rows, scored=start.container != "ggml")
    merges = read_merges(cursor, numbers.merges) if own else None
    return Head(*known, numbers, pieces, merges, cursor.offset)


def read_merges(cursor: Cursor, count: int) -> list[str]:
    """The count again, and pairs of parts in GPT-2's alphabet."""
    again = cursor.u32("the number of merges")
    if again != count:
        raise BestiaryError(f"{cursor.file.path} has {count} merges by its header and {again} by its list of them; it "
                            "is damaged")
    cursor.count_as("<I")
    parts = cursor.strings(2 * count, "the list of merges")
    try:
        names = [part.decode() for part in parts]
    except UnicodeDecodeError:
        raise BestiaryError(f"{cursor.file.path}: a merge is no UTF-8 text; the file is damaged") from None
    if any(not name or " " in name for name in names):
        raise BestiaryError(f"{cursor.file.path}: a merge has a part that is empty or holds a space; the file is "
                            "damaged")
    return [f"{left} {right}" for left, right in zip(names[::2], names[1::2], strict=True)]


def open_ggllm(path: Path) -> Checkpoint:
    """The checkpoint of a ggllm.cpp file. Raises BestiaryError for what is none, or damaged."""
    file = DataFile(path)
    head = read_head(file)
    if head is None:
        raise BestiaryError(f"{path} is no ggllm.cpp file: it does not begin with one of its magics and the numbers of "
                            "a Falcon")
    tensors: dict[str, Tensor] = {}
    for entry, encoding in read_entries(file, head.offset, head.alignment,
                                        encoding_by(head.encodings, path, head.words)):
        tensors[entry.name] = FileTensor(file, entry.offset, entry.shape, encoding, entry.name)
    numbers, pieces = head.numbers, head.pieces
    if pieces[-1] == b"[PAD]":  # WizardLM's: a row more than all other Falcons, which no text becomes
        numbers, pieces = numbers._replace(rows=numbers.rows - 1), pieces[:-1]
        tensors.update((name, without_last(tensors[name])) for name in MATRICES if name in tensors)
    return Checkpoint(path, config_of(numbers), tensors, "ggllm.cpp", tokenizer_of(pieces, head.merges, path),
                      source=(open_ggllm, (path,)), provenance=Provenance(
                          "ggllm.cpp", "June to October 2023", head.words, ASSUMED,
                          (LACKS,) if head.merges is None else ()))


def without_last(matrix: Tensor) -> Tensor:
    return Split((matrix.rows - 1, 1)).apply([matrix])[0]


def config_of(numbers: Numbers) -> dict[str, Any]:
    return {"model_type": "falcon", "vocab_size": numbers.rows, "hidden_size": numbers.width,
            "num_attention_heads": numbers.heads, "num_key_value_heads": numbers.kv_heads,
            "num_hidden_layers": numbers.layers, "new_decoder_architecture": numbers.kind == 40,
            "parallel_attn": True, "alibi": False, "bos_token_id": 11, "eos_token_id": 11, **ASSUMED}


def tokenizer_of(pieces: list[bytes], merges: list[str] | None, path: Path) -> TokenizerMaterial:
    """Exact where there are merges."""
    try:
        vocabulary = byte_level(pieces, merges, "falcon")
    except BestiaryError as error:
        raise BestiaryError(f"{path}: {error}") from None
    end = pieces.index(END) if END in pieces else None
    return TokenizerMaterial(vocabulary=vocabulary, bos=end, eos=end, add_bos=False, add_eos=False,
                             ends=() if end is None else (end,))


class GgllmCpp(Loader):
    """A single file of one of several containers, known by the names of its tensors."""

    name, encodings = "ggllm.cpp", (*OF_SPRING_2023, *K_QUANTS)

    def recognise(self, path: Path) -> int:
        """One container is its own. Most of LLaMA's files differ in their numbers; of the others the vocabulary is
        walked to the first tensor."""
        try:
            if not path.is_file():
                return 0
            file = DataFile(path)
            start = read_start(file)
            if start is not None and start.container == "ggcc":
                return 100
            head = read_head(file)
            if head is None:
                return 0
            encoding_of = encoding_by(head.encodings, path, head.words)
            return 100 if holds(file, head.offset, head.alignment, encoding_of, ours) else 0
        except BestiaryError:
            return 0

    def open(self, path: Path, host: Host) -> Checkpoint:
        return open_ggllm(path)


def ours(name: str) -> bool:
    return name.startswith("transformer.")
