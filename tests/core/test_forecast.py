"""What is said of a model before its weights are there, compared with what it takes once they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bestiary.scaffold
from bestiary.backend import Backend, Limits
from bestiary.canonical import to_canonical
from bestiary.convert import convert, recipe_for
from bestiary.errors import BestiaryError
from bestiary.forecast import forecast
from bestiary.host import Host, HostSettings
from bestiary.machine import memory
from bestiary.past import compiled, needed
from bestiary.saving import save_as
from bestiary.tensor import Absent
from bestiary.testing.tiny import Model, Piece, Runs, make_model, random_ids, running_backends
from bestiary_plugins.demo.beasts import publish
from tests.loaders import quantized_folders as folders
from tests.loaders import test_quantized_awq as awq

SCAFFOLD = Path(bestiary.scaffold.__file__).parent
FAMILIES = sorted(Host(HostSettings(names=())).architectures)


def outline(folder: Path) -> Path:
    """A copy of all but the weights, under the same name."""
    bare = folder.parent / "bare" / folder.name
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    return bare


def test_a_third_partys_family_and_writer_are_asked_too(tmp_path: Path) -> None:
    host = Host(HostSettings(names=(), files=(str(SCAFFOLD / "architecture.py"), str(SCAFFOLD / "writer.py"))))
    publish(host.architectures["gecko"], tmp_path / "m", 3, vocab_size=199)
    for row in forecast(outline(tmp_path / "m"), host)["types"]:
        saved = save_as(tmp_path / "m", tmp_path / f"{row['type']}.gguf", row["type"], host)
        assert row["types"] == saved.types and abs(row["bytes"] - saved.bytes) <= 32
    checkpoint, _ = to_canonical(host.open(tmp_path / "m"), host.architectures["gecko"])
    host.writers["magpie"].save(checkpoint, tmp_path / "m.magpie", host)
    header = len((tmp_path / "m.magpie").read_bytes().partition(b"\n")[0]) + 1
    assert host.writers["magpie"].size(checkpoint, host) == (tmp_path / "m.magpie").stat().st_size - header


def by_type(facts: dict[str, Any]) -> dict[str, Any]:
    return {row["type"]: row for row in facts["types"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_type_of_every_family_has_the_size_that_was_foretold(host: Host, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "m"
    publish(host.architectures[family], folder, 3)
    facts = forecast(outline(folder), host)
    assert (facts["architecture"], facts["tokenizer_estimated"]) == (family, False)
    assert list(by_type(facts)) == sorted(by_type(facts), key=lambda name: -by_type(facts)[name]["bytes"])
    assert by_type(facts).keys() == set(host.quantizers)
    for name, row in by_type(facts).items():
        saved = save_as(folder, tmp_path / f"{name}.gguf", name, host, architecture=family)
        assert row["types"] == saved.types
        assert facts["weights"] == sum(entry["weights"] for entry in saved.types.values())
        assert abs(row["bytes"] - saved.bytes) <= 32, name  # a tensor's alignment: the tokenizer was counted apart
    for row in forecast(folder, host)["types"]:  # with the weights there
        assert row == by_type(facts)[row["type"]]


def test_what_is_quantized_is_foretold_as_it_is_too(host: Host, tmp_path: Path) -> None:
    publish(host.architectures["llama"], tmp_path / "m", 3)
    save_as(tmp_path / "m", tmp_path / "m.gguf", "q5_1", host)
    facts = forecast(tmp_path / "m.gguf", host)
    assert by_type(facts).keys() == {"as it is", *host.quantizers}
    saved = save_as(tmp_path / "m.gguf", tmp_path / "again.gguf", None, host)
    row = by_type(facts)["as it is"]
    assert row["types"] == saved.types and abs(row["bytes"] - saved.bytes) <= 32
    assert row["run_bytes"] < by_type(facts)["f32"]["run_bytes"]
    assert {**row, "type": "q5_1"} == by_type(facts)["q5_1"]
    folder = folders.write(tmp_path / "made", awq.packer(), awq.SECTION).quantized
    saved = save_as(folder, tmp_path / "awq.gguf", None, host)
    assert by_type(forecast(folder, host))["as it is"]["types"] == saved.types
    assert "as it is" not in by_type(forecast(tmp_path / "m", host))


@pytest.mark.parametrize(("family", "changed"), [*((family, {}) for family in FAMILIES), ("llama", {"head_dim": 40})])
def test_a_full_cache_takes_what_was_foretold(host: Host, family: str, changed: dict[str, Any]) -> None:
    model = made(host, family, **changed)
    for backend in telling(host):
        for kind in backend.cache_types:
            limits = Limits(300, sequences=2, batch=300, threads=1, cache_type_k=kind, cache_type_v="f16")
            needs = needed(backend, model.graph, model.tensors, limits)
            plan = compiled(backend, model.graph, model.tensors, limits)
            cache, runs = plan.new_cache(), Runs(plan, model.layout)
            for sequence in range(2):
                ids = random_ids(model.graph.vocabulary - 20, 300)
                runs.forward(cache, Piece(sequence, ids, 0, 300), wanted=[299])
            assert needs is not None and needs.cache == cache.nbytes > 0
            plan.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_packed_into_what_was_foretold(host: Host, family: str) -> None:
    model = made(host, family)
    for backend in telling(host):
        for quantizer in host.quantizers.values():
            tensors = convert(model.checkpoint, model.graph, recipe_for(quantizer), host).tensors
            absent = {name: Absent(tensor.shape, tensor.encoding) for name, tensor in tensors.items()}
            needs = needed(backend, model.graph, absent, Limits(64))
            plan = backend.compile(model.graph, tensors, Limits(64, threads=1))
            held: Any = getattr(plan, "weights", None)
            assert needs is not None and needs.weights == pytest.approx(held.nbytes, rel=0.001)
            plan.close()


def made(host: Host, family: str, **changed: Any) -> Model:
    architecture = host.architectures[family]
    return make_model(architecture, {**architecture.example_config(), "max_position_embeddings": 512,
                                     "n_positions": 512, **changed})


def telling(host: Host) -> list[Backend]:
    """The backends that say what they take."""
    return [backend for backend in running_backends(host).values() if type(backend).needs is not Backend.needs]


def config_only(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **changed}))
    return folder


TINY = {"model_type": "llama", "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 6, "vocab_size": 199, "max_position_embeddings": 128}


def test_a_tokenizer_that_is_not_there_is_estimated(host: Host, tmp_path: Path) -> None:
    facts = forecast(config_only(tmp_path / "m"), host)
    assert facts["tokenizer_estimated"] and facts["tokenizer_bytes"] > 199 * 40
    bare = by_type(facts)["f32"]["bytes"] - facts["tokenizer_bytes"]
    assert 0 < bare - 4 * facts["weights"] < 5000  # the header
    assert forecast(tmp_path / "m" / "config.json", host)["types"] == facts["types"]


def test_an_index_tells_what_a_config_does_not(host: Host, tmp_path: Path) -> None:
    """Whether there is an output matrix of its own stands in no config of some families."""
    config = {**host.architectures["bloom"].example_config()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tied = forecast(tmp_path, host)["weights"]
    names = {"lm_head.weight": "a.bin", "word_embeddings.weight": "a.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert forecast(tmp_path, host)["weights"] == tied + config["vocab_size"] * config["hidden_size"]
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": ["a"]}))
    with pytest.raises(BestiaryError, match="weight_map"):
        forecast(tmp_path, host)


def test_a_clone_without_git_lfs_is_enough(host: Host, tmp_path: Path) -> None:
    facts = forecast(config_only(tmp_path / "m"), host)
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / "m" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert forecast(tmp_path / "m", host) == facts


def test_the_cache_grows_with_the_context_and_the_files_do_not(host: Host, tmp_path: Path) -> None:
    folder = config_only(tmp_path / "m")
    short, long = (forecast(folder, host, context) for context in (None, 1024))
    assert (short["context"], long["context"], long["made_for"]) == (128, 1024, 128)
    assert [row["bytes"] for row in short["types"]] == [row["bytes"] for row in long["types"]]
    assert all(4 * count == long["cache"][kind] for kind, count in short["cache"].items())


def test_a_context_that_none_can_have_is_refused(host: Host, tmp_path: Path) -> None:
    for context in (0, -1, 10 ** 12):
        with pytest.raises(BestiaryError, match=f"context = {context}; it must be from 1 to"):
            forecast(config_only(tmp_path / "m"), host, context)


@pytest.mark.parametrize(("changed", "said"), [
    ({"vocab_size": None}, "the config has no vocab_size"),
    ({"model_type": "unicorn"}, "unknown architecture 'unicorn'; known: .*llama"),
    ({"hidden_size": "wide"}, "hidden_size = 'wide' in the config; it must be an integer"),
    ({"hidden_size": 10 ** 30}, "hidden_size = 10+ in the config; it must be an integer"),
    ({"num_hidden_layers": 10 ** 9}, "num_hidden_layers = 1000000000 in the config; it must be an integer"),
    ({"is_causal": False}, "is_causal = False is not implemented"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = 'gptq'; quantized folders"),
])
def test_a_config_that_leads_to_no_model_is_refused_in_a_line(
        host: Host, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BestiaryError, match=said) as caught:
        forecast(config_only(tmp_path / "m", **changed), host)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{\"model_type\": 3}", "\0" * 40, "{\"a\": NaN}"])
def test_a_damaged_config_is_refused_in_a_line(host: Host, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(BestiaryError) as caught:
            forecast(path, host)
        assert "\n" not in str(caught.value)


def test_who_says_nonsense_is_named(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config_only(tmp_path / "m")
    for registry, method, answer, said in (
            (host.writers, "size", -1, "writer gguf .* a file will have int -1 bytes"),
            (host.backends, "needs", 3, "backend .* not Needs or None"),
            (host.loaders, "outline", 3, "loader huggingface .* not a Checkpoint")):
        with monkeypatch.context() as patch:
            for item in registry.values():
                patch.setattr(type(item), method, lambda *_, answer=answer: answer)
            with pytest.raises(BestiaryError, match=said):
                forecast(folder, host)


def test_a_backend_that_does_not_say_leaves_the_files_sizes(
        host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in host.backends.values():
        monkeypatch.setattr(type(backend), "needs", Backend.needs)
    facts = forecast(config_only(tmp_path / "m"), host)
    assert facts["cache"] == {} and all(row["bytes"] and row["run_bytes"] is row["fits"] is None
                                        for row in facts["types"])


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    limit, none = tmp_path / "memory.max", tmp_path / "none"
    limit.write_text("123456789\n")
    none.write_text("max\n")
    machine = memory((none, tmp_path / "missing"))
    assert machine is None or machine > 10 ** 8
    assert machine is None or memory((none, limit)) == min(machine, 123456789)
