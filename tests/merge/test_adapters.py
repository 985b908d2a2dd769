"""LoRA adapters as PEFT saves them: the sum is that of the formula, for each variant; others are refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bestiary.canonical import to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.encoding import BF16
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.inspection import inspect
from bestiary.low_rank import ROWS as BLOCK
from bestiary.low_rank import LowRank
from bestiary.merge import check_vocabulary, merged
from bestiary.merging import merge_as
from bestiary.model import load, load_tokenizer
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor
from tests.cli.conftest import Cli

from .conftest import (
    DOWN,
    EMBEDDING,
    KEY,
    OUTPUT,
    QUERY,
    ROWS,
    Array,
    Arrays,
    Zoo,
    arrays,
    config_of,
    copied,
    plain_merge,
    write,
)

PREFIX = "base_model.model."


def overlay(host: Host, base: Path, *adapters: Path, **given: Any) -> Checkpoint:
    return merged(host.open(base), None, [host.open(path) for path in adapters], lambda found: host.architecture_of(
        found.config, found.tokenizer), **given)


def agrees(found: Checkpoint, wanted: Mapping[str, Array]) -> bool:
    """With sums in float64: they are rounded once to f16, and each step of float32 before adds less than a thousandth
    of that."""
    return found.tensors.keys() == wanted.keys() and all(
        float(np.abs(tensor.array() - wanted[name]).max()) <= 2.0 ** -11 * 1.001 * float(np.abs(wanted[name]).max())
        for name, tensor in found.tensors.items())


def embeddings(rows: int, seed: int = 8) -> Arrays:
    """Whole matrices with more rows than the model's."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal((rows, 96)) * 0.1).astype(np.float32) for name in (EMBEDDING, OUTPUT)}


def test_what_is_added_is_the_product(zoo: Zoo, host: Host) -> None:
    adapter = zoo.adapter("lora")
    found = overlay(host, zoo.base(), adapter)
    assert agrees(found, plain_merge(arrays(zoo.base()), adapter))
    moved = {name for name, array in arrays(zoo.base()).items()
             if not np.array_equal(found.tensors[name].array(), array.astype(np.float32))}
    assert moved == {QUERY, KEY, DOWN}
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"f16"}
    assert found.config == config_of(zoo.base()) and found.tokenizer == host.open(zoo.base()).tokenizer


@pytest.mark.parametrize(("config", "factors"), [
    ({"use_rslora": True}, {QUERY: 8 / math.sqrt(4)}),
    ({"lora_alpha": 3.5}, {QUERY: 3.5 / 4}),
    ({"alpha_pattern": {"q_proj": 2}}, {QUERY: 2 / 4, KEY: 2.0}),
    ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 6, "k_proj": 1}}, {QUERY: 6 / 4, KEY: 1 / 4, DOWN: 2.0}),
    ({"alpha_pattern": {"self_attn.q_proj": 16, "proj": 1}, "use_rslora": True}, {QUERY: 16 / 2, KEY: 8 / 2}),
    ({"lora_alpha": None}, {QUERY: 8 / 4})])
def test_the_factor_is_that_of_the_config(zoo: Zoo, host: Host, config: dict[str, Any],
                                          factors: dict[str, float]) -> None:
    adapter = zoo.adapter("lora", **config)
    found = overlay(host, zoo.base(), adapter)
    for name, factor in factors.items():
        wanted = plain_merge(arrays(zoo.base()), adapter, factor=factor)[name]
        assert np.abs(found.tensors[name].array() - wanted).max() <= 2.0 ** -10 * np.abs(wanted).max()


def test_ranks_may_differ(zoo: Zoo, host: Host) -> None:
    random = np.random.default_rng(5)
    module = f"{PREFIX}{QUERY.removesuffix('.weight')}"
    changes = {f"{module}.lora_A.weight": random.standard_normal((2, 96)).astype(np.float32),
               f"{module}.lora_B.weight": random.standard_normal((96, 2)).astype(np.float32)}
    adapter = zoo.adapter("lora", changes=changes, rank_pattern={"q_proj": 2})
    assert agrees(overlay(host, zoo.base(), adapter), plain_merge(arrays(zoo.base()), adapter))
    with pytest.raises(BestiaryError, match=r"lora_B of \[96, 2\] .* with r = 4 they are of \[rows, 4\]"):
        host.open(zoo.adapter("wrong", changes=changes))


def test_columns_and_rows_may_have_changed_places(zoo: Zoo, host: Host) -> None:
    """GPT-2 keeps its matrices so; its published files lack the name of the body, which adapters have."""
    base = zoo.model("gpt2", 4, family="gpt2")
    bare = {name.removeprefix("transformer."): array for name, array in arrays(base).items()}
    names = [name for name in bare if name.endswith(("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight"))]
    adapter = zoo.adapter("lora", targets=tuple(names), model=write(zoo.folder / "bare", bare, config_of(base), ROWS),
                          fan_in_fan_out=True)
    wanted = plain_merge(bare, adapter)
    assert len(names) > 2 and agrees(overlay(host, zoo.folder / "bare", adapter), wanted)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace(PREFIX, f"{PREFIX}transformer."): array for name, array in tensors.items()},
              adapter / "adapter_model.safetensors")
    assert agrees(overlay(host, zoo.folder / "bare", adapter), wanted)
    flat = copied(adapter, "flat")
    settings = json.loads((flat / "adapter_config.json").read_text())
    (flat / "adapter_config.json").write_text(json.dumps({**settings, "fan_in_fan_out": False}))
    assert agrees(overlay(host, zoo.folder / "bare", flat), wanted)  # PEFT corrects it too, by what the module is


def test_a_square_matrix_that_is_said_to_lie_on_its_side_lies_as_its_module(zoo: Zoo, host: Host) -> None:
    adapter = zoo.adapter("lora", targets=(QUERY,), fan_in_fan_out=True)
    assert agrees(overlay(host, zoo.base(), adapter), plain_merge(arrays(zoo.base()), adapter))


@pytest.mark.parametrize("what", ["embedding", "output", "both", "added to the embedding", "added to the output"])
@pytest.mark.parametrize("form", ["huggingface", "gguf", "with a copy"])
def test_an_embedding_that_is_the_output_matrix_too_is_trained_alone(zoo: Zoo, host: Host, what: str,
                                                                     form: str) -> None:
    """The other keeps what it had, in a matrix of its own; so does the model that PEFT trains."""
    plain = zoo.model("tied", 4, tie_word_embeddings=True)
    weights = {name: array for name, array in arrays(plain).items() if name != OUTPUT}
    base = write(zoo.folder / "base", {**weights, **({OUTPUT: weights[EMBEDDING]} if form == "with a copy" else {})},
                 config_of(plain), ROWS)
    wanted = {name: array.astype(np.float64) for name, array in {**weights, OUTPUT: weights[EMBEDDING]}.items()}
    matrices, changes, saved = embeddings(ROWS), {}, {}
    if what.startswith("added"):
        module = EMBEDDING if what.endswith("embedding") else OUTPUT
        kind, end = ("embedding_", "") if module == EMBEDDING else ("", ".weight")
        up, down = (np.ones(shape, np.float32) for shape in ((96, 4), (4, ROWS)))
        sides = (down, up) if kind else (up.T.copy(), down.T.copy())
        changes = {f"{PREFIX}{module[:-7]}.lora_{kind}{side}{end}": array for side, array in zip("AB", sides,
                                                                                               strict=True)}
        wanted[module] += 2 * (up @ down).T
    else:
        saved = {name: matrices[name] for name in (EMBEDDING, OUTPUT) if what in ("both", {
            EMBEDDING: "embedding", OUTPUT: "output"}[name])}
        wanted.update({name: array.astype(np.float64) for name, array in saved.items()})
    adapter = zoo.adapter("lora", targets=(), changes=changes, saved=saved)
    if form == "gguf":
        base = save_as(base, zoo.folder / "base.gguf", "f16", host).path
    found = overlay(host, base, adapter)
    assert agrees(found, wanted) and found.config["tie_word_embeddings"] is False
    out = save_as(base, zoo.folder / "out.gguf", "f16", host, adapters=[adapter]).path
    assert "output.weight" in host.open(out).tensors


def test_one_matrix_for_both_stays_one_where_nothing_parts_them(zoo: Zoo, host: Host) -> None:
    base = zoo.model("tied", 4, tie_word_embeddings=True)
    same = dict.fromkeys((EMBEDDING, OUTPUT), embeddings(ROWS + 3)[EMBEDDING])
    for name, saved in (("plain", None), ("grown", same)):
        found = overlay(host, base, zoo.adapter(name, model=base, saved=saved))
        assert found.config["tie_word_embeddings"] is True and OUTPUT not in found.tensors
    half = zoo.adapter("half", model=base, saved={EMBEDDING: same[EMBEDDING]})
    with pytest.raises(BestiaryError, match=f"nothing of that size for {OUTPUT}.*the other half is missing"):
        overlay(host, base, half)


def test_families_whose_embedding_is_their_output_matrix_can_have_two(host: Host, tmp_path: Path) -> None:
    """One row that was trained is enough."""
    apart = 0
    for family in host.architectures:
        zoo = Zoo(tmp_path / family, host)
        try:
            base = zoo.model("base", 3, family=family, tie_word_embeddings=True)
            opened = host.open(base)
            canonical, graph = to_canonical(opened, host.architectures[family])
        except BestiaryError:
            continue
        name = next((name for name, tensor in opened.tensors.items() if tensor.shape == (ROWS, 96)), None)
        if "output.weight" in graph.weights or name is None:
            continue
        trained = arrays(base)[name].astype(np.float32)
        trained[77] += 1
        adapter = zoo.adapter("lora", targets=(), saved={name: trained}, model=base)
        if family == "chatglm1":  # its program has no second matrix
            with pytest.raises(BestiaryError, match="chatglm1 has one matrix for both"):
                overlay(host, base, adapter)
            continue
        found = overlay(host, base, adapter)
        tensors = to_canonical(found, host.architectures[family])[0].tensors
        assert np.abs(tensors["token_embd.weight"].array() - tensors["output.weight"].array()).max() > 0.9, family
        apart += 1
    assert apart > 5


def test_biases_take_the_places_of_the_models(zoo: Zoo, host: Host) -> None:
    base = zoo.model("biased", 4, attention_bias=True)
    bias = QUERY.replace("weight", "bias")
    adapter = zoo.adapter("lora", model=base, bias="lora_only", saved={bias: np.full(96, 0.25, np.float32)})
    assert agrees(overlay(host, base, adapter), plain_merge(arrays(base), adapter))


def test_an_embedding_is_added_to(zoo: Zoo, host: Host) -> None:
    """Its matrices are named otherwise, and their product lies on its side."""
    random = np.random.default_rng(6)
    down, up = (random.standard_normal(shape).astype(np.float32) for shape in ((4, ROWS), (96, 4)))
    module = f"{PREFIX}model.embed_tokens"
    adapter = zoo.adapter("lora", targets=(), changes={f"{module}.lora_embedding_A": down,
                                                       f"{module}.lora_embedding_B": up})
    wanted = {name: array.astype(np.float64) for name, array in arrays(zoo.base()).items()}
    wanted[EMBEDDING] += 2 * (up.astype(np.float64) @ down).T
    assert agrees(overlay(host, zoo.base(), adapter), wanted)


@pytest.mark.parametrize("spelling", ["{}.{}", "{}.modules_to_save.{}", "{}.modules_to_save.default.{}",
                                      "{}.base_layer.{}"])
def test_a_grown_vocabulary_takes_the_models_place(zoo: Zoo, host: Host, spelling: str) -> None:
    rows = ROWS + 30
    changes = {PREFIX + spelling.format(name.removesuffix(".weight"), "weight"): array
               for name, array in embeddings(rows).items()}
    adapter = zoo.adapter("lora", changes=changes, pieces=rows, modules_to_save=["embed_tokens", "lm_head"])
    found = overlay(host, zoo.base(), adapter)
    plain = zoo.adapter("plain", saved=embeddings(rows))
    assert agrees(found, plain_merge(arrays(zoo.base()), plain))
    assert found.config == {**config_of(zoo.base()), "vocab_size": rows}
    assert found.tokenizer.files == host.open(adapter).tokenizer.files
    path = save_as(zoo.base(), zoo.folder / "out.gguf", "f16", host, adapters=[adapter]).path
    with load(path, "numpy", host=host) as model:
        assert model.plan.graph.vocabulary == model.tokenizer.size == rows


def test_what_is_saved_twice_is_taken_once_and_the_untrained_not_at_all(zoo: Zoo, host: Host) -> None:
    """As PEFT saves a model whose vocabulary it has seen grow."""
    saved = embeddings(ROWS + 4)
    again = {f"{PREFIX}{name.removesuffix('.weight')}.{part}.weight": array if part == "modules_to_save" else 9 * array
             for name, array in saved.items() for part in ("modules_to_save", "original_module")}
    plain, twice = zoo.adapter("plain", saved=saved), zoo.adapter("twice", saved=saved, changes=again)
    assert agrees(overlay(host, zoo.base(), twice), plain_merge(arrays(zoo.base()), plain))


def test_ids_that_an_adapter_does_not_say_are_the_bases(zoo: Zoo, host: Host) -> None:
    config = {**config_of(zoo.base()), "bos_token_id": 1, "eos_token_id": 2}
    (zoo.base() / "config.json").write_text(json.dumps(config))
    found = overlay(host, zoo.base(), zoo.adapter("lora", pieces=ROWS)).tokenizer
    assert (found.bos, found.eos, found.ends) == (1, 2, (2,))


def test_several_are_put_on_in_their_order(zoo: Zoo, host: Host) -> None:
    """The second's embedding takes the place of the first's; what both add is added to it."""
    first = zoo.adapter("first", 3, saved=embeddings(ROWS + 10, 8), pieces=ROWS + 10)
    second = zoo.adapter("second", 4, targets=(QUERY, EMBEDDING), saved=embeddings(ROWS + 11, 9), pieces=ROWS + 11,
                         changes={f"{PREFIX}model.embed_tokens.lora_A.weight": None,
                                  f"{PREFIX}model.embed_tokens.lora_B.weight": None})
    found = overlay(host, zoo.base(), first, second)
    assert agrees(found, plain_merge(arrays(zoo.base()), first, second))
    assert found.config["vocab_size"] == ROWS + 11 == load_tokenizer(second, host).size
    assert found.tokenizer.files == host.open(second).tokenizer.files
    with pytest.raises(BestiaryError, match="a smaller vocabulary .* named in the order in which they were made"):
        overlay(host, zoo.base(), second, first)


def test_sums_of_several_are_rounded_once(zoo: Zoo, host: Host) -> None:
    """Two merges, one after the other, round twice: they are near, and may differ in the last bit."""
    adapters = [zoo.adapter(f"lora{seed}", seed, targets=(DOWN,)) for seed in (3, 4, 5)]
    base = arrays(zoo.base())[DOWN].astype(np.float32)
    for path in adapters:
        added = host.open(path).adapter
        assert added is not None
        base = base + added.added[DOWN].array()
    once = overlay(host, zoo.base(), *adapters).tensors[DOWN]
    assert np.array_equal(once.array(), base.astype(np.float16).astype(np.float32))
    path = zoo.base()
    for i, adapter in enumerate(adapters):
        path = save_as(path, zoo.folder / f"step{i}.gguf", "f16", host, adapters=[adapter]).path
    steps = host.open(path).tensors["blk.1.ffn_down.weight"].array()
    assert 0 < np.abs(steps - once.array()).max() <= 2.0 ** -10 * np.abs(steps).max()


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
@pytest.mark.parametrize("form", ["huggingface", "gguf"])
def test_one_pass_is_two_steps_bit_for_bit(zoo: Zoo, host: Host, cli: Cli, kind: str, form: str) -> None:
    loras = [word for seed in (3, 4) for word in ("--lora", zoo.adapter(f"lora{seed}", seed))]
    base = zoo.base() if form == "huggingface" else save_as(zoo.base(), zoo.folder / "b.gguf", "f16", host).path
    whole, one, two, three = (zoo.folder / name for name in ("merged.gguf", "one.gguf", "two.gguf", "three.gguf"))
    assert cli("merge", "--base", base, *loras, "--target", whole).status == 0
    assert cli("convert", "--base", base, *loras, one, "--outtype", kind).status == 0
    assert cli("convert", whole, two, "--outtype", kind).status == 0
    assert cli("convert", base, three, *loras, "--outtype", kind).status == 0
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


@pytest.mark.parametrize("word", ["", ",", "lora,", " ,lora"])
def test_an_empty_path_is_no_adapter(zoo: Zoo, cli: Cli, word: str) -> None:
    """And not the folder one is in."""
    out, given = zoo.folder / "out.gguf", word.replace("lora", str(zoo.adapter("lora")))
    for line in (("merge", "--target", out), ("convert", out)):
        done = cli(*line, "--base", zoo.base(), "--lora", given)
        assert done.status == 1 and done.err.count("\n") == 1 and "--lora names no adapter" in done.err
        assert not out.exists()


def test_one_adapter_may_be_named_without_a_list(zoo: Zoo, host: Host) -> None:
    out, adapter = zoo.folder / "out.gguf", str(zoo.adapter("lora"))
    merge_as(zoo.base(), None, adapter, out, host)
    assert save_as(zoo.base(), zoo.folder / "two.gguf", "f16", host, adapters=adapter).path.read_bytes() == \
        out.read_bytes()


def test_an_adapter_may_be_what_is_converted(zoo: Zoo, host: Host, cli: Cli) -> None:
    adapter, one, two = zoo.adapter("lora"), zoo.folder / "one.gguf", zoo.folder / "two.gguf"
    assert cli("convert", adapter, one, "--base", zoo.base()).status == 0
    assert cli("convert", "--base", zoo.base(), "--lora", adapter, "--outfile", two).status == 0
    assert one.read_bytes() == two.read_bytes()


def test_a_row_is_the_same_in_every_range(zoo: Zoo) -> None:
    random = np.random.default_rng(1)
    up, down = (ArrayTensor(random.standard_normal(shape).astype(np.float32))
                for shape in ((3 * BLOCK + 7, 9), (9, 33)))
    for tensor in (LowRank(up, down, 0.3), LowRank(up, down, 0.3, transposed=True)):
        whole = tensor.array()
        product = up.array().astype(np.float64) @ down.array() * 0.3
        wanted = (product.T if whole.shape[0] == 33 else product).astype(np.float32)
        assert np.abs(whole - wanted).max() <= 1e-6
        for start in range(0, len(whole), 5):
            for stop in (start, start + 1, (start + len(whole)) // 2, len(whole)):
                if stop >= start:
                    assert np.array_equal(tensor.decode(start, stop), whole[start:stop])
    with pytest.raises(BestiaryError, match="have no product"):
        LowRank(up, up, 1.0)


def test_a_torch_file_is_read_too(zoo: Zoo, host: Host) -> None:
    found = overlay(host, zoo.base(), zoo.adapter("bin", file="bin"))
    assert agrees(found, plain_merge(arrays(zoo.base()), zoo.adapter("safe")))
    assert all(np.array_equal(tensor.array(), found.tensors[name].array())
               for name, tensor in pickle.loads(pickle.dumps(found)).tensors.items())


@pytest.mark.parametrize(("config", "words"), [
    ({"use_dora": True}, "use_dora = True is not implemented"),
    ({"peft_type": "LOHA"}, "peft_type = 'LOHA' is not implemented; known: LORA"),
    ({"peft_type": None}, "peft_type = None"),
    ({"lora_bias": True}, "lora_bias = True is not implemented"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' is not implemented"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication = "),
    ({"trainable_token_indices": [3]}, "trainable_token_indices = "),
    ({"something_new": 1}, "something_new = 1 is not implemented"),
    ({"r": 0}, "r = 0 in the config; it must be an integer from 1"),
    ({"r": 8}, "with r = 8 they are of"),
    ({"lora_alpha": "x"}, "lora_alpha = 'x' in the config"),
    ({"bias": "some"}, "bias = 'some' is not implemented"),
    ({"rank_pattern": {"(.+)+$": 4}}, "rank_pattern has the key"),
    ({"alpha_pattern": {".*q_proj": 4}}, "in its place a key for each module that it means will do, 'q_proj' for"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head', and no tensor is of it")])
def test_what_is_not_implemented_is_refused_by_key(zoo: Zoo, cli: Cli, config: dict[str, Any], words: str) -> None:
    adapter, out = zoo.adapter("lora"), zoo.folder / "out.gguf"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    done = cli("merge", "--base", zoo.base(), "--lora", adapter, "--target", out)
    assert done.status == 1 and done.err.count("\n") == 1 and words in done.err and not out.exists()


@pytest.mark.parametrize(("changes", "words"), [
    ({f"{PREFIX}{QUERY[:-7]}.lora_magnitude_vector": np.ones(96, np.float32)}, "lora_magnitude_vector' is not impl"),
    ({f"{PREFIX}{QUERY[:-7]}.lora_B.weight": None}, "there is lora_A alone; the file is incomplete"),
    ({f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight": np.ones((4, 96), np.float32),
      f"{PREFIX}model.layers.9.self_attn.q_proj.lora_B.weight": np.ones((96, 4), np.float32)},
     "made for another model (made for 'someone/base-hf')"),
    ({f"{PREFIX}{QUERY[:-7]}.lora_A.weight": np.ones((4, 64), np.float32)},
     "it holds [96, 64], and the model [96, 96]"),
    ({"model.x.weight": np.ones(3, np.float32)}, "the names in an adapter of PEFT begin with base_model.model."),
    ({f"{PREFIX}{EMBEDDING}": np.ones((ROWS + 3, 64), np.float32)}, f"it holds [{ROWS + 3}, 64], and the model"),
    ({f"{PREFIX}{DOWN}": np.ones((99, 160), np.float32)}, "it holds [99, 160], and the model [96, 160]"),
    ({f"{PREFIX}{EMBEDDING}": np.ones((ROWS + 3, 96), np.float32)}, f"tensor output.weight has shape [{ROWS}, 96]"),
    ({f"{PREFIX}model.layers.0.strange.weight": np.ones(3, np.float32)}, "llama does not know tensor")])
def test_what_does_not_fit_is_refused_in_words(zoo: Zoo, cli: Cli, changes: dict[str, Any], words: str) -> None:
    adapter, out = zoo.adapter("lora", changes=changes), zoo.folder / "out.gguf"
    done = cli("merge", "--base", zoo.base(), "--lora", adapter, "--target", out)
    assert done.status == 1 and done.err.count("\n") == 1 and words in done.err and not out.exists()


def test_a_truncated_adapter_is_refused_wherever_it_ends(zoo: Zoo, cli: Cli) -> None:
    out = zoo.folder / "out.gguf"
    for file in ("safetensors", "bin"):
        path = zoo.adapter(f"lora-{file}", file=file)
        weights = next(path.glob("adapter_model.*"))
        whole = weights.read_bytes()
        for size in (0, 7, 9, 200, len(whole) // 2, len(whole) - 1):
            weights.write_bytes(whole[:size])
            done = cli("merge", "--base", zoo.base(), "--lora", path, "--target", out)
            assert done.status == 1 and done.err.count("\n") == 1 and weights.name in done.err and not out.exists()
        weights.unlink()
        done = cli("merge", "--base", zoo.base(), "--lora", path, "--target", out)
        assert done.status == 1 and "neither adapter_model.safetensors nor adapter_model.bin" in done.err


def test_an_adapter_alone_says_what_it_wants(zoo: Zoo, host: Host, cli: Cli) -> None:
    adapter = zoo.adapter("lora")
    lines: list[tuple[str | Path, ...]] = [
        ("run", "-m", adapter, "-p", "x"), ("convert", adapter, zoo.folder / "out.gguf"),
        ("convert", zoo.base(), zoo.folder / "out.gguf", "--base", adapter)]
    for line in lines:
        done = cli(*line)
        assert done.status == 1 and "lora is an adapter and no model by itself" in done.err and "--base" in done.err
    lines = [("merge", "--base", zoo.base(), "--lora", zoo.base(), "--target", zoo.folder / "out.gguf"),
             ("merge", "--base", adapter, "--lora", adapter, "--target", zoo.folder / "out.gguf")]
    for line in lines:
        done = cli(*line)
        assert done.status == 1 and "adapter" in done.err
    (problem,) = inspect(adapter, host)["problems"]
    assert problem.startswith("an adapter, made for 'someone/base-hf': it adds to 3 tensors")


def test_another_base_by_name_is_said_once_and_not_refused(zoo: Zoo, cli: Cli) -> None:
    adapter = zoo.adapter("lora", base_model_name_or_path="decapoda-research/llama-7b-hf")
    done = cli("convert", "--base", zoo.base(), "--lora", adapter, zoo.folder / "a.gguf")
    assert done.status == 0 and done.err.count("\n") == 1 and "made for 'decapoda-research/llama-7b-hf'" in done.err
    done = cli("merge", "--base", zoo.base(), "--lora", adapter, "--target", zoo.folder / "m.gguf", "--check")
    assert done.status == 0 and done.err.count("\n") == 1 and "made for 'decapoda-research/llama-7b-hf'" in done.err
    named = Path(shutil.copytree(zoo.base(), zoo.folder / "LLaMA_7B"))
    assert not cli("convert", "--base", named, "--lora", adapter, zoo.folder / "b.gguf").err


@pytest.mark.parametrize(("rows", "pieces", "words"), [
    (49954, 49953, "Chinese-LLaMA's tokenizer.*The one that does is Chinese-Alpaca's tokenizer, of 49954"),
    (49953, 49954, "Chinese-Alpaca's tokenizer.*The one that does is Chinese-LLaMA's tokenizer, of 49953"),
    (49954, 32000, "LLaMA's own tokenizer.*does is Chinese-Alpaca's"), (32000, 49954, "does is LLaMA's own"),
    (32000, 32001, "one token more.*does is LLaMA's own"), (32001, 49953, "Chinese-LLaMA's.*LLaMA's own tokenizer, of"),
    (199, 200, "199 rows in its vocabulary, and the tokenizer 200"), (32000, 31999, "the tokenizer 31999 pieces: they"),
    (32001, 32000, None), (32001, 32001, None), (32000, 32000, None), (49954, 49954, None), (200, 199, None)])
def test_a_vocabulary_and_a_tokenizer_that_disagree(zoo: Zoo, host: Host, rows: int, pieces: int,
                                                    words: str | None) -> None:
    model, family = host.open(zoo.base()), host.architectures["llama"]
    if words is None:
        return check_vocabulary(model, rows, pieces, family)
    with pytest.raises(BestiaryError, match=words):
        check_vocabulary(model, rows, pieces, family)
    return None


def test_a_chinese_alpaca_of_true_size_wants_its_own_tokenizer(zoo: Zoo, host: Host, cli: Cli, data: Path) -> None:
    base = zoo.model("llama-7b", 1, vocab_size=32000, hidden_size=32, intermediate_size=32, num_attention_heads=2,
                     num_key_value_heads=2, num_hidden_layers=1)
    (base / "tokenizer.json").unlink()
    shutil.copyfile(data / "tokenizers/llama-tokenizer.model", base / "tokenizer.model")
    saved = {name: np.full((49954, 32), 0.01, np.float16) for name in (EMBEDDING, OUTPUT)}
    adapter = zoo.adapter("chinese-alpaca-lora-7b", targets=(QUERY,), saved=saved, model=base, file="bin",
                          base_model_name_or_path="decapoda-research/llama-7b-hf",
                          modules_to_save=["embed_tokens", "lm_head"])
    words, out = ("merge", "--base", base, "--lora", adapter, "--target"), zoo.folder / "out.gguf"
    done = cli(*words, out)
    assert done.status == 1 and "49954 rows in its vocabulary, and the tokenizer 32000 pieces (LLaMA's own" in done.err
    assert "Chinese-Alpaca's tokenizer, of 49954; --tokenizer FILE" in done.err and not out.exists()
    given = data / "tokenizers/chinese-alpaca-tokenizer.model"
    assert cli(*words, out, "--tokenizer", given).status == 0
    shutil.copyfile(given, adapter / "tokenizer.model")
    assert cli(*words, out, "--force").status == 0
    assert load_tokenizer(out, host).size == 49954


def test_adapters_of_every_family_are_put_on(host: Host, tmp_path: Path) -> None:
    """To the matrices that Hugging Face's names have, whatever becomes of them afterwards."""
    for family in host.architectures:
        zoo = Zoo(tmp_path / family, host)
        base = zoo.model("base", 3, family=family)
        targets = tuple(name for name, array in arrays(base).items()
                        if array.ndim == 2 and ".0." in name and "embed" not in name)
        adapter = zoo.adapter("lora", targets=targets, model=base)
        found = overlay(host, base, adapter)
        assert len(targets) > 2 and agrees(found, plain_merge(arrays(base), adapter)), family
        to_canonical(found, host.architectures[family])


def test_a_word_beside_base_and_adapters_is_never_taken_for_an_output_that_may_go(zoo: Zoo, cli: Cli) -> None:
    """It may be meant as a delta; --force would have replaced that."""
    base, delta, adapter, out = zoo.base(), zoo.delta(), zoo.adapter("lora"), zoo.folder / "out.gguf"
    before = {path: path.read_bytes() for path in (*delta.iterdir(), *adapter.iterdir())}
    lines: list[tuple[str | Path, ...]] = [
        (delta, "--force"), (delta,), (adapter, "--force"), (delta, out), (base, "--outfile", out)]
    for words in lines:
        done = cli("convert", *words, "--base", base, "--lora", adapter)
        assert done.status == 1 and done.err.count("\n") == 1 and "there is no SRC" in done.err, done.err
        assert not out.exists()
    assert before == {path: path.read_bytes() for path in (*delta.iterdir(), *adapter.iterdir())}
    assert cli("convert", "--base", base, "--lora", adapter, out).status == 0
    done = cli("convert", "--base", base, "--lora", adapter, out, "--force")
    assert done.status == 1 and f"--outfile {out} says that it is the output" in done.err
    assert cli("convert", "--base", base, "--lora", adapter, "--outfile", out, "--force").status == 0


def test_matrices_that_a_family_joins_may_have_been_added_to_one_by_one(host: Host, tmp_path: Path, cli: Cli) -> None:
    """Those that were not still have the type of the base."""
    for family in host.architectures:
        zoo = Zoo(tmp_path / family, host)
        base = zoo.model("base", 3, family=family)
        names = [name for name, array in arrays(base).items() if array.ndim == 2 and ".0." in name]
        for number, name in enumerate(names):
            adapter = zoo.adapter(f"lora{number}", targets=(name,), model=base)
            to_canonical(overlay(host, base, adapter, encoding=BF16), host.architectures[family])
    zoo = Zoo(tmp_path / "glm4", host)
    done = cli("merge", "--base", zoo.folder / "base", "--lora", zoo.folder / "lora0", "--type", "bf16", "--target",
               tmp_path / "out.gguf")
    assert done.status == 0 and "the same logits" in done.out


@pytest.mark.parametrize(("config", "absent"), [
    ({"target_modules": ["q_proj"]}, "tensor model.layers.1.self_attn.q_proj.weight, and holds nothing for it"),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}, "model.layers.1.self_attn.q_proj.weight, and"),
    ({"target_modules": ["o_proj"]}, "layers.0.self_attn.o_proj.weight, model.layers.1.self_attn.o_proj.weight, and"),
    ({"target_modules": ["lm_head"]}, "tensor lm_head.weight, and holds nothing for it: the file is incomplete"),
    ({"target_modules": ["model.layers.1.self_attn.k_proj", "mlp.down_proj"]}, "tensor model.layers.0.mlp.down_proj"),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, None),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, None),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, None),
    ({"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]}, None),
    ({"target_modules": ["query_key_value", "W_pack", "c_attn"]}, None),
    ({"target_modules": ".*layers.0.*q_proj"}, None), ({"target_modules": "all-linear"}, None),
    ({"target_modules": None}, None)])
def test_an_adapter_that_lacks_what_it_was_trained_on_is_incomplete(zoo: Zoo, host: Host, config: dict[str, Any],
                                                                    absent: str | None) -> None:
    """The tensors are those of the first layer's queries, the last's keys and one more."""
    adapter = zoo.adapter("lora", **config)
    if absent is None:
        overlay(host, zoo.base(), adapter)
        return
    with pytest.raises(BestiaryError) as caught:
        overlay(host, zoo.base(), adapter)
    assert absent in str(caught.value)
