"""What `merge` finds out about what it wrote: whether it is what base and additions make, and whether that speaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary import merging
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.merge_check import TEXT, check_merge, logits, pieces, tokens
from bestiary.model import load
from bestiary_plugins.demo.command import model as demo_model
from tests.cli.conftest import Cli

from .conftest import OUTPUT, Array, Zoo, arrays, config_of, copied, write


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
