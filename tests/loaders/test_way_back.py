"""From a GGUF file to a Hugging Face folder, and back to the same file."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.architecture import RankList
from bestiary.canonical import from_canonical, to_canonical
from bestiary.checkpoint import Checkpoint, TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.files import DataFile
from bestiary.host import Host, HostSettings
from bestiary.model import load, load_tokenizer
from bestiary.rank_list import with_vocabulary as with_vocabulary_of_ranks
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor
from bestiary.testing.loader import contents
from bestiary.testing.tiny import make_model
from bestiary_plugins.architectures.llama import Llama
from bestiary_plugins.demo.beasts import publish
from bestiary_plugins.loaders.gguf_header import read_header
from bestiary_plugins.loaders.huggingface_writer import HuggingFaceWriter
from bestiary_plugins.loaders.rebuilt_tokenizer import tokenizer_files
from bestiary_plugins.loaders.vocabulary_arrays import arrays_of

FAMILIES = Host(HostSettings(names=())).architectures.names
TEXTS = ("Once upon a time", " two  spaces\nand a line, 12345!", "在山上 émue 🦊")
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4}


def metadata(path: Path) -> dict[str, Any]:
    """As plain values; the embedded config as an object."""
    found = {key: (value.kind, getattr(value.value, "tolist", lambda value=value: value.value)())
             for key, value in read_header(DataFile(path)).metadata.items()}
    if "bestiary.config" in found:
        found["bestiary.config"] = json.loads(found["bestiary.config"][1])
    return found


def differing(one: Path, other: Path) -> set[str]:
    """Keys of metadata that are not the same."""
    mine, theirs = metadata(one), metadata(other)
    return {key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)}


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        (tensor.encoding, tensor.shape) == (other.tensors[name].encoding, other.tensors[name].shape)
        and np.array_equal(tensor.read(0, tensor.rows), other.tensors[name].read(0, tensor.rows))
        for name, tensor in one.tensors.items())


def there_and_back(file: Path, folder: Path, host: Host) -> Path:
    """The file by way of a folder, in the types it has."""
    save_as(file, folder, None, host, format="huggingface")
    again = folder.with_suffix(".gguf")
    again.parent.mkdir(exist_ok=True)
    kind = "f16" if any(t.encoding.name == "f16" for t in host.open(file).tensors.values()) else "f32"
    save_as(folder, again, kind, host)
    return again


@pytest.mark.parametrize("type", ["f16", "f32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_every_family_comes_back_byte_by_byte(family: str, type: str, host: Host, tmp_path: Path) -> None:
    publish(host.architectures[family], tmp_path / "published", 3)
    save_as(tmp_path / "published", tmp_path / "first.gguf", type, host)
    again = there_and_back(tmp_path / "first.gguf", tmp_path / "folder", host)
    assert differing(tmp_path / "first.gguf", again) == set()
    assert again.read_bytes() == (tmp_path / "first.gguf").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_has_the_names_and_the_weights_that_were_published(family: str, host: Host, tmp_path: Path) -> None:
    """But for norms and biases, which files hold as f32."""
    publish(host.architectures[family], tmp_path / "published", 4)
    save_as(tmp_path / "published", tmp_path / "first.gguf", "f16", host)
    there_and_back(tmp_path / "first.gguf", tmp_path / "folder", host)
    first, again = (host.open(tmp_path / name) for name in ("published", "folder"))
    assert first.tensors.keys() == again.tensors.keys()
    for name, tensor in first.tensors.items():
        found = again.tensors[name]
        assert found.shape == tensor.shape
        assert found.encoding.name == ("f16" if len(tensor.shape) > 1 else "f32"), name
        assert np.allclose(found.array(), tensor.array(), rtol=0, atol=1e-7), name


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "chatglm1"])  # which no other program files
def test_without_the_embedded_config_the_keys_lead_to_a_folder_of_the_same_model(family: str, host: Host,
                                                                                 tmp_path: Path) -> None:
    """As in files of llama.cpp's converter."""
    publish(host.architectures[family], tmp_path / "published", 5)
    save_as(tmp_path / "published", tmp_path / "ours.gguf", "f32", host)
    bare = (tmp_path / "ours.gguf").read_bytes().replace(b"bestiary.config", b"somebody.config")
    (tmp_path / "bare.gguf").write_bytes(bare)
    opened = host.open(tmp_path / "bare.gguf")
    wanted, graph = to_canonical(opened, host.architecture_of(opened.config, opened.tokenizer))
    save_as(tmp_path / "bare.gguf", tmp_path / "folder", None, host, format="huggingface")
    folder = host.open(tmp_path / "folder")
    assert folder.config["architectures"] and folder.config["model_type"]
    chosen = host.architecture_of(folder.config, folder.tokenizer)
    found, again = to_canonical(folder, chosen)
    assert chosen.name == family and again == graph and same_weights(wanted, found)


REAL = {"llama-tokenizer.model": ("llama", 32000), "chinese-alpaca-tokenizer.model": ("llama", 49954),
        "falcon-tokenizer.json": ("falcon", 65024),
        "chatglm2-3-tokenizer.model": ("chatglm", 65024), "chatglm-6b-ice_text.model": ("chatglm1", 150528)}


def with_tokenizer(host: Host, file: Path, folder: Path) -> Path:
    """A tiny model with a real tokenizer, as GGUF."""
    family, size = REAL[file.name]
    small = {**TINY, "vocab_size": size} if family == "llama" else {"vocab_size": size, "padded_vocab_size": size}
    if family == "chatglm1":
        small |= {"mask_token_id": 150000, "gmask_token_id": 150001, "bos_token_id": 150004, "eos_token_id": 150005}
    publish(host.architectures[family], folder / "published", 6, **small)
    (folder / "published" / "tokenizer.json").unlink()
    shutil.copy(file, folder / "published" / f"tokenizer{file.suffix}")
    save_as(folder / "published", folder / "first.gguf", "f16", host)
    return folder / "first.gguf"


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_come_back(name: str, host: Host, data: Path, tmp_path: Path) -> None:
    """Byte by byte where the file carries the original; a vocabulary that a family's own program makes of one becomes
    files of its own."""
    first = with_tokenizer(host, data / "tokenizers" / name, tmp_path)
    again = there_and_back(first, tmp_path / "folder", host)
    added = {"bestiary.file.tokenizer.model", "bestiary.file.tokenizer_config.json"} if "ice_text" in name else set()
    assert differing(first, again) == added
    assert same_weights(host.open(first), host.open(again))
    ours, folder, theirs = (load_tokenizer(path, host=host) for path in (first, tmp_path / "folder", again))
    for text in TEXTS:
        assert ours.encode(text, bos=True) == folder.encode(text, bos=True) == theirs.encode(text, bos=True)
    roles = [(each.bos, each.eos, each.ends) for each in (ours, folder, theirs)]
    assert roles[0] == roles[1] == roles[2]


@pytest.mark.parametrize("name", ["llama-tokenizer.model", "chinese-alpaca-tokenizer.model", "falcon-tokenizer.json",
                                  "chatglm2-3-tokenizer.model"])
def test_of_a_vocabulary_without_its_files_they_are_made_anew(name: str, host: Host, data: Path,
                                                              tmp_path: Path) -> None:
    """As files of llama.cpp's converter have it: the arrays are the same afterwards, and so are the ids of texts."""
    opened = host.open(with_tokenizer(host, data / "tokenizers" / name, tmp_path))
    family = host.architecture_of(opened.config, opened.tokenizer)
    bare, _ = to_canonical(opened.having(tokenizer=replace(opened.tokenizer, files={})), family)
    host.writers["gguf"].save(bare, tmp_path / "bare.gguf", host)
    again = there_and_back(tmp_path / "bare.gguf", tmp_path / "folder", host)
    made = {"bestiary.file.tokenizer_config.json",
            f"bestiary.file.tokenizer.{'json' if name.endswith('json') else 'model'}"}
    assert differing(tmp_path / "bare.gguf", again) == made
    ours, folder = (load_tokenizer(path, host=host) for path in (tmp_path / "bare.gguf", tmp_path / "folder"))
    for text in TEXTS:
        assert ours.encode(text, bos=True) == folder.encode(text, bos=True)


def test_a_file_of_llama_cpps_converter_goes_there_and_back(host: Host, data: Path, tmp_path: Path) -> None:
    """The second time byte by byte; at the first ours gain the config and files that GGUF has no keys for."""
    source = data / "tiny-llama" / "llama-2-tiny-random.gguf"
    first = there_and_back(source, tmp_path / "first", host)
    second = there_and_back(first, tmp_path / "second", host)
    assert second.read_bytes() == first.read_bytes()
    assert same_weights(host.open(source), host.open(first))
    was, now = metadata(source), metadata(first)
    for key in ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id"):
        assert now[f"tokenizer.ggml.{key}"] == was[f"tokenizer.ggml.{key}"], key


class OfRanks(Llama):
    """A family that knows a small list of ranks."""

    rank_lists = (RankList(258, "llama-bpe", ("<|begin|>", "<|end|>", "<|turn|>"), "<|begin|>", "<|end|>",
                           ("<|turn|>",)),)


def test_a_list_of_ranks_gets_files_that_other_programs_read(host: Host) -> None:
    """The original stays beside them; they hold the same arrays, and the library puts the begin of a text there."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [*(bytes([i]) for i in range(256)), b"ab", b"abab"]
    ranks = b"".join(b"%b %d\n" % (base64.b64encode(piece), i) for i, piece in enumerate(pieces))
    family = OfRanks()
    known = with_vocabulary_of_ranks(TokenizerMaterial(files={"tokenizer.model": ranks}), family.rank_lists)
    files = tokenizer_files(TokenizerMaterial(files={"tokenizer.model": ranks}), family, host)
    assert files.keys() == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert files["tokenizer.model"] == ranks
    assert arrays_of(TokenizerMaterial(files=files), family.pre_tokenizers) == known.vocabulary
    library = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert library.encode("ababc").ids == [258, 257, 99]


SPECIAL = Vocabulary("bpe", [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), *(
    bytes([i]) for i in range(97, 123)), "▁".encode(), b"th", b"<|im_end|>", b"[PAD]"],
    [0.0, 0, 0, *[0.0] * 256, *(-float(i) for i in range(3, 29)), -2.0, -1.0, -1000.0, -1000.0],
    [2, 3, 3, *[6] * 256, *[1] * 28, 3, 4], unknown=0, pre_tokenizer="default")


def with_vocabulary(host: Host, **said: Any) -> Checkpoint:
    family = host.architectures["llama"]
    config = {**family.example_config(), "vocab_size": len(SPECIAL.pieces)}
    return make_model(family, config).checkpoint.having(tokenizer=TokenizerMaterial(vocabulary=SPECIAL, **said))


def test_roles_ends_and_template_are_said_in_the_folder(host: Host, tmp_path: Path) -> None:
    end = SPECIAL.pieces.index(b"<|im_end|>")
    made = with_vocabulary(host, bos=1, eos=2, add_bos=True, ends=(2, end), chat_template="{{ messages[0] }}")
    host.writers["huggingface"].save(made, tmp_path / "folder", host)
    said = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "folder").glob("*config.json")}
    assert said["generation_config"] == {"bos_token_id": 1, "eos_token_id": [2, end]}
    assert (said["config"]["bos_token_id"], said["config"]["eos_token_id"]) == (1, 2)
    settings = said["tokenizer_config"]
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert settings["add_bos_token"] is True and settings["chat_template"] == "{{ messages[0] }}"
    assert settings["added_tokens_decoder"][str(end)]["content"] == "<|im_end|>"
    again = host.open(tmp_path / "folder").tokenizer
    assert (again.bos, again.eos, again.add_bos, again.ends) == (1, 2, True, (2, end))
    assert again.chat_template == "{{ messages[0] }}"
    assert load_tokenizer(tmp_path / "folder", host=host).encode("the", bos=True)[0] == 1


def test_a_template_that_no_original_file_holds_stands_in_its_own(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["llama"], tmp_path / "published", 7)
    (tmp_path / "published" / "chat_template.jinja").write_text("{{ 'a' }}")
    save_as(tmp_path / "published", tmp_path / "first.gguf", "f16", host)
    again = there_and_back(tmp_path / "first.gguf", tmp_path / "folder", host)
    assert (tmp_path / "folder" / "chat_template.jinja").read_text() == "{{ 'a' }}"
    assert again.read_bytes() == (tmp_path / "first.gguf").read_bytes()


def test_a_byte_level_vocabulary_says_what_begins_a_text(host: Host, tmp_path: Path) -> None:
    """In the form that the library puts it there by itself."""
    tokenizers = pytest.importorskip("tokenizers")
    publish(host.architectures["llama"], tmp_path / "published", 7)
    save_as(tmp_path / "published", tmp_path / "first.gguf", "f16", host)
    opened = host.open(tmp_path / "first.gguf")
    material = replace(opened.tokenizer, files={}, bos=1, add_bos=True)
    bare, _ = to_canonical(opened.having(tokenizer=material), host.architectures["llama"])
    host.writers["huggingface"].save(bare, tmp_path / "folder", host)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "folder", host=host).encode("burning bright", bos=True)
    assert library.encode("burning bright").ids == ours and ours[0] == 1


def test_only_a_tokenizers_files_leave_a_model_file(host: Host, tmp_path: Path) -> None:
    """Their names stand in the file, which is anybody's."""
    evil = {"../evil": b"x", "/tmp/evil": b"x", "modeling_evil.py": b"x", "config.json": b"{}", "a/b": b"x",
            "model.safetensors": b"x"}
    made = with_vocabulary(host)
    made = made.having(tokenizer=replace(made.tokenizer, files=evil))
    for format in ("huggingface", "meta"):
        (tmp_path / format).mkdir()
        host.writers[format].save(made, tmp_path / format / "folder", host)
        assert [path.name for path in (tmp_path / format).iterdir()] == ["folder"]
        found = {path.name for path in (tmp_path / format / "folder").iterdir()}
        assert found <= {"config.json", "params.json", "model.safetensors", "consolidated.00.pth", "tokenizer.model",
                         "tokenizer_config.json"}
    assert json.loads((tmp_path / "huggingface" / "folder" / "config.json").read_text())["model_type"] == "llama"


# --- the folder ---

def test_what_is_larger_than_a_shard_is_divided(host: Host, tmp_path: Path) -> None:
    made = make_model(host.architectures["llama"], host.architectures["llama"].example_config()).checkpoint
    seen: list[tuple[int, int]] = []
    HuggingFaceWriter(100_000).save(made, tmp_path / "shards", host, progress=lambda done, total, _: seen.append((done,
                                                                                                                 total)))
    HuggingFaceWriter().save(made, tmp_path / "whole", host)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))] and len(files) > 2
    assert all((tmp_path / "shards" / name).stat().st_size < 110_000 for name in files)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    total = sum(tensor.nbytes for tensor in made.tensors.values())
    assert index["metadata"]["total_size"] == total and seen[-1] == (total, total)
    assert same_weights(*(to_canonical(host.open(tmp_path / name), host.architectures["llama"])[0]
                          for name in ("shards", "whole")))


def test_every_tensor_begins_at_a_multiple_of_its_numbers(host: Host, tmp_path: Path) -> None:
    """Some readers take the numbers where they lie."""
    publish(host.architectures["llama"], tmp_path / "published", 8, vocab_size=199, hidden_size=6, head_dim=2,
            intermediate_size=5, num_attention_heads=3, num_key_value_heads=3)
    save_as(tmp_path / "published", tmp_path / "folder", "f16", host, format="huggingface")
    file = (tmp_path / "folder" / "model.safetensors").read_bytes()
    header = json.loads(file[8:8 + int.from_bytes(file[:8], "little")])
    size = {"F32": 4, "F16": 2}
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == set(size)
    begin = 8 + int.from_bytes(file[:8], "little")
    assert begin % 8 == 0
    assert all(entry["data_offsets"][0] % size[entry["dtype"]] == 0 for entry in header.values())


def test_quantized_weights_are_decoded_where_a_type_is_said(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["llama"], tmp_path / "published", 9)
    save_as(tmp_path / "published", tmp_path / "q4_0.gguf", "q4_0", host)
    with pytest.raises(BestiaryError, match="is q4_0, and a Hugging Face folder holds f32, f16, bf16 only: --outtype "
                                            "f16 decodes it"):
        save_as(tmp_path / "q4_0.gguf", tmp_path / "folder", None, host, format="huggingface")
    assert not (tmp_path / "folder").exists()
    save_as(tmp_path / "q4_0.gguf", tmp_path / "folder", "f16", host, format="huggingface")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["torch_dtype"] == "float16"
    with load(tmp_path / "q4_0.gguf", "numpy", host=host) as one, load(tmp_path / "folder", "numpy", host=host) as two:
        assert np.allclose(one.logits([5, 6, 7]), two.logits([5, 6, 7]), atol=0.01)


def test_a_folder_is_replaced_only_where_it_is_asked_and_is_a_model(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["llama"], tmp_path / "published", 10)
    target = tmp_path / "folder"
    options: dict[str, Any] = {"format": "huggingface"}
    target.mkdir()  # an empty one is as good as none
    save_as(tmp_path / "published", target, "f16", host, **options)
    before = contents(target)
    with pytest.raises(BestiaryError, match="exists already; --force replaces it"):
        save_as(tmp_path / "published", target, "f32", host, **options)
    assert contents(target) == before
    (target / "old.txt").write_text("what was there goes with the folder")
    save_as(tmp_path / "published", target, "f16", host, force=True, **options)
    assert contents(target) == before
    (target / "notes").mkdir()
    with pytest.raises(BestiaryError, match="holds the folder notes, so it is not replaced"):
        save_as(tmp_path / "published", target, "f16", host, force=True, **options)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("Dear Sir")
    with pytest.raises(BestiaryError, match=r"is a folder of other things \(it has no config.json\)"):
        save_as(tmp_path / "published", tmp_path / "home", "f16", host, force=True, **options)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BestiaryError, match="file is no folder"):
        save_as(tmp_path / "published", tmp_path / "file", "f16", host, force=True, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "home", "published"]


def test_the_folder_of_the_input_is_no_output(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["llama"], tmp_path / "published", 11)
    save_as(tmp_path / "published", tmp_path / "published" / "m.gguf", "f16", host)
    for source in (tmp_path / "published", tmp_path / "published" / "m.gguf"):
        with pytest.raises(BestiaryError, match="input"):
            save_as(source, tmp_path / "published", "f16", host, format="huggingface", force=True)
    assert (tmp_path / "published" / "m.gguf").exists()


def test_what_a_killed_run_left_is_removed(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(host.architectures["llama"], tmp_path / "published", 12)
    dead = tmp_path / ".folder.0123456789abcdef.part"
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    save_as(tmp_path / "published", tmp_path / "folder", "f16", host, format="huggingface")
    assert not dead.exists() and "which a run that was killed left behind" in caplog.text


# --- ChatGLM's two generations ---

GLM: Mapping[str, Any] = {"model_type": "glm", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
                          "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "vocab_size": 199,
                          "attention_bias": True, "max_position_embeddings": 128}


@pytest.mark.parametrize(("config", "name", "kind"), [
    (GLM, "model.layers.0.self_attn.q_proj.weight", "GlmForCausalLM"),
    (None, "transformer.encoder.layers.0.self_attention.query_key_value.weight", "ChatGLMModel")])
def test_glm_gets_the_names_of_its_config(config: Mapping[str, Any] | None, name: str, kind: str, host: Host) -> None:
    family = host.architectures["chatglm"]
    made = make_model(family, config or family.example_config()).checkpoint
    theirs = from_canonical(made, family, "huggingface")
    assert name in theirs.tensors and theirs.config["architectures"] == [kind]
    assert "separate" not in theirs.config and "rotary_dim" not in theirs.config


@pytest.mark.parametrize("family", ["glm4", "chatglm"])
def test_queries_keys_and_values_that_are_separate_go_back_too(family: str, host: Host) -> None:
    """As in files of llama.cpp's converter."""
    architecture = host.architectures[family]
    made = make_model(architecture, architecture.example_config()).checkpoint
    tensors = dict(made.tensors)
    for i in range(2):
        for part in ("weight", "bias"):
            whole = tensors.pop(f"blk.{i}.attn_qkv.{part}").array()
            rows = (96, 128)
            for name, piece in zip("qkv", np.split(whole, rows), strict=True):
                tensors[f"blk.{i}.attn_{name}.{part}"] = ArrayTensor(np.ascontiguousarray(piece))
    apart = made.having(tensors=tensors, config={**made.config, "separate": True})
    one, two = (from_canonical(each, architecture, "huggingface") for each in (apart, made))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(np.array_equal(one.tensors[name].array(), tensor.array()) for name, tensor in two.tensors.items())


def test_the_scaling_of_llama_3_is_told_by_its_factors(host: Host, tmp_path: Path) -> None:
    """Files of llama.cpp hold them and not what they follow from."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    publish(host.architectures["llama"], tmp_path / "published", 13, rope_scaling=scaling)
    save_as(tmp_path / "published", tmp_path / "ours.gguf", "f32", host)
    bare = (tmp_path / "ours.gguf").read_bytes().replace(b"bestiary.config", b"somebody.config")
    (tmp_path / "bare.gguf").write_bytes(bare)
    again = there_and_back(tmp_path / "bare.gguf", tmp_path / "folder", host)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["rope_scaling"] == scaling
    assert np.allclose(host.open(again).tensors["rope_freqs.weight"].array(),
                       host.open(tmp_path / "ours.gguf").tensors["rope_freqs.weight"].array(), rtol=1e-6)
