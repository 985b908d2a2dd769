"""P-Tuning v2: learned keys and values stand in the cache before the first token, on both backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.architecture import Architecture
from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.convert import convert, recipe_for
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.host import Host
from bestiary.model import load
from bestiary.past import compiled
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor

Floats = NDArray[np.float32]
P = 7
LIMITS = Limits(40, sequences=3, cache_type_k="f32", cache_type_v="f32")


def model(host: Host, name: str, projected: bool) -> tuple[Checkpoint, Graph, Architecture, dict[str, Floats]]:
    """A small random model with a prefix, and its weights."""
    family = host.architectures[name]
    config = {**family.example_config(), "pre_seq_len": P}
    normal = family.normalise(config, {})
    heads, layers = normal["num_key_value_heads"], normal["num_hidden_layers"]
    width = 2 * layers * heads * normal["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"prefix_embd.weight": (P, 20 if projected else width)}
    if projected:
        shapes |= {"prefix_in.weight": (24, 20), "prefix_in.bias": (24,), "prefix_out.weight": (width, 24),
                   "prefix_out.bias": (width,)}
    graph = family.graph(family.normalise(config, shapes), 128)
    random = np.random.default_rng(3)
    arrays = {key: (random.standard_normal(shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 4)
                    + (len(shape) == 1)).astype(np.float32) for key, shape in graph.weights.items()}
    arrays["prefix_embd.weight"] *= 4
    tensors = {key: ArrayTensor(array) for key, array in arrays.items()}
    checkpoint, graph = to_canonical(Checkpoint(Path("x"), config, tensors, CANONICAL), family)
    return checkpoint, graph, family, arrays


def past_of(arrays: dict[str, Floats], layers: int) -> Floats:
    """(layers, key or value, tokens, width), as the published PrefixEncoder and get_prompt make it."""
    table = arrays["prefix_embd.weight"]
    if "prefix_in.weight" in arrays:
        table = np.tanh(table @ arrays["prefix_in.weight"].T + arrays["prefix_in.bias"])
        table = table @ arrays["prefix_out.weight"].T + arrays["prefix_out.bias"]
    return table.reshape(P, layers, 2, -1).transpose(1, 2, 0, 3)


def batch(family: Architecture, config: Any, ids: list[int], sequence: int, part: slice) -> Batch:
    layout = family.layout(ids, config)
    places = np.array(layout.positions, np.int32)[:, part]
    count = places.shape[1]
    return Batch(np.array(ids[part], np.int32), places, np.full(count, sequence, np.int32),
                 np.arange(count, dtype=np.int32), prefixes={sequence: layout.prefix})


@pytest.mark.parametrize("projected", [False, True], ids=["table", "projected"])
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("name", ["chatglm1", "chatglm"])
def test_the_prefix_is_what_every_sequence_begins_with(host: Host, name: str, backend: str, projected: bool) -> None:
    checkpoint, graph, family, arrays = model(host, name, projected)
    config, layers = checkpoint.config, checkpoint.config["num_hidden_layers"]
    ids = [3, 50, 60, 70, 195, 198, 20, 21]
    # the reference: the same model without a past, its cache filled by hand
    bare = family.graph({**config, "pre_seq_len": 0}, 128)
    plain = host.backends["numpy"].compile(bare, {key: checkpoint.tensors[key] for key in bare.weights}, LIMITS)
    cache: Any = plain.new_cache()
    for layer, (keys, values) in enumerate(past_of(arrays, layers)):
        heads = config["num_key_value_heads"]
        cache.rows[layer, 0] = keys.reshape(P, heads, -1), values.reshape(P, heads, -1)
    cache.lengths[0] = P
    whole = batch(family, config, ids, 0, slice(0, len(ids)))
    prefix = family.layout(ids, config).prefix
    wanted = plain.forward(Batch(whole.tokens, whole.positions, whole.sequences, whole.wanted,
                                 prefixes={0: prefix + P} if prefix else None), cache)
    without = plain.forward(whole, plain.new_cache())
    spread = np.ptp(wanted)
    assert np.abs(without - wanted).max() > 0.01 * spread

    plan = compiled(host.backends[backend], graph, checkpoint.tensors, LIMITS)
    cache = plan.new_cache()
    cut = prefix or 3
    for sequence in (0, 2):
        rows = [plan.forward(batch(family, config, ids, sequence, part), cache)
                for part in (slice(0, cut), *(slice(i, i + 1) for i in range(cut, len(ids))))]
        assert np.abs(np.concatenate(rows) - wanted).max() < 1e-5 * spread
        assert cache.length(sequence) == len(ids)
    cache.copy(0, 1, cut)
    cache.truncate(0, 0)
    assert [cache.length(i) for i in range(3)] == [0, cut, len(ids)]
    rows = [plan.forward(batch(family, config, ids, 1, slice(cut, len(ids))), cache),
            plan.forward(batch(family, config, ids, 0, slice(0, len(ids))), cache)]
    assert np.abs(rows[0] - wanted[cut:]).max() < 1e-5 * spread
    assert np.abs(rows[1] - wanted).max() < 1e-5 * spread
    plan.close()


@pytest.mark.parametrize("projected", [False, True], ids=["table", "projected"])
def test_the_prefix_is_kept_in_a_file_and_not_quantized(host: Host, tmp_path: Path, projected: bool) -> None:
    checkpoint, graph, family, _ = model(host, "chatglm", projected)
    smaller = convert(checkpoint, graph, recipe_for(host.quantizers["q8_0"], pure=True), host)
    assert smaller.tensors["prefix_embd.weight"].encoding.name == "f16"
    file = tmp_path / "prefix.gguf"
    host.writers["gguf"].save(checkpoint, file, host)
    with load(file, backend="numpy", host=host) as one:
        found = one.logits([3, 50, 60])
    plan = compiled(host.backends["numpy"], graph, checkpoint.tensors, LIMITS)
    wanted = plan.forward(batch(family, checkpoint.config, [3, 50, 60], 0, slice(0, 3)), plan.new_cache())
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)
    save_as(file, tmp_path / "again.gguf", "f16", host)


def test_a_folder_of_a_trained_prefix_is_added_to_its_model(host: Host, tmp_path: Path) -> None:
    """As ptuning scripts leave it: the prefix alone, beside a config that has its length."""
    from safetensors.numpy import save_file

    base, prefix = tmp_path / "base", tmp_path / "prefix"
    family = host.architectures["chatglm"]
    config = family.example_config()
    random = np.random.default_rng(5)
    sources = {rule.targets: str(rule.sources) for rule in family.namings["huggingface"] if rule.transform is None
               and str(rule.sources).startswith("transformer.")}
    weights = {}
    for name, shape in family.graph(family.normalise(config, {}), 128).weights.items():
        index = "".join(part for part in name.split(".") if part.isdigit())
        source = sources[name.replace(f".{index}.", ".{}.") if index else name]
        weights[source.format(index)] = (random.standard_normal(shape) / 8 + (len(shape) == 1)).astype(np.float32)
    table = random.standard_normal((P, 2 * 2 * 2 * 16)).astype(np.float32)
    for folder, tensors, extra in ((base, weights, {"pre_seq_len": None}),
                                   (prefix, {"transformer.prefix_encoder.embedding.weight": table},
                                    {"pre_seq_len": P, "prefix_projection": False})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **extra}))
        save_file(tensors, folder / "model.safetensors")
    with load(base, host=host) as model:
        without = model.logits([3, 50, 60])
    with load(base, add=prefix, host=host) as model:
        wanted = model.logits([3, 50, 60])
    assert np.abs(without - wanted).max() > 0.01 * np.ptp(wanted)
    save_as(base, tmp_path / "both.gguf", "f32", host, add=prefix)
    with load(tmp_path / "both.gguf", host=host) as model:
        assert np.array_equal(model.logits([3, 50, 60]), wanted)
    with pytest.raises(BestiaryError, match="both hold transformer.embedding"):
        load(base, add=base, host=host)
    for key, value in (("model_type", "heron"), ("hidden_size", 4096)):
        (prefix / "config.json").write_text(json.dumps({**config, key: value, "pre_seq_len": P}))
        with pytest.raises(BestiaryError, match=f"prefix is made for another model than .*base: {key} = .*{value}"):
            load(base, add=prefix, host=host)
    (prefix / "config.json").write_text(json.dumps({**config, "pre_seq_len": P}))
    with pytest.raises(BestiaryError, match="has no use for tensor prefix_embd|does not know tensor|missing"):
        load(prefix, host=host)
