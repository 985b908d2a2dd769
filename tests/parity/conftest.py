"""Tiny random models of a reference implementation, and how far our logits are from theirs."""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.backend import Batch
from bestiary.host import Host, HostSettings
from bestiary.model import Model, load

Floats = NDArray[np.float32]
BACKENDS = Host(HostSettings(names=())).backends.names
MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
MEASURED = pytest.StashKey[dict[tuple[str, str], float]]()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without the reference implementations there is nothing to compare with; BESTIARY_PARITY=1 makes that an error."""
    if MISSING and collection_path.name.startswith("test_"):
        if os.environ.get("BESTIARY_PARITY") == "1":
            raise pytest.UsageError(f"BESTIARY_PARITY is set, but {' and '.join(MISSING)} cannot be imported")
        return True
    return None


@dataclass(frozen=True)
class Reference:
    """A saved model, token ids, and the logits that its reference implementation gives after each of them."""

    path: Path
    ids: NDArray[np.int64]
    logits: Floats
    others: NDArray[np.int64]
    """(2, tokens): ids of two more sequences, to stand beside the first."""
    others_logits: Floats

    def difference(self, ours: Floats, wanted: Floats | None = None) -> float:
        """The largest difference over the spread of the logits."""
        wanted = self.logits if wanted is None else wanted
        assert ours.shape == wanted.shape
        assert np.isfinite(ours).all()
        return float(np.abs(ours - wanted).max() / (wanted.max() - wanted.min()))


class Parity:
    """Makes references, each once, and runs them in every way that must give the same logits."""

    def __init__(self, folder: Path, host: Host, measured: dict[tuple[str, str], float]) -> None:
        self.folder, self.host, self.measured = folder, host, measured
        self._made: dict[str, Reference] = {}

    def reference(self, name: str, model_class: str, config: Mapping[str, Any], *, tokens: int = 60,
                  dtype: str = "float32", max_shard_size: str = "50GB") -> Reference:
        """A random model of a class of transformers, saved as its own save_pretrained does. name: what tells it from
        all others; its random numbers follow from it."""
        if name not in self._made:
            self._made[name] = self._make(name, model_class, config, tokens, dtype, max_shard_size)
        return self._made[name]

    def _make(self, name: str, model_class: str, config: Mapping[str, Any], tokens: int, dtype: str,
              max_shard_size: str) -> Reference:
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.utils.logging.disable_progress_bar()
        kind = getattr(transformers, model_class)
        torch.manual_seed(0)
        model = kind(kind.config_class(**config)).eval()
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=random)
                if parameter_name.endswith("bias"):
                    parameter.copy_(0.3 * noise)
                elif parameter.ndim == 1:  # a norm
                    parameter.copy_(1 + 0.3 * noise)
                else:
                    parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
        path = self.folder / name.replace(" ", "_")
        model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
        # From its own file: with rounded weights, but what follows from the config as exact as it should be.
        model = kind.from_pretrained(path, dtype=torch.float32).eval()
        ids = torch.randint(0, model.config.vocab_size, (3, tokens), generator=random)
        with torch.no_grad():
            logits = model(ids).logits.numpy()
        return Reference(path, ids[0].numpy(), logits[0], ids[1:].numpy(), logits[1:])

    def load(self, path: Path, backend: str, **given: Any) -> Model:
        """With weights and cache in f32. Skips where the backend does not run here."""
        if reason := self.host.backends[backend].available():
            pytest.skip(f"backend {backend} does not run here: {reason}")
        options = {"cache_type_k": "f32", "cache_type_v": "f32", **given}
        return load(path, backend=backend, host=self.host, **options)

    def differences(self, reference: Reference, path: Path, backend: str, **options: Any) -> dict[str, float]:
        """For every way to run a model: the largest difference over the spread."""
        found = {}
        for way, run in WAYS.items():
            with self.load(path, backend, **{**WAY_OPTIONS.get(way, {}), **options}) as model:
                found[way] = run(model, reference)
        return found

    def check(self, name: str, reference: Reference, backend: str, *, path: Path | None = None, bound: float = 1e-4,
              **options: Any) -> None:
        """Compares in every way; remembers the largest difference for the summary."""
        spread = float(reference.logits.max() - reference.logits.min())
        assert spread > 5, "the weights are too tame for differences to show"
        found = self.differences(reference, path or reference.path, backend, **options)
        self.measured[name, backend] = max(found.values())
        assert {way: value for way, value in found.items() if value > bound} == {}


def resaved(path: Path, form: str, folder: Path) -> Path:
    """A saved model, its weights written by torch.save. form: "bin", "bin in shards", "old bin" (as before torch 1.6),
    "meta" or "meta in shards"."""
    import torch
    from safetensors.torch import load_file

    weights = {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    config = json.loads((path / "config.json").read_text())
    folder.mkdir()
    if form.startswith("meta"):
        ranks, params = meta_shards(weights, config, 1 if form == "meta" else None)
        (folder / "params.json").write_text(json.dumps(params))
        for rank, shard in enumerate(ranks):
            torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
        return folder
    (folder / "config.json").write_text(json.dumps(config))
    if form == "bin in shards":
        names, places = list(weights), dict[str, str]()
        for i in range(3):
            file = f"pytorch_model-{i + 1:05d}-of-00003.bin"
            torch.save({name: weights[name] for name in names[i::3]}, folder / file)
            places |= dict.fromkeys(names[i::3], file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        module = torch.nn.ParameterDict({name.replace(".", "-"): tensor for name, tensor in weights.items()})
        saved = module.state_dict()  # an OrderedDict with _metadata
        for name in list(saved):
            saved[name.replace("-", ".")] = saved.pop(name)
        torch.save(saved, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old bin")
    return folder


def meta_shards(weights: Mapping[str, Any], config: Mapping[str, Any], count: int | None,
                ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """As Meta saves LLaMA: rotated pairs beside one another, divided among the ranks. count: None for the fewest that
    share the heads evenly."""
    import torch

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width, rope = config["hidden_size"], config["rope_parameters"]
    count = count or next(n for n in range(2, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0))
    rows, columns, copies, keys = "rows", "columns", "copies", "keys"
    names = {"model.embed_tokens": ("tok_embeddings", rows if rope["rope_theta"] == 500000 else columns),
             "model.norm": ("norm", copies), "lm_head": ("output", rows),
             "self_attn.q_proj": ("attention.wq", rows), "self_attn.k_proj": ("attention.wk", keys),
             "self_attn.v_proj": ("attention.wv", keys), "self_attn.o_proj": ("attention.wo", columns),
             "mlp.gate_proj": ("feed_forward.w1", rows), "mlp.down_proj": ("feed_forward.w2", columns),
             "mlp.up_proj": ("feed_forward.w3", rows), "input_layernorm": ("attention_norm", copies),
             "post_attention_layernorm": ("ffn_norm", copies)}
    shards: list[dict[str, Any]] = [{"rope.freqs": torch.ones(width // heads // 2)} for _ in range(count)]
    for name, tensor in {"lm_head.weight": weights["model.embed_tokens.weight"], **weights}.items():
        layer = ".".join(name.split(".")[1:3]) + "." if ".layers." in name else ""
        ours, how = names[name.removeprefix("model." + layer if layer else "").removesuffix(".weight")]
        if ours in ("attention.wq", "attention.wk"):
            tensor = tensor.view(-1, 2, width // heads // 2, width).transpose(1, 2).reshape(tensor.shape)
        if how == copies:
            parts = [tensor] * count
        elif how == keys and kv_heads < count:
            parts = [part for part in tensor.tensor_split(kv_heads) for _ in range(count // kv_heads)]
        else:
            parts = tensor.tensor_split(count, dim=int(how == columns))
        for shard, part in zip(shards, parts, strict=True):
            shard[layer + ours + ".weight"] = part.contiguous().clone()
    params = {"dim": width, "n_layers": config["num_hidden_layers"], "n_heads": heads, "n_kv_heads": kv_heads,
              "norm_eps": config["rms_norm_eps"], "vocab_size": -1, "multiple_of": 256,
              "rope_theta": rope["rope_theta"]}
    if rope["rope_type"] == "llama3":
        params |= {"use_scaled_rope": True, "rope_scaling_factor": rope["factor"]}
    return shards, params


def prefill(model: Model, reference: Reference) -> float:
    return reference.difference(model.logits(reference.ids.tolist()))


def one_by_one(model: Model, reference: Reference) -> float:
    cache = model.plan.new_cache()
    rows = [model.plan.forward(Batch(np.array([token], np.int32), np.array([[i]], np.int32), np.zeros(1, np.int32),
                                     np.zeros(1, np.int32)), cache) for i, token in enumerate(reference.ids)]
    return reference.difference(np.concatenate(rows))


def beside_others(model: Model, reference: Reference) -> float:
    """Three sequences, mixed token by token, the first a little ahead."""
    cache = model.plan.new_cache()
    tokens = np.stack([reference.ids, *reference.others])  # (sequences, tokens)
    wanted = np.stack([reference.logits, *reference.others_logits])
    ours = np.empty_like(wanted)
    step, done = 5, np.zeros(3, np.int64)
    while (done < tokens.shape[1]).any():
        place = [(s, int(done[s]) + j) for j in range(step + 3) for s in range(3)
                 if j < step + 3 * (s == 0) and done[s] + j < tokens.shape[1]]
        sequence, position = (np.array(column, np.int32) for column in zip(*place, strict=True))
        ours[sequence, position] = model.plan.forward(
            Batch(tokens[sequence, position].astype(np.int32), position[None], sequence,
                  np.arange(len(place), dtype=np.int32)), cache)
        done = np.minimum(done + step + np.array([3, 0, 0]), tokens.shape[1])
    return max(reference.difference(row, right) for row, right in zip(ours, wanted, strict=True))


WAYS: Mapping[str, Callable[[Model, Reference], float]] = {
    "prefill": prefill, "prefill in parts": prefill, "one by one": one_by_one, "beside others": beside_others}
WAY_OPTIONS: Mapping[str, dict[str, Any]] = {"prefill in parts": {"batch": 7}, "beside others": {"sequences": 3}}


@pytest.fixture(scope="session")
def parity(tmp_path_factory: pytest.TempPathFactory, host: Host, pytestconfig: pytest.Config) -> Parity:
    return Parity(tmp_path_factory.mktemp("parity"), host, pytestconfig.stash.setdefault(MEASURED, {}))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.fixture
def saved_again() -> Callable[[Path, str, Path], Path]:
    """A function: a saved model, the form its weights shall have, and a new folder -> that folder."""
    return resaved


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[[Path, Callable[[dict[str, Any]], None]], Path]:
    """A function: a saved model and what to do with its config -> the same model with that config."""

    def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        target = tmp_path / "rewritten"
        target.mkdir()
        for file in path.iterdir():
            (target / file.name).symlink_to(file)
        config = json.loads((path / "config.json").read_text())
        change(config)
        (target / "config.json").unlink()
        (target / "config.json").write_text(json.dumps(config))
        return target

    return rewrite


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured = config.stash.get(MEASURED, {})
    if measured:
        terminalreporter.section("largest difference of logits, over their spread")
        for (name, backend), value in measured.items():
            terminalreporter.write_line(f"{value:9.2e}  {backend:6} {name}")
