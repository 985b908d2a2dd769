"""What a search guided by coverage puts in place of a part of a sample, and what was kept of its finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bestiary.host import Host
from tests.hostile.formats.folders import arrays, file_of, safetensors, with_length
from tests.hostile.formats.gguf import gguf_planes, gguf_v1, gguf_v3
from tests.hostile.formats.sample import Files, Sample
from tests.hostile.formats.torch import meta, torch_old, torch_zip
from tests.hostile.formats.vocabularies import (
    llama2c,
    llama2c_tokenizer,
    sentencepiece,
    template,
    tiktoken,
    tokenizer_json,
)
from tests.loaders.conftest import TorchFiles

FOLDER = Path(__file__).parents[1] / "corpus"


class Input(NamedTuple):
    """sample: what the input is a part of. part: the input as it is there. around: the file that the input makes."""

    name: str
    sample: Sample
    part: bytes
    around: Callable[[bytes], bytes]


def whole(make: Callable[[], Sample], name: str | None = None) -> Callable[[], Input]:
    """The input is a file of the sample, by default the one that is opened."""
    def made() -> Input:
        sample = make()
        which = name or sample.opened
        return Input(which, sample, sample.files[which], lambda data: data)

    return made


def pickle() -> Input:
    """The archive around it always has the right checksum."""
    storages = {str(i): array.tobytes() for i, array in enumerate(arrays().values())}
    return Input("pytorch_model.bin", torch_zip(), TorchFiles.pickled(TorchFiles.records(arrays())),
                 lambda data: TorchFiles.archive(data, storages))


def header() -> Input:
    """The length before it is always right."""
    content = file_of(arrays())
    end = 8 + int.from_bytes(content[:8], "little")
    return Input("model.safetensors", safetensors(), content[8:end], lambda data: with_length(data, content[end:]))


def planes() -> Input:
    """The description of an encoding: its key comes last, and the data is aligned behind it."""
    sample = gguf_planes()
    content = sample.files["x.gguf"]
    start = content.index(b"bestiary.planes") + len(b"bestiary.planes") + 4
    length = int.from_bytes(content[start:start + 8], "little")
    before, text, after = content[:start], content[start + 8:start + 8 + length], content[start + 8 + length:]

    def around(data: bytes) -> bytes:
        data += b" " * ((length - len(data)) % 32)  # the padding behind the table of tensors stays right
        return before + len(data).to_bytes(8, "little") + data + after

    return Input("x.gguf", sample, text, around)


INPUTS: dict[str, Callable[[], Input]] = {
    "gguf-v3": whole(gguf_v3), "gguf-v1": whole(gguf_v1), "gguf-planes": planes, "safetensors-header": header,
    "torch-pickle": pickle, "torch-zip": whole(torch_zip, "pytorch_model.bin"),
    "torch-old": whole(torch_old, "pytorch_model.bin"), "config": whole(safetensors, "config.json"),
    "params": whole(meta, "params.json"), "llama2c": whole(llama2c), "sentencepiece": whole(sentencepiece),
    "tiktoken": whole(tiktoken), "tokenizer.json": whole(tokenizer_json),
    "llama2c-tokenizer": whole(llama2c_tokenizer), "template": whole(template),
}


def replaced(name: str, host: Host, folder: Path) -> Callable[[bytes], None]:
    """Uses the sample with these bytes in place of its part."""
    given = INPUTS[name]()

    def use(data: bytes) -> None:
        files: Files = {**given.sample.files, given.name: given.around(data)}
        given.sample.attempt(files, host, folder)

    return use


def kept(name: str) -> list[Path]:
    return sorted((FOLDER / name).iterdir()) if (FOLDER / name).is_dir() else []


