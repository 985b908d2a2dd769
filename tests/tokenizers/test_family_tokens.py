"""What families know of their tokens and their files do not say: who begins and ends a text, and their chats' ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from bestiary.canonical import from_canonical
from bestiary.checkpoint import TokenizerMaterial
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.model import load, load_tokenizer, make_tokenizer
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor
from bestiary.testing.tiny import make_model
from bestiary.tokenizer import Tokenizer
from bestiary.tokenizer_builder import build_tokenizer
from bestiary_plugins.loaders.vocabulary_arrays import arrays_of

END = 11
TURNS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": " Yes.</s> "},
         {"role": "user", "content": "Two <s>?"}]


def folder_of(host: Host, family: str, config: dict[str, Any], folder: Path, always: int) -> Path:
    """A tiny model of the config as it is published, which finds one token the likeliest after everything."""
    model = make_model(host.architectures[family], config)
    arrays = {name: model.tensors[name].array().copy() for name in (
        "token_embd.weight", "output_norm.weight", "output_norm.bias")}
    arrays["output_norm.weight"][:] = 0
    arrays["token_embd.weight"][always] = 100 * arrays["output_norm.bias"]  # it is the output matrix too
    changed = model.checkpoint.having(tensors={
        **model.tensors, **{name: ArrayTensor(array) for name, array in arrays.items()}})
    theirs = from_canonical(changed, host.architectures[family], "huggingface")
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.decode().reshape(tensor.shape) for name, tensor in theirs.tensors.items()},
              folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["falcon-7b", "falcon-40b", "falcon-7b-instruct"])
def test_falcon_ends_at_its_own_token_whatever_its_first_configs_say(data: Path, host: Host, tmp_path: Path,
                                                                     name: str) -> None:
    gguf = pytest.importorskip("gguf")
    config = json.loads((data / "configs" / name / "config.json").read_text())
    assert config["eos_token_id"] in (2, END)
    small = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "n_head_kv": 2, "num_attention_heads": 4,
             "num_hidden_layers": 1, "num_kv_heads": 4}
    folder = folder_of(host, "falcon", {**config, **{key: small[key] for key in small.keys() & config.keys()}},
                       tmp_path / "falcon", END)
    for file in (data / "configs" / name).glob("*.json"):
        if file.name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(file, folder / file.name)
    shutil.copyfile(data / "tokenizers/falcon-tokenizer.json", folder / "tokenizer.json")
    save_as(folder, tmp_path / "falcon.gguf", "f16", host)
    fields = gguf.GGUFReader(tmp_path / "falcon.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == END
    assert "tokenizer.ggml.add_bos_token" in fields and not fields["tokenizer.ggml.add_bos_token"].contents()
    library = tokenizers.Tokenizer.from_file(str(data / "tokenizers/falcon-tokenizer.json"))
    for path in (folder, tmp_path / "falcon.gguf"):
        with load(path, "numpy", host=host, context=64) as model:
            assert model.tokenizer.eos == END and set(model.tokenizer.ends) == {END}
            ids = model.tokenizer.encode("Hello there", bos=True)
            assert ids == library.encode("Hello there").ids
            said = model.generate("Hello", max_tokens=4, temperature=0)
            assert "".join(said) == "" and said.reason == "end"
            prompt = model.template("falcon-instruct").render([
                {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "Two?"}])
            text = "User: One?\n\nAssistant: Yes.\n\nUser: Two?\n\nAssistant:"
            assert model.tokenizer.encode_segments(prompt, bos=True) == library.encode(text).ids


def bloom_json(host: Host, texts: list[str]) -> str:
    """A tokenizer.json with BLOOM's steps; the real one's 250,680 pieces are not at hand."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(host.pre_tokenizers["bloom"].patterns[0]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer.to_str()


@pytest.fixture
def bloom(data: Path, host: Host, texts: list[str], tmp_path: Path) -> Path:
    """A tiny BLOOMZ: the published config and settings, and more rows than pieces, as there."""
    config = {**json.loads((data / "configs/bloomz-560m/config.json").read_text()), "n_embed": 32, "n_layer": 1,
              "num_attention_heads": 4, "vocab_size": 920}
    folder = folder_of(host, "bloom", config, tmp_path / "bloom", 919)
    (folder / "tokenizer.json").write_text(bloom_json(host, texts))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(data / "configs/bloomz-560m" / name, folder / name)
    return folder


def phoenix(data: Path) -> str:
    """The turns above as the format's authors write them: answers are stripped."""
    entry = json.loads((data / "prompts/TEMPLATES.json").read_text())["phoenix"]
    ask = entry["user_prefix"] + "{}" + entry["user_suffix"] + entry["assistant_prefix"]
    return str(entry["system"] + ask.format("One?") + "Yes.\1/s>" + entry["assistant_suffix"] + ask.format("Two \1s>?"))


def test_phoenix_has_its_marks_as_special_tokens_and_nothing_before_them(data: Path, host: Host, bloom: Path) -> None:
    save_as(bloom, bloom.parent / "phoenix.gguf", "f16", host)
    library = tokenizers.Tokenizer.from_file(str(bloom / "tokenizer.json"))
    written = phoenix(data)
    said = "".join(segment.text for segment in host.templates["phoenix"].render(TURNS))
    assert said == written.replace("\1", "<")
    for path in (bloom, bloom.parent / "phoenix.gguf"):
        tokenizer = load_tokenizer(path, host)
        ids = tokenizer.encode_segments(host.templates["phoenix"].render(TURNS), bos=True)
        assert [token for token in ids if token in (1, 2)] == [1, 2, 1, 2, 1, 2, 1]  # those of the format alone
        assert ids[0] not in (1, 2)
        plain: list[int] = []
        for i, text in enumerate(written.replace("</s>", "<s>\2").split("<s>")):
            plain += [*([1 + text.startswith("\2")] if i else []),
                      *pieces_of(library, text.removeprefix("\2").replace("\1", "<"))]
        assert ids == plain
        assert tokenizer.encode("Hello", bos=True) == tokenizer.encode("Hello")
        assert set(tokenizer.ends) == {2}


def pieces_of(library: Any, text: str) -> list[int]:
    """The ids of text in which nothing is special."""
    library.encode_special_tokens = True
    return list(library.encode(text).ids)


def test_chimera_begins_with_one_bos(data: Path, host: Host) -> None:
    tokenizer: Tokenizer = load_tokenizer(data / "tokenizers/llama-tokenizer.model", host)
    ids = tokenizer.encode_segments(host.templates["phoenix"].render(TURNS), bos=True)
    assert [token for token in ids if token in (1, 2)] == [1, 1, 2, 1, 2, 1, 2, 1] and ids[:2] != [1, 1] and ids[0] == 1


def test_a_bloom_with_more_rows_than_pieces_speaks_on(host: Host, bloom: Path) -> None:
    """A row without a piece is never chosen, and may stand in a prompt; our file pads the vocabulary, as others do."""
    save_as(bloom, bloom.parent / "bloom.gguf", "f16", host)
    for path in (bloom, bloom.parent / "bloom.gguf"):
        with load(path, "numpy", host=host, context=64) as model:
            assert model.plan.graph.vocabulary == 920 > load_tokenizer(bloom, host).size
            said = model.generate("Hello", max_tokens=3, temperature=0)
            assert len(list(said)) <= 3 and said.reason == "length"
            assert all(token < model.tokenizer.size for token in said.generation.tokens)
            assert model.generate([919, 919], max_tokens=2, temperature=0).generation.request.ids == (919, 919)


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptneox", "qwen2"])
def test_a_file_that_names_no_rule_is_split_as_its_family_does(host: Host, texts: list[str], family: str,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    root = json.loads(bloom_json(host, texts))
    vocabulary = arrays_of(TokenizerMaterial({"tokenizer.json": json.dumps(root).encode()}), host.pre_tokenizers)
    assert vocabulary is not None
    nameless = TokenizerMaterial(vocabulary=replace(vocabulary, pre_tokenizer=""))
    with caplog.at_level("WARNING", "bestiary"):
        found = make_tokenizer(nameless, host.architectures[family], {}, host)
    name = next(iter(host.architectures[family].pre_tokenizers))
    wanted = build_tokenizer(TokenizerMaterial(vocabulary=replace(vocabulary, pre_tokenizer=name)), host.pre_tokenizers)
    assert found is not None and [found.encode(text) for text in texts] == [wanted.encode(text) for text in texts]
    assert caplog.messages == ["the file does not say how its tokenizer splits text; "
                               f"models of {family} do it as {name}"]


def test_where_a_familys_models_differ_the_rule_is_asked_for(host: Host, texts: list[str]) -> None:
    vocabulary = arrays_of(TokenizerMaterial({"tokenizer.json": bloom_json(host, texts).encode()}), host.pre_tokenizers)
    assert vocabulary is not None
    nameless = TokenizerMaterial(vocabulary=replace(vocabulary, pre_tokenizer=""))
    with pytest.raises(BestiaryError, match="does not say how .* models of llama differ in it; .* --tokenizer FILE"):
        make_tokenizer(nameless, host.architectures["llama"], {}, host)


@pytest.mark.parametrize("name", ["alpaca", "phoenix"])
def test_bloomz_has_no_format_of_its_own(host: Host, bloom: Path, name: str) -> None:
    with load(bloom, "numpy", host=host, context=64) as model:
        with pytest.raises(BestiaryError, match="chat"):
            model.template()
        assert model.template(name).name == name
        assert np.isfinite(model.logits(model.tokenizer.encode("Translate to French: Hi", bos=True))).all()
