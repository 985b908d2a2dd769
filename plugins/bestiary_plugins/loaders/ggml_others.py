"""ggml's other files, which are not read: opening one says what it is, as far as its bytes show.

Sources of the headers: the scripts convert-*-to-ggml.py of ggerganov/ggml (examples) and of whisper.cpp;
docs/FILE_FORMAT.md of rwkv.cpp; llama.h of ggerganov/llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.loader import Loader
from bestiary_plugins.loaders.ggml_container import Start, read_start

if TYPE_CHECKING:
    from bestiary.host import Host

STATES = {0x6767736E: "a session", 0x67677371: "a sequence of a session"}
"""What llama.cpp saved of a run, to begin with another time."""
SURE, LIKELY, ANY = 95, 40, 2
"""LIKELY is more than what loaders say that see a plausible header and no vocabulary behind it, and ANY is less."""
Numbers = tuple[int, ...]


class Found(NamedTuple):
    sure: int
    words: str


class Kind(NamedTuple):
    """A header of `ggml` without a version. fits: whether 12 numbers behind the magic are such."""

    sure: int
    words: str
    fits: Callable[[Numbers], bool]


def _model(sizes: Numbers, kind: int) -> bool:
    """Whether these could be the sizes of one: vocabulary, context, width, heads, layers. kind: of the file's types,
    with thousands of ggml's count of changes."""
    vocabulary, context, width, heads, layers = sizes
    return (256 <= vocabulary <= 1 << 20 and 64 <= context <= 1 << 20 and 32 <= width <= 1 << 16
            and 1 <= heads <= 512 and width % heads == 0 and 1 <= layers <= 512 and 0 <= kind < 4000
            and kind % 1000 <= 32)


def _pieces(vocabulary: int, count: int, first: int) -> bool:
    """Whether a vocabulary begins with this count of its pieces and these bytes of the first: a model may have more
    rows than pieces."""
    return max(256, vocabulary - 1024) <= count <= vocabulary and 0 <= first <= 1024


def _is_whisper(n: Numbers) -> bool:
    return n[1] == 1500 and n[5] == 448 and n[9] in (80, 128) and n[2] == n[6]


def _is_neox(n: Numbers) -> bool:
    return _model(n[:5], n[7]) and 0 < n[5] <= n[2] // n[3] and n[6] in (0, 1) and 0 <= n[8] <= 1024


def _is_gpt_j(n: Numbers) -> bool:
    return _model(n[:5], n[6]) and 0 < n[5] <= n[2] // n[3] and _pieces(n[0], n[7], n[8])


def _is_gpt_2(n: Numbers) -> bool:
    return _model(n[:5], n[5]) and _pieces(n[0], n[6], n[7])


def _is_mpt(n: Numbers) -> bool:
    bias, clip = struct.unpack("<2f", struct.pack("<2i", *n[5:7]))
    return _model((n[4], n[1], n[0], n[2], n[3]), n[7]) and 0 <= bias <= 64 and 0 <= clip <= 1000


def _is_replit(n: Numbers) -> bool:
    return 0 < n[0] <= 64 and 1 <= n[3] <= 16 and _model((n[6], n[2], n[1], n[4], n[5]), n[7])


KINDS = (
    Kind(SURE, "of whisper.cpp (Whisper: speech to text)", _is_whisper),
    Kind(LIKELY, "as ggml's example writes for GPT-J", _is_gpt_j),
    Kind(LIKELY, "as ggml's examples write for GPT-2, Cerebras-GPT and StarCoder", _is_gpt_2),
    Kind(LIKELY, "as ggml's examples write for GPT-NeoX, StableLM, Dolly and RedPajama", _is_neox),
    Kind(LIKELY, "as ggml's example writes for MPT", _is_mpt),
    Kind(LIKELY, "as ggml's example writes for Replit", _is_replit),
)


def look(file: DataFile) -> Found | None:
    """What the file is; None where it does not begin like one of ggml's."""
    if file.size < 8:
        return None
    magic, version = struct.unpack("<II", file.read(0, 8))
    if magic in STATES:
        return Found(SURE, f"{STATES[magic]} that llama.cpp saved (version {version}): what it had computed for a text "
                           "with some model, and no model")
    start = read_start(file)
    if start is None:
        return None
    if start.container == "ggmf" and version in (100, 101):
        return Found(SURE, f"a file of rwkv.cpp (RWKV, version {version})")
    if start.version == 0 and file.size >= 52:
        numbers = struct.unpack("<12i", file.read(start.offset, 48))
        for kind in KINDS:
            if kind.fits(numbers):
                return Found(kind.sure, f"a ggml file {kind.words}")
    return Found(ANY, f"a file of ggml's ({named(start)}), and what program wrote it its header does not show, or it "
                      "is damaged")


def named(start: Start) -> str:
    return start.container if not start.version else f"{start.container}, version {start.version}"


def refuse(path: Path) -> NoReturn:
    """Raises BestiaryError with what the file is."""
    found = look(DataFile(path))
    if found is None:
        raise BestiaryError(f"{path} is no file of ggml's")
    raise BestiaryError(f"{path} is {found.words}; that is not implemented. Of ggml's files those of llama.cpp, "
                        "bloomz.cpp, ggllm.cpp and chatglm.cpp are read, and GGUF")


class GgmlOthers(Loader):
    """Any file that begins like one of ggml's; others know theirs more surely."""

    name = "ggml"

    def recognise(self, path: Path) -> int:
        if not path.is_file():
            return 0
        try:
            found = look(DataFile(path))
        except BestiaryError:
            return 0
        return 0 if found is None else found.sure

    def open(self, path: Path, host: Host) -> NoReturn:
        refuse(path)
