"""The recipes of CONTRIBUTING.md work as a reader would use them: begun with `bestiary plugins new`, the code put in,
installed, and a model run through them."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.convert import convert, recipe_for
from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.host import Host, HostSettings
from bestiary.scaffold import EXAMPLES, package

from ..installing import Completed, Place

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
RECIPES = {(kind, name): code for kind, name, code in re.findall(
    r"^bestiary plugins new (\w+) (\w+)\n```\n.*?^```python\n(.*?)^```$",
    GUIDE.partition("### ")[2], re.MULTILINE | re.DOTALL)}
TINY = re.findall(r"^bestiary .* tiny.*$", GUIDE, re.MULTILINE)
"""How an author comes to a model of a family, and runs it."""
LIMITS = Limits(48, sequences=2, cache_type_k="f32", cache_type_v="f32")


@pytest.fixture
def recipes(tmp_path: Path) -> Host:
    """A host with the recipes as one-file plugins."""
    files = [tmp_path / f"bestiary_{name}.py" for _, name in RECIPES]
    for file, code in zip(files, RECIPES.values(), strict=True):
        file.write_text(code)
    return Host(HostSettings(names=(), files=tuple(map(str, files))))


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
    path = tmp_path / "gecko.newt"
    path.write_bytes(json.dumps({"config": config, "shapes": shapes}).encode() + b"\n" + b"".join(data))
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """A tokenizer with as many tokens as the model has: letters."""
    tokenizer = Tokenizer(BPE({chr(ord("!") + i) if i < 94 else f"<{i}>": i for i in range(101)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), Decoder()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
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


def said(done: Completed) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_recipe_of_each_kind() -> None:
    assert [kind for kind, _ in RECIPES] == [kind for kind in EXAMPLES if kind != "writer"]


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_a_recipe_shows_the_file_that_it_begins_with(kind: str, name: str) -> None:
    assert RECIPES[kind, name] == package(kind, name)[f"bestiary_{name}.py"]


@pytest.mark.slow
def test_a_model_runs_through_the_installed_recipes(tmp_path: Path, gecko: Path, vocabulary: Path) -> None:
    place = Place(tmp_path / "place")
    for (kind, name), code in RECIPES.items():
        said(place.run("plugins", "new", kind, name))
        (place.folder / f"bestiary-{name}/bestiary_{name}.py").write_text(code)
    place.pip_install(*(place.folder / f"bestiary-{name}" for _, name in RECIPES))
    plugins = {each["plugin"]: each for each in json.loads(said(place.run("plugins", "--json")))}
    assert {name: plugins[name]["provides"] for _, name in RECIPES} == {
        name: {f"{kind}s": [name]} for kind, name in RECIPES}

    table, *texts = (said(place.run(*shlex.split(line, comments=True)[1:])) for line in TINY)
    assert "\ngecko " in table
    assert len(texts) == 2 and all(text.startswith("Tyger Tyger") for text in texts)

    converted, quantized = tmp_path / "gecko.gguf", tmp_path / "gecko-mole.gguf"
    said(place.run("convert", gecko, "--outfile", converted, "--outtype", "f32", "--tokenizer", vocabulary))
    said(place.run("convert", converted, "--outfile", quantized, "--outtype", "mole"))
    words = ("-p", "ab", "-n", "8", "--temp", "0")
    ran = {(file, backend): said(place.run("run", "-m", file, "--backend", backend, *words))
           for file in (converted, quantized) for backend in ("numpy", "hydra")}
    assert ran[converted, "hydra"] == ran[converted, "numpy"]
    assert ran[quantized, "hydra"] == ran[quantized, "numpy"]
    assert all(text.startswith("ab") and len(text.strip()) > 2 for text in ran.values())
    largest = said(place.run("ibis", quantized, "--count", "2"))
    assert largest.split()[1:3] == ["mole", "blk.0.ffn_up.weight"] and len(largest.splitlines()) == 2


def test_two_backends_agree_on_the_recipes_model(recipes: Host, gecko: Path) -> None:
    checkpoint, graph = canonical(recipes, gecko)
    expected = logits(recipes, "numpy", checkpoint, graph)
    assert expected.shape == (20, 101) and np.isfinite(expected).all()
    assert np.allclose(logits(recipes, "hydra", checkpoint, graph), expected, atol=1e-5)


def test_the_recipes_quantizer_stays_close(recipes: Host, gecko: Path) -> None:
    checkpoint, graph = canonical(recipes, gecko)
    quantized = convert(checkpoint, graph, recipe_for(recipes.quantizers["mole"]), recipes)
    kept = {name for name, tensor in quantized.tensors.items() if tensor.encoding.name == "f16"}  # by position
    assert kept == {"position_embd.weight"}
    assert {tensor.encoding.name for tensor in quantized.tensors.values()} == {"mole", "f16", "f32"}
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
    b"", b"no json\n", b"[]\n", b'{"config": {}, "shapes": 3}\n', b'{"config": {}, "shapes": {"a": [-1]}}\n',
    b'{"config": {}, "shapes": {"a": 4}}\n', b'{"config": {}, "shapes": {}}',
    b'{"config": {}, "shapes": {"a": [4, 4]}}\n1234', b'{"config": {}, "shapes": {"a": [4611686018427387904, 16]}}\n'])
def test_the_recipes_loader_refuses_damaged_files(recipes: Host, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.newt"
    path.write_bytes(content)
    with pytest.raises(BestiaryError, match=r"bad\.newt"):
        recipes.open(path)
