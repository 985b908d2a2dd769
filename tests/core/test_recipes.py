"""The recipes of CONTRIBUTING.md are plugins that work, used as a reader would: copied out, one file each."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.convert import convert, recipe_for
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.host import Host, HostSettings

RECIPES = {name: code for code in re.findall(
    r"^```python\n(.*?)^```$", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    for name in re.findall(r"\A# (\w+\.py)$", code, re.MULTILINE)}
LIMITS = Limits(48, sequences=2, cache_type_k="f32", cache_type_v="f32")


@pytest.fixture
def recipes(tmp_path: Path) -> Host:
    for name, code in RECIPES.items():
        (tmp_path / name).write_text(code)
    return Host(HostSettings(names=(), files=tuple(str(tmp_path / name) for name in RECIPES)))


@pytest.fixture
def gecko(tmp_path: Path, recipes: Host) -> Path:
    """A small random model of the recipe's architecture in the recipe's format."""
    family = recipes.architectures["gecko"]
    config = family.example_config()
    graph = family.graph(family.normalise(config, {}), 48)
    theirs = {rule.targets: rule.sources for rule in family.namings["huggingface"]}
    random = np.random.default_rng(1)
    shapes, data = {}, []
    for name, shape in graph.weights.items():
        index = "".join(re.findall(r"blk\.(\d+)", name))
        source = theirs[re.sub(r"\d+", "{}", name)]
        shapes[str(source).format(index)] = shape
        data.append((random.standard_normal(shape) / 4 + (len(shape) == 1)).astype("<f4").tobytes())
    path = tmp_path / "gecko.flat"
    path.write_bytes(json.dumps({"config": config, "shapes": shapes}).encode() + b"\n" + b"".join(data))
    return path


def canonical(host: Host, path: Path) -> tuple[Checkpoint, Graph]:
    checkpoint = host.open(path)
    return to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))


def logits(host: Host, backend: str, checkpoint: Checkpoint, graph: Graph) -> NDArray[np.float32]:
    """Of 20 tokens, the last four one by one."""
    plan = host.backends[backend].compile(graph, checkpoint.tensors, LIMITS)
    cache = plan.new_cache()
    ids = np.arange(20, dtype=np.int32) * 37 % 101
    rows = []
    for part in (slice(0, 16), *(slice(i, i + 1) for i in range(16, 20))):
        count = len(ids[part])
        rows.append(plan.forward(Batch(ids[part], np.arange(20, dtype=np.int32)[None, part], np.zeros(count, np.int32),
                                       np.arange(count, dtype=np.int32)), cache))
    assert cache.length(0) == 20
    return np.concatenate(rows)


def test_there_is_a_recipe_of_each_kind(recipes: Host) -> None:
    own, *files = recipes.report()
    assert [record.provides for record in files] == [
        {"architectures": ("gecko",)}, {"loaders": ("flat",)}, {"quantizers": ("wide8",)}, {"backends": ("halves",)}]


def test_a_model_runs_through_the_recipes(recipes: Host, gecko: Path) -> None:
    checkpoint, graph = canonical(recipes, gecko)
    expected = logits(recipes, "numpy", checkpoint, graph)
    assert expected.shape == (20, 101) and np.isfinite(expected).all()
    assert np.allclose(logits(recipes, "halves", checkpoint, graph), expected, atol=1e-5)


def test_the_recipes_quantizer_stays_close(recipes: Host, gecko: Path) -> None:
    checkpoint, graph = canonical(recipes, gecko)
    quantized = convert(checkpoint, graph, recipe_for(recipes.quantizers["wide8"]), recipes)
    assert {tensor.encoding.name for tensor in quantized.tensors.values()} == {"wide8", "f32"}
    for name, tensor in quantized.tensors.items():
        weight = checkpoint.tensors[name].array()
        step = np.abs(weight).max() / 127
        assert np.abs(tensor.array() - weight).max() <= 0.5001 * step
    expected, found = (logits(recipes, "numpy", each, graph) for each in (checkpoint, quantized))
    assert 0 < np.abs(found - expected).max() < 0.1 * np.ptp(expected)


def test_the_recipes_checkpoint_pickles(recipes: Host, gecko: Path) -> None:
    checkpoint = recipes.open(gecko)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.config == checkpoint.config and again.tensors.keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("content", [
    b"no json\n", b"[]\n", b'{"config": {}, "shapes": 3}\n', b'{"config": {}, "shapes": {"a": [-1]}}\n',
    b'{"config": {}, "shapes": {"a": [4, 4]}}\n1234'])
def test_the_recipes_loader_refuses_damaged_files(recipes: Host, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.flat"
    path.write_bytes(content)
    with pytest.raises(BestiaryError, match="bad.flat"):
        recipes.open(path)
