"""ggml's files that are not read: opening one says in a line what it is."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary_plugins.loaders.ggml_others import ANY, GgmlOthers

MAGICS = (0x67676D6C, 0x67676D66, 0x67676A74, 0x67676363, 0x6767736E, 0x67677371)
EXAMPLES = ("for GPT-J", "for GPT-2", "StarCoder", "for GPT-NeoX", "RedPajama", "for MPT", "for Replit")
PIECES = b"".join(struct.pack("<i", 1) + bytes([i]) for i in range(33, 127))


def header(*numbers: int | float, magic: int = 0x67676D6C) -> bytes:
    """The magic, the numbers, and the beginning of a vocabulary."""
    return struct.pack("<I", magic) + b"".join(
        struct.pack("<f" if isinstance(number, float) else "<i", number) for number in numbers) + PIECES


FILES = {
    # what the scripts write for the published configs
    "whisper base": (header(51865, 1500, 512, 8, 6, 448, 512, 8, 6, 80, 1, 80, 201), "of whisper.cpp"),
    "whisper large v3": (header(51866, 1500, 1280, 20, 32, 448, 1280, 20, 32, 128, 1, 128, 201), "of whisper.cpp"),
    "gpt-j 6b": (header(50400, 2048, 4096, 16, 28, 64, 1, 50257), "for GPT-J"),
    "gpt-2": (header(50257, 1024, 768, 12, 12, 1, 50257), "for GPT-2"),
    "starcoder": (header(49152, 8192, 6144, 48, 40, 2002, 49152), "StarCoder"),
    "pythia 6.9b": (header(50432, 2048, 4096, 32, 32, 32, 1, 1), "for GPT-NeoX"),
    "redpajama, quantized": (header(50432, 2048, 2560, 32, 32, 80, 0, 1002), "RedPajama"),
    "mpt 7b": (header(4096, 2048, 32, 32, 50432, 8.0, 0.0, 2003), "for MPT"),
    "replit 3b": (header(8, 2560, 2048, 4, 32, 32, 32768, 1), "for Replit"),
    "rwkv": (header(101, 50277, 768, 12, 1, magic=0x67676D66), "of rwkv.cpp .RWKV, version 101"),
    "session": (header(1, 32000, 4096, magic=0x6767736E), "a session that llama.cpp saved .version 1.*no model"),
    "sequence": (header(2, 32000, 4096, magic=0x67677371), "a sequence of a session"),
    "unknown": (header(7, 7, 7, 7, 7, 7, 7, 7, 7, 7), r"file of ggml's \(ggml\).*does not show"),
    "unknown version": (header(9, 7, 7, magic=0x67676A74), r"file of ggml's \(ggjt, version 9\)"),
    "short": (struct.pack("<3I", 0x67676D6C, 1, 2), r"file of ggml's \(ggml\)"),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_said_what_the_file_is(host: Host, tmp_path: Path, name: str) -> None:
    data, words = FILES[name]
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    with pytest.raises(BestiaryError, match=f"x.bin is .*{words}.*not implemented. .*chatglm.cpp are read") as error:
        host.open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, (_, words) in FILES.items() if words in EXAMPLES])
def test_an_example_is_named_where_every_number_is_plausible(tmp_path: Path, name: str) -> None:
    data, _ = FILES[name]
    path = tmp_path / "x.bin"
    for at in range(4, 28, 4):
        path.write_bytes(data[:at] + struct.pack("<i", -5) + data[at + 4:])
        assert GgmlOthers().recognise(path) == ANY, at


def test_whatever_follows_the_magic_is_refused_in_a_line(host: Host, tmp_path: Path) -> None:
    source, path, loader = random.Random(5), tmp_path / "x.bin", GgmlOthers()
    for _ in range(400):
        numbers = (source.choice((0, 1, 2, 64, 448, 1500, 4096, 50257, -1, 1 << 30, source.getrandbits(31)))
                   for _ in range(source.randrange(14)))
        path.write_bytes(struct.pack("<I", source.choice(MAGICS)) + b"".join(
            struct.pack("<i", number) for number in numbers))
        if loader.recognise(path):
            with pytest.raises(BestiaryError) as error:
                loader.open(path, host)
            assert "\n" not in str(error.value)


def test_files_of_others_are_left_to_them(data: Path, tmp_path: Path) -> None:
    """Their loaders know more surely; what is no file of ggml's is not taken at all."""
    loader = GgmlOthers()
    for path in (path for folder in ("legacy-models", "legacy") for path in (data / folder).rglob("*")):
        with_magic = path.is_file() and path.read_bytes()[:4] in (b"lmgg", b"fmgg", b"tjgg", b"ccgg")
        assert loader.recognise(path) == (ANY if with_magic else 0), path
    for content in (b"", b"lmgg", b"ggml" + bytes(99), b"GGUF" + bytes(99), b"algg" + bytes(99)):
        (tmp_path / "x").write_bytes(content)
        assert loader.recognise(tmp_path / "x") == 0
    with pytest.raises(BestiaryError, match="no file of ggml's"):
        loader.open(tmp_path / "x", Host())
