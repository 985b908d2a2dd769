"""Meta's checkpoints: shards are joined, params.json is understood, and what is missing is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.canonical import to_canonical
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary_plugins.loaders.meta import Meta, open_meta

if TYPE_CHECKING:
    from tests.loaders.conftest import TorchFiles

Array = NDArray[Any]
DIM, HEADS, LAYERS, HIDDEN, VOCABULARY = 16, 4, 2, 24, 12
PARAMS: dict[str, Any] = {"dim": DIM, "multiple_of": 8, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": 1e-6,
                          "vocab_size": -1}


def whole(kv_heads: int = HEADS, dtype: Any = np.float16) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    kv = kv_heads * DIM // HEADS
    layer = {"attention.wq": (DIM, DIM), "attention.wk": (kv, DIM), "attention.wv": (kv, DIM),
             "attention.wo": (DIM, DIM), "feed_forward.w1": (HIDDEN, DIM), "feed_forward.w2": (DIM, HIDDEN),
             "feed_forward.w3": (HIDDEN, DIM), "attention_norm": (DIM,), "ffn_norm": (DIM,)}
    shapes = {"tok_embeddings.weight": (VOCABULARY, DIM), "norm.weight": (DIM,), "output.weight": (VOCABULARY, DIM),
              **{f"layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()},
              "rope.freqs": (2,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def parts(name: str, array: Array, count: int, embedding_axis: int) -> list[Array]:
    """As the ranks of the training hold it."""
    if array.ndim == 1:
        return [array] * count
    axis = 1 if name.endswith(("wo.weight", "w2.weight")) else embedding_axis if "tok_emb" in name else 0
    if name.endswith(("wk.weight", "wv.weight")) and (heads := len(array) * HEADS // DIM) < count:
        return [part for part in np.split(array, heads) for _ in range(count // heads)]
    return np.split(array, count, axis)


def save(folder: Path, t: type[TorchFiles], arrays: Mapping[str, Array], count: int, params: Mapping[str, Any] = PARAMS,
         embedding_axis: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for rank in range(count):
        shard = {name: np.ascontiguousarray(parts(name, array, count, embedding_axis)[rank])
                 for name, array in arrays.items()}
        (folder / f"consolidated.{rank:02d}.pth").write_bytes(t.zip(shard, prefix=f"consolidated.{rank:02d}"))
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["rows of the embedding", "columns of the embedding"])
def test_shards_are_one_model(tmp_path: Path, host: Host, torch_files: type[TorchFiles], count: int,
                              embedding_axis: int) -> None:
    arrays = whole()
    folder = save(tmp_path / "7B", torch_files, arrays, count, embedding_axis=embedding_axis)
    assert Meta().recognise(folder) == 85
    opened = host.open(folder)
    assert len(pickle.dumps(opened)) < 500
    for checkpoint in (opened, pickle.loads(pickle.dumps(opened)), host.open(folder / "consolidated.00.pth")):
        assert checkpoint.naming == "meta"
        assert checkpoint.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            tensor = checkpoint.tensors[name]
            assert tensor.shape == array.shape
            assert np.array_equal(tensor.array(), array.astype(np.float32)), name
            last = tensor.rows - 1
            assert np.array_equal(tensor.decode(last), array.astype(np.float32).reshape(tensor.rows, -1)[last:])
    family = host.architecture_of(opened.config, opened.tokenizer)
    canonical, _ = to_canonical(opened, family)
    assert canonical.config["vocab_size"] == VOCABULARY
    assert canonical.config["intermediate_size"] == HIDDEN


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_of_keys_that_several_ranks_hold_are_taken_once(tmp_path: Path, torch_files: type[TorchFiles],
                                                              kv_heads: int) -> None:
    arrays = whole(kv_heads)
    folder = save(tmp_path / "x", torch_files, arrays, 4, {**PARAMS, "n_kv_heads": kv_heads})
    for name, tensor in open_meta(folder).tensors.items():
        assert np.array_equal(tensor.array(), arrays[name].astype(np.float32)), name


def test_replicas_that_differ_are_refused(tmp_path: Path, torch_files: type[TorchFiles]) -> None:
    """Else half of the heads would silently be dropped."""
    folder = save(tmp_path / "x", torch_files, whole(4), 4, {**PARAMS, "n_kv_heads": 2})
    with pytest.raises(BestiaryError, match=r"layers.0.attention.wk.weight: .* neighbours do not hold the same"):
        open_meta(folder)


CONFIGS: list[tuple[dict[str, Any], Any, dict[str, Any]]] = [
    ({}, np.float16, {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 12}),
    ({"norm_eps": 1e-5}, np.float32, {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    ({"rope_theta": 1000000.0}, np.float16, {"max_position_embeddings": 16384}),
    ({"rope_theta": 500000.0, "vocab_size": 12}, np.float16, {"max_position_embeddings": 8192, "vocab_size": 12}),
    ({"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 8.0}, np.float16, {
        "max_position_embeddings": 131072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}),
    ({"ffn_dim_multiplier": 1.3, "multiple_of": 1024}, np.float16, {"intermediate_size": HIDDEN}),
]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
@pytest.mark.parametrize(("params", "dtype", "config"), CONFIGS, ids=lambda value: str(value)[:40])
def test_params_become_a_config(tmp_path: Path, torch_files: type[TorchFiles], params: dict[str, Any], dtype: Any,
                                config: dict[str, Any], wrapped: bool) -> None:
    params = {**PARAMS, **params}
    folder = save(tmp_path / "x", torch_files, whole(dtype=dtype), 1, {"model": params} if wrapped else params)
    found = open_meta(folder).config
    assert {key: found[key] for key in config} == config
    assert found["model_type"] == "llama"


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_missing_shard_is_named(tmp_path: Path, torch_files: type[TorchFiles], missing: int) -> None:
    folder = save(tmp_path / "x", torch_files, whole(), 4)
    (folder / f"consolidated.{missing:02d}.pth").unlink()
    with pytest.raises(BestiaryError, match=rf"shard consolidated\.{missing:02d}\.pth is missing"):
        open_meta(folder)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path, torch_files: type[TorchFiles]) -> None:
    folder = save(tmp_path / "x", torch_files, whole(), 2)
    shutil.copy(folder / "consolidated.01.pth", folder / "consolidated.02.pth")
    with pytest.raises(BestiaryError, match="holds 3 files consolidated.NN.pth; the model is in 2"):
        open_meta(folder)
    (folder / "consolidated.02.pth").unlink()
    (folder / "consolidated.01.pth").write_bytes(torch_files.zip({"norm.weight": np.ones(DIM, np.float16)}))
    with pytest.raises(BestiaryError, match=r"only one of .*00.pth and .*01.pth holds tensor layers.0.attention.wk"):
        open_meta(folder)


def test_an_unknown_tensor_in_shards_is_named(tmp_path: Path, torch_files: type[TorchFiles]) -> None:
    folder = save(tmp_path / "x", torch_files, {**whole(), "layers.0.gate.weight": np.ones((4, 4), np.float16)}, 2)
    with pytest.raises(BestiaryError, match=r"not known how the shards of tensor layers.0.gate.weight are joined"):
        open_meta(folder)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"dim": None}, "the config has no dim"), ({"n_heads": 0}, "n_heads = 0"), ({"n_layers": "x"}, "n_layers = 'x'"),
    ({"norm_eps": -1}, "norm_eps = -1"), ({"use_scaled_rope": 1}, "use_scaled_rope = 1"), ({"model": 5}, "model = 5"),
    ({"n_kv_heads": 3.5}, "n_kv_heads = 3.5"), ({"n_heads": 64}, "dim = 16 is less than n_heads = 64")]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=str)
def test_params_that_make_no_sense_are_refused_by_key(tmp_path: Path, torch_files: type[TorchFiles],
                                                      change: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "x", torch_files, whole(), 2, {**PARAMS, **change})
    with pytest.raises(BestiaryError, match=message):
        open_meta(folder)


def test_the_tokenizer_is_taken_from_beside_the_shards_or_from_the_folder_above(tmp_path: Path,
                                                                               torch_files: type[TorchFiles]) -> None:
    """zh-models/7B/consolidated.00.pth and zh-models/tokenizer.model, as in the guides."""
    folder = save(tmp_path / "7B", torch_files, whole(), 1)
    assert open_meta(folder).tokenizer.empty
    (tmp_path / "tokenizer.model").write_bytes(b"above")
    assert open_meta(folder).tokenizer.files == {"tokenizer.model": b"above"}
    (folder / "tokenizer.model").write_bytes(b"beside")
    assert open_meta(folder).tokenizer.files == {"tokenizer.model": b"beside"}


def test_a_folder_without_params_says_so(tmp_path: Path, torch_files: type[TorchFiles]) -> None:
    folder = save(tmp_path / "x", torch_files, whole(), 1)
    (folder / "params.json").unlink()
    assert Meta().recognise(folder) == 60
    with pytest.raises(BestiaryError, match=f"no params.json in {folder}"):
        open_meta(folder)


def test_a_folder_that_is_hugging_faces_too_is_taken_as_that(tmp_path: Path, host: Host,
                                                             torch_files: type[TorchFiles]) -> None:
    folder = save(tmp_path / "x", torch_files, whole(), 1)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert host.open(folder).naming == "meta"  # there are no weights of the other form
    (folder / "pytorch_model.bin").write_bytes(torch_files.zip({"x": np.ones(2, np.float32)}))
    assert host.open(folder).naming == "huggingface"
