"""What `merge` finds out about what it wrote: whether it is what base and additions make, and whether that speaks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary import merging
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.merge_check import TEXT, check_merge, garbage, logits, pieces, tokens
from bestiary.model import load
from bestiary_plugins.demo.command import model as demo_model
from tests.cli.conftest import Cli

from .conftest import EMBEDDING, OUTPUT, QUERY, Array, Zoo, arrays, config_of, copied, write


def canonical(host: Host, path: Path) -> Checkpoint:
    opened = host.open(path)
    return to_canonical(opened, host.architecture_of(opened.config, opened.tokenizer))[0]


def spoken(host: Host) -> dict[str, Array]:
    """The weights of the model that is shipped, which has learned to tell stories."""
    return {name: tensor.array() for name, tensor in host.open(demo_model()).tensors.items()}


def test_a_good_merge_is_said_to_be_one(zoo: Zoo, cli: Cli) -> None:
    for option in ((), ("--check",)):
        done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "out.gguf",
                   "--force", *option)
        assert done.status == 0 and not done.err
        assert "tokens, the same logits as base and additions together; perplexity of a plain text" in done.out
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "b.gguf", "--no-check")
    assert done.status == 0 and "not checked" in done.out and "logits" not in done.out


def test_a_large_model_is_run_when_asked_to(zoo: Zoo, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SMALL", 1000)
    words = ("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--force", "--target", zoo.folder / "out.gguf")
    assert "the model was not run, --check does that too" in cli(*words).out
    assert "the same logits" in cli(*words, "--check").out


def test_quantized_output_is_compared_with_its_own_type(zoo: Zoo, cli: Cli) -> None:
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "o.gguf", "--type",
               "q4_0")
    assert done.status == 0 and "the same logits" in done.out


def test_a_model_without_a_tokenizer_is_run_on_numbers(zoo: Zoo, cli: Cli) -> None:
    for path in (zoo.base(), zoo.delta()):
        (path / "tokenizer.json").unlink()
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", zoo.folder / "out.gguf")
    assert done.status == 0 and "there is no tokenizer, the same logits" in done.out


def test_a_short_context_is_room_enough_for_numbers(zoo: Zoo, cli: Cli) -> None:
    """GPT-2 has no positions beyond it."""
    base = zoo.model("gpt2", 1, family="gpt2", n_positions=64)
    (base / "tokenizer.json").unlink()
    adapter = zoo.adapter("lora", targets=("transformer.h.0.attn.c_attn.weight",), model=base)
    done = cli("merge", "--base", base, "--lora", adapter, "--target", zoo.folder / "out")
    assert done.status == 0 and "there is no tokenizer, the same logits" in done.out


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["f16", "f32", "q4_0"])
def test_what_is_no_number_is_said_of_whom_it_is_from_and_nothing_is_written(zoo: Zoo, cli: Cli, value: float,
                                                                            kind: str) -> None:
    out, embedding = zoo.folder / "out.gguf", arrays(zoo.base())[EMBEDDING].copy()
    embedding[5, 5] = value
    factor = f"base_model.model.{QUERY[:-7]}.lora_B.weight"
    damaged = np.full((96, 4), value, np.float32)
    for words in (("--lora", zoo.adapter("one"), "--lora", zoo.adapter("two", changes={factor: damaged})),
                  ("--lora", zoo.adapter("three", saved={EMBEDDING: embedding}))):
        done = cli("merge", "--base", zoo.base(), *words, "--target", out, "--type", kind)
        assert done.status == 1 and done.err.count("\n") == 1 and not out.exists()
        assert f"{words[-1]}: what it holds for tensor" in done.err and "is not finite" in done.err


def test_a_merge_that_does_not_run_is_not_to_be_used(zoo: Zoo, cli: Cli) -> None:
    """All of its weights are numbers, and too large."""
    adapter = zoo.adapter("lora", targets=(), saved={
        name: array.astype(np.float32) * np.float32(1e30) for name, array in arrays(zoo.base()).items()
        if name.endswith(("gate_proj.weight", "up_proj.weight"))})
    done = cli("merge", "--base", zoo.base(), "--lora", adapter, "--target", zoo.folder / "out.gguf", "--type", "f32")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "out.gguf was written, and does not run: do not use it" in done.err and "not finite" in done.err


def test_a_damaged_output_is_found(zoo: Zoo, host: Host) -> None:
    family, good = host.architectures["llama"], canonical(host, zoo.base())
    damaged = copied(zoo.base(), "damaged")
    weights = arrays(damaged)
    weights[OUTPUT][5] += 0.5
    save_file(weights, damaged / "model.safetensors")
    with pytest.raises(BestiaryError, match="its logits are not those of the merged model"):
        check_merge(canonical(host, damaged), good, good, family, family, host, True)
    check_merge(canonical(host, damaged), good, good, family, family, host, False)
    other = copied(zoo.base(), "other")
    root = json.loads((other / "tokenizer.json").read_text())
    vocabulary = root["model"]["vocab"]
    vocabulary["o"], vocabulary["e"] = vocabulary["e"], vocabulary["o"]
    (other / "tokenizer.json").write_text(json.dumps(root))
    with pytest.raises(BestiaryError, match="its tokenizer gives other tokens than that of the merged model"):
        check_merge(canonical(host, other), good, good, family, family, host, False)


def test_a_merge_that_speaks_garbage_is_said_so(host: Host, tmp_path: Path, cli: Cli) -> None:
    """A delta from random weights to a model that tells stories; put on the model itself it makes noise."""
    told, random = spoken(host), np.random.default_rng(3)
    start = {name: random.standard_normal(array.shape).astype(np.float32) * array.std() for name, array in told.items()}
    config, source = config_of(demo_model()), host.open(demo_model()).tokenizer
    right, wrong, delta = (write(tmp_path / name, weights, config, 0) for name, weights in (
        ("right", start), ("wrong", told), ("delta", {name: told[name] - start[name] for name in told})))
    for folder in (right, wrong, delta):
        for name, data in source.files.items():
            (folder / name).write_bytes(data)
    done = cli("merge", "--base", right, "--delta", delta, "--target", tmp_path / "good.gguf", "--type", "f16")
    assert done.status == 0 and "the same logits" in done.out
    done = cli("merge", "--base", wrong, "--delta", delta, "--target", tmp_path / "bad.gguf", "--type", "f16")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "this merge speaks garbage" in done.err and "the base is probably wrong" in done.err


    for word, status in (("--check", 1), ("--no-check", 0)):
        for number, base in enumerate((wrong, right)):
            out = tmp_path / f"{number}{word}.gguf"
            done = cli("convert", delta, out, "--base", base, "--outtype", "q8_0", word)
            assert done.status == (0 if base == right else status), done.err
            assert ("perplexity of a plain text" in done.out) == (done.status == 0 and word == "--check")
            assert ("speaks garbage" in done.err) == (done.status == 1)


def test_one_pass_is_looked_at_where_that_is_cheap_or_asked_for(zoo: Zoo, cli: Cli,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [(zoo.delta(), "--base", zoo.base()), ("--base", zoo.base(), "--lora", zoo.adapter("lora")),
               (zoo.folder / "lora", "--base", zoo.base())]
    said = "checked: perplexity of a plain text"
    for words in sources:
        line = ("convert", *words, "--outfile", zoo.folder / "out.gguf", "--force")
        assert said in cli(*line).out and said not in cli(*line, "--no-check").out
    monkeypatch.setattr(merging, "SMALL", 1000)
    assert said not in cli(*line).out and said in cli(*line, "--check").out
    done = cli("convert", zoo.base(), zoo.folder / "plain.gguf", "--check")
    assert done.status == 1 and "--check" in done.err and not (zoo.folder / "plain.gguf").exists()


@pytest.mark.parametrize(("now", "size", "then", "base_size", "found"), [
    (500, 512, 12.61, 512, True), (7.8e6, 512, 383, 512, True), (600, 512, 200, 512, True),
    (math.inf, 512, 9, 512, True),
    (900, 32001, 8.1, 32000, False),  # far from the text, as a model of another language is
    (60, 49954, 6.5, 32000, False), (25, 512, 12.61, 512, False), (300, 512, 200, 512, False),
    (14000, 32001, 8.1, 32000, True), (9e9, 199, 210, 199, False), (9e9, 199, 199, 199, False),
    (199, 199, 180, 199, False), (600, 512, 383, 512, False)])
def test_garbage_is_less_than_a_tenth_of_what_the_base_knows(now: float, size: int, then: float, base_size: int,
                                                             found: bool) -> None:
    """Of a base that knows nothing, nothing is said."""
    assert garbage(now, size, then, base_size) == found


def test_random_models_of_every_family_are_not_called_garbage(host: Host, tmp_path: Path, cli: Cli) -> None:
    """They know nothing, and neither do their bases."""
    for name in host.architectures:
        zoo = Zoo(tmp_path / name, host)
        base, adapter = zoo.model("base", 3, family=name), None
        targets = tuple(name for name, array in arrays(base).items() if array.ndim == 2 and ".0." in name)
        adapter = zoo.adapter("lora", targets=targets, model=base, lora_alpha=40)
        done = cli("merge", "--base", base, "--lora", adapter, "--target", zoo.folder / "out.gguf")
        assert done.status == 0 and "the same logits" in done.out, (name, done.err)


def test_a_model_run_layer_by_layer_is_the_model(host: Host, zoo: Zoo) -> None:
    for name in host.architectures:
        path = zoo.model(name, 3, family=name)
        opened, family = canonical(host, path), host.architectures[name]
        ids = tokens(opened, family, host)
        assert ids is not None and len(ids) > 20
        graph = to_canonical(opened, family)[1]
        assert len(pieces(graph)) == graph.layers > 1, name
        with load(path, host=host, cache_type_k="f32", cache_type_v="f32") as model:
            assert model.tokenizer.encode(TEXT, bos=True)[:len(ids)] == ids
            wanted = model.logits(ids)
        found = logits(opened, family, ids, host)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
