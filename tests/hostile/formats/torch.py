"""Files of torch.save, and Meta's folders of them: damaged in the archive, in the pickle's opcodes, in the bytes."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
from typing import Any

import numpy as np

from bestiary.testing.damage import VALUES, Place, damaged
from tests.hostile.formats.folders import arrays, texts
from tests.hostile.formats.sample import Files, Sample
from tests.loaders.conftest import TorchFiles

NAMES = (b"torch\nFloatStorage", b"torch\nHalfStorage", b"torch\nDoubleStorage", b"os\nsystem", b"builtins\neval",
         b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter",
         b"torch\nLongStorage", b"torch\nUntypedStorage", b"torch.nn\nModule", b"\n", b"torch\n__builtins__")
CODES = tuple(ord(code.code) for code in pickletools.opcodes)
BITS = (b"(", b")", b"]", b"}", b"0", b"1", b"2", b"t", b"R", b"b", b"u", b"e", b"s", b"a", b"l", b"d", b"Q", b"h\x00",
        b"h\xff", b"q\x05", b"j\xff\xff\xff\xff", b"r\0\0\0\x80", b"r\xff\xff\xff\x7f", b"\x94", b"\x85", b"\x86",
        b"\x87", b"N", b"\x88", b"K\x01", b"M\xff\xff", b"J\0\0\0\x80", b"J\xff\xff\xff\x7f",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff", b"X\0\0\0\0", b"\x8c\x02\xff\xfe", b"B\xff\xff\xff\x7f", b"C\x01a",
        b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"U\x01a", b"T\xff\xff\xff\x7f", b"I5\n",
        b"I99999999999999999999\n", b"L5L\n", b"F1e999\n", b"G\x7f\xf0" + bytes(6), b"S'a'\n", b"Va\n",
        b"i" + NAMES[3] + b"\n", b"o", b"\x81", b"\x92", b"\x93", b"P0\n", b"\x82\x01", b"\x8f", b"\x90", b"\x91",
        b"\x96" + b"\xff" * 8, b"\x97", b"\x98", b".", b"c" + NAMES[0] + b"\n", b"c" + NAMES[3] + b"\n")


def opcodes(data: bytes, source: random.Random) -> tuple[str, bytes]:
    """The pickle with opcodes put in, taken out, doubled, exchanged, or with other arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:
        starts = list(range(0, len(data), 3))
    starts.append(len(data))
    changed, words = bytearray(data), []
    for _ in range(source.choice((1, 1, 2, 3))):
        i = source.randrange(len(starts) - 1)
        start, stop = starts[i], starts[i + 1]
        how = source.choice(("put in", "put in", "taken out", "doubled", "exchanged", "code", "argument", "name",
                             "repeated"))
        if how == "put in":
            changed[start:start] = source.choice(BITS)
        elif how == "taken out":
            del changed[start:stop]
        elif how == "doubled":
            changed[start:start] = changed[start:stop]
        elif how == "exchanged":
            j = source.randrange(len(starts) - 1)
            changed[start:stop] = data[starts[j]:starts[j + 1]]
        elif how == "code" and start < len(changed):
            changed[start] = source.choice(CODES)
        elif how == "argument" and stop - start > 1 and start + 1 < len(changed):
            at = min(source.randrange(start + 1, stop), len(changed) - 1)
            changed[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        elif how == "name":
            changed[start:start] = b"c" + source.choice(NAMES) + b"\n"
        elif how == "repeated":
            changed[start:start] = source.choice(BITS) * source.choice((10, 1000, 20_000))
        words.append(f"opcode {i} {how}")
    return ", ".join(words), bytes(changed)


def value_damage(files: Any, tensors: dict[str, Any], source: random.Random) -> tuple[str, bytes]:
    """Tensors that are described wrong: shapes, strides, offsets, storages."""
    records, name = files.records(tensors), source.choice(sorted(tensors))
    key, array = str(list(tensors).index(name)), tensors[name]
    big = source.choice((*VALUES, 2, len(array), -1))
    shape = source.choice((array.shape, (big,), (big, big), array.shape[::-1], (1 << 32, 1 << 32), (0,), (), (1,) * 20,
                           (*array.shape, 1)))
    strides = source.choice((None, (0,) * len(shape), (big,) * len(shape), (1,) * len(shape), (-1,) * len(shape), (1,)))
    records[name] = files.tensor(source.choice((key, key, "0", "99", "../x", "")), source.choice((
        "HalfStorage", "HalfStorage", "FloatStorage", "LongStorage", "BoolStorage", "X")),
        source.choice((array.size, array.size, big)), shape, strides, source.choice((0, 0, 1, big)))
    return f"tensor {name} of shape {shape}, strides {strides}", files.pickled(records)


ENTRY_FIELDS = ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4))
LOCAL_FIELDS = ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))


def zip_fields(data: bytes) -> tuple[list[Place], list[Place]]:
    """The numbers of the directory, of its end and of each entry's own header, and the records."""
    end = len(data) - 22
    count, _, start = struct.unpack("<HII", data[end + 10:end + 20])
    fields = [(end + 4 + 2 * i, 2) for i in range(4)] + [(end + 12, 4), (end + 16, 4), (end + 20, 2)] * 3
    pieces, at = [(end, 22)], start
    for _ in range(count):
        name, extra, comment = struct.unpack("<3H", data[at + 28:at + 34])
        (local,) = struct.unpack("<I", data[at + 42:at + 46])
        fields += [(at + place, size) for place, size in ENTRY_FIELDS] + [
            (local + place, size) for place, size in LOCAL_FIELDS]
        pieces.append((at, 46 + name + extra + comment))
        at += 46 + name + extra + comment
    return fields, pieces


def archived(entries: list[tuple[str, bytes]], source: random.Random) -> tuple[str, bytes]:
    """The archive written again by another writer, with something that torch's never does."""
    how = source.choice(("deflated", "double", "folders", "comment", "slip", "bomb", "byteorder", "directory", "many",
                         "two pickles", "version", "zip64"))
    written, method = io.BytesIO(), zipfile.ZIP_DEFLATED if how in ("deflated", "bomb") else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        with zipfile.ZipFile(written, "w", method) as target:
            for name, data in entries:
                target.writestr(name, b"\0" * (8 << 20) if how == "bomb" and name.endswith("data.pkl") else data)
            if how == "double":
                target.writestr(*source.choice(entries))
            elif how == "folders":
                target.writestr("other/data.pkl", entries[0][1])
            elif how == "comment":
                target.comment = source.choice((b"x", b"PK\5\6" + bytes(18), b"x" * 65535))
            elif how == "slip":
                target.writestr(source.choice(("../x", "/etc/x", "archive/../../x", "archive\\x", "a" * 60000)), b"x")
            elif how == "byteorder":
                target.writestr("archive/byteorder", source.choice((b"big", b"", b"little\n", b"x" * 100_000)))
            elif how == "directory":
                target.writestr("archive/data/", b"")
            elif how == "many":
                for i in range(3000):
                    target.writestr(f"archive/more/{i}", b"")
            elif how == "two pickles":
                target.writestr("archive/sub/data.pkl", entries[0][1])
            elif how == "zip64":
                with target.open("archive/long", "w", force_zip64=True) as entry:
                    entry.write(b"x")
    return how, written.getvalue()


class Archive:
    """Damages a zip archive of torch.save."""

    def __init__(self, tensors: dict[str, Any], prefix: str = "archive") -> None:
        self.make, self.tensors, self.prefix = TorchFiles, tensors, prefix
        self.data = self.make.zip(tensors, prefix=prefix)
        self.fields, self.pieces = zip_fields(self.data)
        with zipfile.ZipFile(io.BytesIO(self.data)) as opened:
            self.entries = [(name, opened.read(name)) for name in opened.namelist()]

    def damage(self, seed: int) -> tuple[str, bytes]:
        source = random.Random(f"torch {seed}")
        choice = source.random()
        if choice < 0.3:
            return damaged(self.data, seed, 200, self.fields, self.pieces)
        if choice < 0.45:
            how, pickle = value_damage(self.make, self.tensors, source)
        elif choice < 0.9:
            how, pickle = opcodes(self.entries[0][1], source)
        else:
            return archived(self.entries, source)
        storages = {str(i): array.tobytes() for i, array in enumerate(self.tensors.values())}
        return how, self.make.archive(pickle, storages, prefix=self.prefix)


def torch_zip() -> Sample:
    archive, name = Archive(arrays()), "pytorch_model.bin"

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        how, data = archive.damage(seed)
        return how, {**files, name: data}

    return Sample({**texts(), name: archive.data}, "huggingface", "", damage)


def torch_old() -> Sample:
    name, data = "pytorch_model.bin", TorchFiles.old(arrays())
    end = data.index(b"PK") if b"PK" in data[:4] else last_stop(data)

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"old {seed}")
        if source.random() < 0.5:
            how, pickles = opcodes(data[:end], source)
            return how, {**files, name: pickles + data[end:]}
        how, changed = damaged(data, seed, end, [(end, 8)])
        return how, {**files, name: changed}

    return Sample({**texts(), name: data}, "huggingface", "", damage)


def last_stop(data: bytes) -> int:
    """Where the fifth pickle ends."""
    opened = io.BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(opened):
            pass
    return opened.tell()


def meta() -> Sample:
    """Two shards, whose parts are joined, and the parameters."""
    rng, dim, heads, hidden, vocabulary = np.random.default_rng(0), 32, 4, 64, 300
    layer = {"attention.wq": (dim, dim), "attention.wk": (dim, dim), "attention.wv": (dim, dim),
             "attention.wo": (dim, dim), "feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden),
             "feed_forward.w3": (hidden, dim), "attention_norm": (dim,), "ffn_norm": (dim,)}
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocabulary, dim), "norm.weight": (dim,), "output.weight": (vocabulary, dim),
        **{f"layers.0.{name}.weight": shape for name, shape in layer.items()}}
    shards: list[dict[str, Any]] = [{}, {}]
    for name, shape in shapes.items():
        whole = (rng.standard_normal(shape) * 0.2).astype(np.float16)
        axis = 1 if "tok_emb" in name or name.endswith(("wo.weight", "w2.weight")) else 0
        parts = [whole, whole] if whole.ndim == 1 else np.split(whole, 2, axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = np.ascontiguousarray(part)
    archives = {f"consolidated.{i:02d}.pth": Archive(shard, f"consolidated.{i:02d}") for i, shard in enumerate(shards)}
    params = json.dumps({"dim": dim, "multiple_of": 32, "n_heads": heads, "n_layers": 1, "norm_eps": 1e-5,
                         "n_kv_heads": heads, "vocab_size": -1, "rope_theta": 500000.0,
                         "use_scaled_rope": True}).encode()

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"meta {seed}")
        if source.random() < 0.4:
            how, changed = damaged(files["params.json"], seed)
            return how, {**files, "params.json": changed}
        name = source.choice(sorted(archives))
        if source.random() < 0.1:
            other = source.choice(("consolidated.00.pth", "consolidated.02.pth", "consolidated.255.pth"))
            moved = {key: data for key, data in files.items() if key != name}
            return f"{name} is {other}", {**moved, other: files[name]}
        how, changed = archives[name].damage(seed)
        return f"{name}: {how}", {**files, name: changed}

    files = {name: archive.data for name, archive in archives.items()}
    return Sample({**files, "params.json": params}, "meta", "", damage)


