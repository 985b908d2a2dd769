"""BLOOM's vocabulary of 250,880 rows: sizes and places beyond 32 bits, in sparse files that take no room."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.backend import Batch, Limits
from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.convert import convert, recipe_for, types
from bestiary.encoding import F16
from bestiary.graph import Graph, Trace
from bestiary.host import Host
from bestiary.inspection import inspect
from bestiary_plugins.loaders.gguf_writer import header_of, metadata_of, stored

ROWS, WIDTH = 250_880, 14_336
CONFIG = {"model_type": "bloom", "hidden_size": WIDTH, "n_head": 112, "n_layer": 1, "vocab_size": ROWS,
          "seq_length": 2048}
"""Of the model of 176 billion weights, but for the layers. The embedding is 7.2 GB in f16."""
LAST = np.linspace(-1, 1, WIDTH).astype(np.float16)
BIAS = np.linspace(2, 3, WIDTH).astype(np.float16)
MOST_MEMORY = 100 << 20


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST_MEMORY


def shapes_of(host: Host) -> Mapping[str, tuple[int, ...]]:
    """Of the checkpoint's tensors, the embedding first and the last norm's bias at the end."""
    bloom = host.architectures["bloom"]
    graph = bloom.graph(bloom.normalise(CONFIG, {}), 2048)
    names = {rule.targets: str(rule.sources) for rule in bloom.namings["huggingface"]
             if str(rule.sources).startswith("transformer.")}
    return {names[name.replace("blk.0.", "blk.{}.")].format(0): shape for name, shape in graph.weights.items()}


@pytest.fixture
def folder(host: Host, tmp_path: Path) -> Path:
    """A checkpoint of zeros, but for the last row of the embedding and the last tensor."""
    places: dict[str, Any] = {}
    end = 0
    for name, shape in shapes_of(host).items():
        start, end = end, end + 2 * prod(shape)
        places[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(places).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        begin = file.tell()
        file.truncate(begin + end)
        for name, row in (("transformer.word_embeddings.weight", LAST), ("transformer.ln_f.bias", BIAS)):
            file.seek(begin + places[name]["data_offsets"][1] - row.nbytes)
            file.write(row.tobytes())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def opened(path: Path, host: Host) -> tuple[Checkpoint, Graph]:
    checkpoint = host.open(path)
    return to_canonical(checkpoint, host.architecture_of(checkpoint.config, checkpoint.tokenizer))


def check_ends(checkpoint: Checkpoint) -> None:
    embedding = checkpoint.tensors["token_embd.weight"]
    assert embedding.shape == (ROWS, WIDTH)
    rows = embedding.decode(ROWS - 2, ROWS)
    np.testing.assert_array_equal(rows, [np.zeros(WIDTH), LAST])
    np.testing.assert_array_equal(checkpoint.tensors["output_norm.bias"].array(), BIAS.astype(np.float32))


def test_what_lies_at_the_end_is_read(folder: Path, host: Host) -> None:
    checkpoint, _ = opened(folder, host)
    check_ends(checkpoint)
    facts = inspect(folder, host)
    assert facts["problems"][1:] == ["no tokenizer; name one with --tokenizer FILE"]  # the first: its norms are zeros
    assert facts["weight_bytes"] == 2 * facts["weights"] == 2 * sum(map(prod, shapes_of(host).values()))
    assert facts["weight_bytes"] > 12e9


@pytest.mark.parametrize(("name", "block"), [("q4_0", 18), ("q8_0", 34), ("f16", 64)])
def test_a_conversion_knows_its_sizes(folder: Path, host: Host, name: str, block: int) -> None:
    checkpoint, graph = opened(folder, host)
    smaller = convert(checkpoint, graph, recipe_for(host.quantizers[name], pure=True), host)
    embedding = smaller.tensors["token_embd.weight"]
    assert embedding.nbytes == ROWS * (WIDTH // 32) * block
    assert types(smaller)[name]["bytes"] == sum(
        prod(tensor.shape) // 32 * block for tensor in smaller.tensors.values() if len(tensor.shape) > 1)
    expected = host.quantizers[name].quantize(LAST[None].astype(np.float32))
    np.testing.assert_array_equal(embedding.read(ROWS - 1, ROWS), expected)


def test_tensors_beyond_four_gigabytes_of_a_gguf_file_are_found(folder: Path, host: Host, tmp_path: Path) -> None:
    """The header is the writer's own; the zeros are left to the file system."""
    checkpoint, graph = opened(folder, host)
    half = convert(checkpoint, graph, recipe_for(host.quantizers["f16"]), host)
    pieces = [piece for name, tensor in half.tensors.items() for piece in stored(name, tensor, host)]
    header, places = header_of(metadata_of(half, host), pieces)
    assert sum(place > 1 << 32 for place in places) == len(places) - 1
    starts = dict(zip(half.tensors, places, strict=True))
    with open(tmp_path / "model.gguf", "wb") as file:
        file.write(header)
        file.truncate(max(starts[name] + tensor.nbytes for name, tensor in half.tensors.items()))
        for name, rows in (("token_embd.weight", LAST), ("output_norm.bias", BIAS.astype(np.float32))):
            file.seek(starts[name] + half.tensors[name].nbytes - rows.nbytes)
            file.write(rows.tobytes())
    check_ends(opened(tmp_path / "model.gguf", host)[0])


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_the_last_token_is_embedded(folder: Path, host: Host, backend: str) -> None:
    """By each backend's own step, over the file itself: neither holds 7.2 GB here."""
    if reason := host.backends[backend].available():
        pytest.skip(f"backend {backend}: {reason}")
    name = "token_embd.weight"
    g = Trace()
    x = g.embed(name, ROWS, WIDTH)
    graph, limits = g.finish(x, hidden=x), Limits(8, threads=1, cache_type_k="f32", cache_type_v="f32")
    size = 2 * ROWS * WIDTH
    begin = 8 + struct.unpack("<Q", (folder / "model.safetensors").open("rb").read(8))[0]
    plan: Any
    if backend == "numpy":
        from bestiary_plugins.backends.numpy import NumpyPlan

        table: Any = np.memmap(folder / "model.safetensors", np.float16, "r", begin, (ROWS, WIDTH))
        plan = NumpyPlan(graph, {name: table}, limits)
    else:
        import bestiary_kernels
        from bestiary_plugins.backends.cpu import CpuPlan
        from bestiary_plugins.backends.cpu_lower import lower
        from bestiary_plugins.backends.cpu_pack import RawRows, Weights, kernel_layout

        table = np.memmap(folder / "model.safetensors", np.uint8, "r", begin, (ROWS, size // ROWS))
        held = Weights(tables={name: RawRows(kernel_layout(F16, WIDTH), table)})
        program = bestiary_kernels.Program(bestiary_kernels.isas()[-1], 1, 1)
        plan = CpuPlan(graph, limits, held, program, lower(graph, held, program, ("f32", "f32")))
    ids = np.array([0, ROWS - 1, 1 << 17], np.int32)
    found = plan.forward(Batch(ids, np.arange(3, dtype=np.int32)[None], np.zeros(3, np.int32),
                               np.arange(3, dtype=np.int32)), plan.new_cache())
    np.testing.assert_array_equal(found, [np.zeros(WIDTH), LAST, np.zeros(WIDTH)])
    plan.close()
