"""LLaMA as Meta publishes it, written: what we read of it again, and what has no such form."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.canonical import to_canonical
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load, load_tokenizer
from bestiary.saving import save_as
from bestiary.testing.loader import contents
from bestiary_plugins.demo.beasts import publish
from bestiary_plugins.loaders.meta_writer import feed_forward
from bestiary_plugins.loaders.torch_writer import ALIGNMENT, Archive

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}


def published(host: Host, folder: Path, **changes: Any) -> Path:
    publish(host.architectures["llama"], folder / "published", 3, **changes)
    return folder / "published"


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 6}, {"rope_parameters": LLAMA3},
                                     {"tie_word_embeddings": True}, {"rms_norm_eps": 0.25, "rope_theta": 777.0}])
@pytest.mark.parametrize("type", ["f16", "bf16", "f32"])
def test_what_is_written_is_the_same_model(changes: dict[str, Any], type: str, host: Host, tmp_path: Path) -> None:
    source = published(host, tmp_path, **changes)
    save_as(source, tmp_path / "m.gguf", type, host)
    save_as(tmp_path / "m.gguf", tmp_path / "meta", None, host, format="meta")
    assert {path.name for path in (tmp_path / "meta").iterdir()} == {"consolidated.00.pth", "params.json",
                                                                     "tokenizer.json"}
    family = host.architectures["llama"]
    wanted, found = (to_canonical(host.open(tmp_path / name), family)[0] for name in ("m.gguf", "meta"))
    assert wanted.tensors.keys() == found.tensors.keys() - ({"output.weight"} if "tie_word_embeddings" in changes
                                                            else set())
    for name, tensor in wanted.tensors.items():
        again = found.tensors[name]
        assert (again.encoding, again.shape) == (tensor.encoding, tensor.shape)
        assert np.array_equal(again.read(0, again.rows), tensor.read(0, tensor.rows)), name
    with load(tmp_path / "m.gguf", "numpy", host=host) as one, load(tmp_path / "meta", "numpy", host=host) as two:
        assert np.allclose(one.logits([5, 6, 7]), two.logits([5, 6, 7]), atol=1e-5)


def test_a_tied_embedding_is_written_once(host: Host, tmp_path: Path) -> None:
    """Under both of its names, as torch writes what shares its numbers."""
    source = published(host, tmp_path, tie_word_embeddings=True, vocab_size=9000)
    save_as(source, tmp_path / "meta", "f16", host, format="meta")
    opened = host.open(tmp_path / "meta")
    assert np.array_equal(opened.tensors["output.weight"].array(), opened.tensors["tok_embeddings.weight"].array())
    once = opened.tensors["output.weight"].nbytes
    assert (tmp_path / "meta" / "consolidated.00.pth").stat().st_size < 1.5 * once


@pytest.mark.parametrize(("width", "inner"), [(4096, 11008), (5120, 13824), (6656, 17920), (8192, 22016), (4096, 14336),
                                              (8192, 28672), (3072, 8192), (2048, 8192), (96, 160), (96, 161), (7, 1)])
def test_params_give_the_width_of_the_feed_forward_by_metas_formula(width: int, inner: int) -> None:
    said = feed_forward(width, inner)
    hidden = int(2 * 4 * width / 3)
    if "ffn_dim_multiplier" in said:
        hidden = int(said["ffn_dim_multiplier"] * hidden)
    multiple = said["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == inner
    assert ("ffn_dim_multiplier" in said) == (inner not in (11008, 13824, 17920, 22016)) or inner == 8192


@pytest.mark.parametrize(("changes", "words"), [
    ({"attention_bias": True}, "have no name for tensors blk.0.attn_q.bias"),
    ({"head_dim": 10}, "params.json cannot say head_dim = 10. --format huggingface holds the model"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "params.json cannot say rope_factor = 4.0, rope_scaling")])
def test_what_params_cannot_say_is_refused(changes: dict[str, Any], words: str, host: Host, tmp_path: Path) -> None:
    source = published(host, tmp_path, **changes)
    with pytest.raises(BestiaryError, match=words):
        save_as(source, tmp_path / "meta", "f16", host, format="meta")
    assert not (tmp_path / "meta").exists()


def test_other_families_have_no_such_form(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["bloom"], tmp_path / "bloom", 3)
    with pytest.raises(BestiaryError, match="bloom models have no form that Meta publishes; llama.* have one. --format "
                                            "huggingface holds every family"):
        save_as(tmp_path / "bloom", tmp_path / "meta", "f16", host, format="meta")
    publish(host.architectures["mistral"], tmp_path / "mistral", 3)
    with pytest.raises(BestiaryError, match="params.json cannot say .*sliding_window = 24|what tells mistral from"):
        save_as(tmp_path / "mistral", tmp_path / "meta", "f16", host, format="meta")


def test_a_sentencepiece_model_lies_beside_the_shard(host: Host, data: Path, tmp_path: Path) -> None:
    source = published(host, tmp_path, vocab_size=32000, hidden_size=12, head_dim=2)
    (source / "tokenizer.json").unlink()
    file = data / "tokenizers" / "llama-tokenizer.model"
    save_as(source, tmp_path / "meta", "f16", host, format="meta", tokenizer=file)
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == file.read_bytes()
    text = "Once upon a time"
    assert load_tokenizer(tmp_path / "meta", host=host).encode(text) == load_tokenizer(file, host=host).encode(text)


def test_a_context_that_params_cannot_say_is_said(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_as(published(host, tmp_path), tmp_path / "meta", "f16", host, format="meta")
    assert "does not say that the model was made for 128 tokens: who reads it takes 2048" in caplog.text


def test_a_folder_of_metas_is_replaced_only_by_leave(host: Host, tmp_path: Path) -> None:
    source = published(host, tmp_path)
    save_as(source, tmp_path / "meta", "f16", host, format="meta")
    before = contents(tmp_path / "meta")
    with pytest.raises(BestiaryError, match="exists already"):
        save_as(source, tmp_path / "meta", "f16", host, format="meta")
    save_as(source, tmp_path / "meta", "f16", host, format="meta", force=True)
    assert contents(tmp_path / "meta") == before
    assert json.loads(before["params.json"])["dim"] == 96


def test_an_archive_is_one_to_pythons_own_reader() -> None:
    """Checksums too; data begin at multiples of the alignment."""
    file = BytesIO()
    archive = Archive(file)
    archive.add("a/one", 5, [b"on", b"e.."])
    archive.add("a/two", 0, [])
    archive.add("a/three", 3000, [bytes(range(250)) * 12])
    archive.end()
    with zipfile.ZipFile(file) as found:
        assert found.testzip() is None
        assert {info.filename: len(found.read(info)) for info in found.infolist()} == {
            "a/one": 5, "a/two": 0, "a/three": 3000}
        for info in found.infolist():
            begin = info.header_offset + 30 + len(info.filename) + int.from_bytes(
                file.getvalue()[info.header_offset + 28:info.header_offset + 30], "little")
            assert begin % ALIGNMENT == 0


class Sparse(BytesIO):
    """A file whose large pieces take no room: only their lengths count."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.kept = 0, dict[int, bytes]()

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place
        return place

    def write(self, data: Any) -> int:
        if len(data) < 1 << 16:
            self.kept[self.place] = bytes(data)
        self.place += len(data)
        return len(data)


def test_entries_beyond_4_gb_get_sizes_and_places_of_64_bits() -> None:
    """The headers only; no test writes so much."""
    file, piece, count = Sparse(), memoryview(bytes(1 << 26)), 65
    archive = Archive(file)
    archive.add("a/large", count << 26, [piece] * count)
    archive.add("a/after", 3, [b"end"])
    archive.end()
    written = b"".join(data for _, data in sorted(file.kept.items()))
    assert written[18:26] == b"\xff" * 8  # in the first header
    assert (count << 26).to_bytes(8, "little") * 2 in written[:120]
    assert written.count(b"PK\6\6") == written.count(b"PK\6\7") == 1 and written[-22:-18] == b"PK\5\6"
    directory = written[written.index(b"PK\1\2"):]
    second = directory[directory.index(b"PK\1\2", 4):]
    assert second[42:46] == b"\xff" * 4  # its place is behind the name
    assert int.from_bytes(second[57:65], "little") > 1 << 32
