"""GGUF files written, read back by ours and by the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial, Vocabulary
from bestiary.encoding import BF16, F16, F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.tensor import Absent, ArrayTensor, BlockTensor, Tensor, encode_plain
from bestiary_plugins.encodings import Q4_K, Q6_K
from bestiary_plugins.loaders.gguf import open_gguf
from bestiary_plugins.loaders.gguf_writer import GgufWriter, file_type

Q8_0 = Encoding("q8_0", 32, (34,))
CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6, "max_position_embeddings": 64,
          "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "float16", "_name_or_path": "somebody/Tiny-0.1"}
VOCABULARY = Vocabulary("bpe", [b"<unk>", b"<s>", b"</s>", b"\xe2\x96\x81a", b"\xff"], [0.0, 0.0, 0.0, -1.0, -2.5],
                        [2, 3, 3, 1, 1], unknown=0)
MATERIAL = TokenizerMaterial({"tokenizer_config.json": b"{}", "tokenizer.extra": bytes(range(256))}, VOCABULARY,
                             bos=1, eos=2, add_bos=True, ends=(2, 3), chat_template="{{ messages }}")


def weights() -> dict[str, Tensor]:
    """One of every encoding that has a code; sizes that no alignment divides."""
    rng = np.random.default_rng(1)

    def plain(shape: tuple[int, ...], encoding: Encoding) -> Tensor:
        values = rng.standard_normal(shape).astype(np.float32)
        return BlockTensor(encode_plain(values.reshape(-1, shape[-1]), encoding), shape, encoding)

    return {"token_embd.weight": plain((6, 32), F16), "blk.0.attn_norm.weight": plain((7,), F32),
            "blk.0.ffn_up.weight": plain((5, 33), BF16), "blk.0.ffn_gate_exps.weight": plain((2, 3, 5), F32),
            "output.weight": BlockTensor(rng.integers(0, 256, (6, 34), np.uint8), (6, 32), Q8_0)}


def checkpoint(**changes: Any) -> Checkpoint:
    facts = {"general.license": "mit"}
    return Checkpoint(Path("somewhere"), CONFIG, weights(), CANONICAL, MATERIAL, facts).having(**changes)


def save(made: Checkpoint, path: Path, host: Host, **options: Any) -> Path:
    GgufWriter().save(made, path, host, **options)
    return path


def contents(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name != "tokenizer.ggml.tokens"}


def test_the_gguf_package_reads_every_tensor(tmp_path: Path, host: Host) -> None:
    made = checkpoint()
    reader = gguf.GGUFReader(save(made, tmp_path / "x.gguf", host))
    assert [tensor.name for tensor in reader.tensors] == list(made.tensors)
    for found in reader.tensors:
        expected = made.tensors[found.name]
        assert tuple(reversed(found.shape.tolist())) == expected.shape
        assert found.tensor_type.name.lower() == expected.encoding.name
        assert found.data.tobytes() == expected.read(0, expected.rows).tobytes()
        assert found.data_offset % 32 == 0


def test_every_encoding_survives_and_means_what_the_gguf_package_says(tmp_path: Path, host: Host) -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((3, 512)).astype(np.float32)
    given: dict[str, Tensor] = {}
    for name, quantizer in host.quantizers.items():
        given[f"blk.0.{name}.weight"] = BlockTensor(quantizer.quantize(values), values.shape, quantizer.encoding)
    path = save(checkpoint(tensors=given), tmp_path / "x.gguf", host)
    again = open_gguf(path, host).tensors
    for name, tensor in given.items():
        assert again[name].encoding == tensor.encoding
        assert np.array_equal(again[name].read(0, 3), tensor.read(0, 3))
    for found in gguf.GGUFReader(path).tensors:
        if found.name in given:  # planes of foreign encodings are not
            assert np.array_equal(gguf.dequantize(found.data, found.tensor_type), again[found.name].array())


def test_the_keys_are_those_that_llama_cpp_wants(tmp_path: Path, host: Host) -> None:
    keys = contents(save(checkpoint(), tmp_path / "x.gguf", host))
    expected = {
        "general.architecture": "llama", "general.name": "Tiny-0.1", "general.license": "mit", "general.file_type": 0,
        "general.quantization_version": 2, "llama.context_length": 64, "llama.embedding_length": 32,
        "llama.block_count": 1, "llama.feed_forward_length": 48, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.vocab_size": 6, "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.5, -10000.0], "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 5],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": "{{ messages }}"}
    expected["general.file_type"] = 7  # of what is quantized: no other program may call it f16
    assert {name: keys[name] for name in expected} == expected
    assert keys["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)


def test_the_type_of_a_file_is_kept_while_its_matrices_are_what_they_were(tmp_path: Path, host: Host) -> None:
    data = bytearray(save(checkpoint(), tmp_path / "x.gguf", host).read_bytes())
    at = data.index(b"general.file_type") + len(b"general.file_type") + 4
    assert data[at] == 7
    for said in (13, 14, 1024):  # Q3_K_L, Q4_K_S, and what a program guessed
        data[at:at + 4] = said.to_bytes(4, "little")
        (tmp_path / "x.gguf").write_bytes(data)
        given = open_gguf(tmp_path / "x.gguf", host)
        assert contents(save(given, tmp_path / "y.gguf", host, force=True))["general.file_type"] == said
        vectors = {name: tensor if len(tensor.shape) > 1 else ArrayTensor(np.zeros(tensor.shape, np.float16))
                   for name, tensor in given.tensors.items()}
        for tensors, kept in ((vectors, True), ({**vectors, "output.weight": weights()["token_embd.weight"]}, False),
                              ({**vectors, "further.weight": weights()["output.weight"]}, False),
                              ({"token_embd.weight": vectors["token_embd.weight"]}, True)):
            found = contents(save(given.having(tensors=tensors), tmp_path / "y.gguf", host, force=True))
            assert (found["general.file_type"] == said) == kept


@pytest.mark.parametrize(("kinds", "code"), [
    ([(Q8_0, 2), (F16, 99)], 7), ([(F16, 3), (BF16, 2)], 1), ([(F16, 2), (BF16, 3)], 32), ([(F32, 1)], 0),
    ([(Q4_K, 4), (Q6_K, 3)], 15), ([(Q4_K, 3), (Q6_K, 4)], 18), ([], 0), ([(Encoding("own", 4, (1,)), 1)], None)])
def test_the_type_of_a_file_is_that_of_most_quantized_weights(kinds: list[tuple[Encoding, int]],
                                                              code: int | None) -> None:
    tensors: dict[str, Tensor] = {f"{i}": Absent((rows, 256), kind) for i, (kind, rows) in enumerate(kinds)}
    assert file_type({**tensors, "norm": Absent((1 << 20,), F32)}) == code


def test_what_is_written_is_read_again(tmp_path: Path, host: Host) -> None:
    tensors = weights()
    del tensors["output.weight"]
    made = checkpoint(tensors=tensors)
    again = open_gguf(save(made, tmp_path / "x.gguf", host), host)
    assert {**again.config, **CONFIG, "torch_dtype": None} == {**again.config, "torch_dtype": None}
    assert list(again.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert (again.tensors[name].shape, again.tensors[name].encoding) == (tensor.shape, tensor.encoding)
        assert np.array_equal(again.tensors[name].read(0, tensor.rows), tensor.read(0, tensor.rows))
    material = again.tokenizer
    assert dict(material.files) == dict(MATERIAL.files)
    assert (material.bos, material.eos, material.add_bos, material.add_eos, material.ends, material.chat_template) == \
        (1, 2, True, None, (2, 3), "{{ messages }}")
    assert material.vocabulary is not None
    assert list(material.vocabulary.pieces) == [*VOCABULARY.pieces, b"[PAD5]"]
    assert again.metadata["general.license"] == "mit"


def test_writing_what_was_read_gives_the_same_file(tmp_path: Path, host: Host, data: Path) -> None:
    first = save(open_gguf(data / "tiny-llama" / "llama-2-tiny-random.gguf", host), tmp_path / "1.gguf", host)
    second = save(open_gguf(first, host), tmp_path / "2.gguf", host)
    assert first.read_bytes() == second.read_bytes()


def test_the_original_config_and_files_are_carried(tmp_path: Path, host: Host) -> None:
    keys = contents(save(checkpoint(), tmp_path / "x.gguf", host))
    """But for the type that the weights had: those of the file have their own."""
    carried = json.loads(keys["bestiary.config"])
    assert "torch_dtype" in CONFIG and "torch_dtype" not in carried
    assert {**carried, **CONFIG, "torch_dtype": None} == {**carried, "torch_dtype": None}
    assert carried["architectures"] == ["LlamaForCausalLM"] and carried["bos_token_id"] == 1
    assert keys["bestiary.file.tokenizer_config.json"] == ["text", "{}"]
    assert keys["bestiary.file.tokenizer.extra"][0] == "base64"


def test_more_pieces_than_rows_are_refused(tmp_path: Path, host: Host) -> None:
    few = {"token_embd.weight": ArrayTensor(np.zeros((4, 32), np.float32))}
    with pytest.raises(BestiaryError, match="the tokenizer has 5 pieces and the embedding only 4 rows"):
        save(checkpoint(tensors=few), tmp_path / "x.gguf", host)
    assert not list(tmp_path.iterdir())


def test_a_config_value_that_no_key_can_hold_is_refused_by_name(tmp_path: Path, host: Host) -> None:
    with pytest.raises(BestiaryError, match="hidden_size = 'many' cannot be written as u32"):
        save(checkpoint(config={**CONFIG, "hidden_size": "many"}), tmp_path / "x.gguf", host)


class Watched(ArrayTensor):
    """Counts what is read of it."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        super().__init__(array)
        self.ranges: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.ranges.append((start, stop))
        return super().read(start, stop)


def test_each_tensor_is_read_once_in_ranges_of_rows_and_progress_counts_bytes(tmp_path: Path, host: Host) -> None:
    large = Watched(np.zeros((6000, 512), np.float32))
    seen: list[tuple[int, int, str]] = []
    small = ArrayTensor(np.ones(3, np.float32))
    made = checkpoint(tensors={"blk.0.ffn_up.weight": large, "blk.0.attn_norm.weight": small})
    save(made, tmp_path / "x.gguf", host, progress=lambda done, total, what: seen.append((done, total, what)))
    ranges = sorted(large.ranges)  # several threads read ahead, in no order
    assert len(ranges) > 1
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == 6000
    total = large.nbytes + 12
    assert seen[-1] == (total, total, "blk.0.attn_norm.weight")
    assert all(earlier[0] < later[0] for earlier, later in zip(seen, seen[1:], strict=False))


class Failing(ArrayTensor):
    """Fails when it is read."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        raise BestiaryError("the disk is on fire")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, host: Host) -> None:
    (tmp_path / "x.gguf").write_bytes(b"precious")
    failing = {"blk.0.ffn_up.weight": Failing(np.zeros((2, 2), np.float32))}
    made = checkpoint(tensors=failing, tokenizer=TokenizerMaterial())
    with pytest.raises(BestiaryError, match="on fire"):
        save(made, tmp_path / "x.gguf", host, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == b"precious"


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, host: Host) -> None:
    path = save(checkpoint(), tmp_path / "x.gguf", host)
    with pytest.raises(BestiaryError, match="exists already"):
        save(checkpoint(), path, host)
    save(checkpoint(), path, host, force=True)


def test_a_tensor_that_gguf_cannot_hold_is_refused_by_name(tmp_path: Path, host: Host) -> None:
    for shape in ((1, 1, 1, 1, 2), (0, 4)):
        with pytest.raises(BestiaryError, match="tensor odd has shape"):
            save(checkpoint(tensors={"odd": ArrayTensor(np.zeros(shape, np.float32))}), tmp_path / "x.gguf", host)


def test_other_namings_are_refused(tmp_path: Path, host: Host) -> None:
    with pytest.raises(BestiaryError, match="canonical"):
        save(checkpoint(naming="huggingface"), tmp_path / "x.gguf", host)
