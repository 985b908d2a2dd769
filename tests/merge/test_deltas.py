"""A base and a delta: the sum is that of numpy, in one pass or in two, whatever form the base has."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bestiary.canonical import from_canonical, to_canonical
from bestiary.checkpoint import Checkpoint
from bestiary.encoding import F16
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.merge import Sum, merged
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor, BlockTensor
from bestiary_plugins.encodings import Q4_K
from tests.cli.conftest import Cli
from tests.loaders.conftest import TorchFiles

from .conftest import EMBEDDING, OUTPUT, QUERY, ROWS, Arrays, Zoo, arrays, config_of, copied, plain_sum, write


def overlay(host: Host, delta: Path, base: Path, **given: Any) -> Checkpoint:
    return merged(host.open(delta), host.open(base), (), lambda found: host.architecture_of(
        found.config, found.tokenizer), **given)


def contents(checkpoint: Checkpoint) -> Arrays:
    return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def same(found: Arrays, wanted: Arrays) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def as_meta(zoo: Zoo, base: Path) -> Path:
    """The base as Meta publishes it, in two shards."""
    opened = zoo.host.open(base)
    family = zoo.host.architecture_of(opened.config, opened.tokenizer)
    theirs = from_canonical(to_canonical(opened, family)[0], family, "meta").tensors
    folder, config = zoo.folder / "meta", config_of(base)
    folder.mkdir()
    for rank in range(2):
        shard = {}
        for name, tensor in theirs.items():
            whole = tensor.array().astype(np.float16)
            columns = any(part in name for part in ("tok_embeddings", "attention.wo", "feed_forward.w2"))
            shard[name] = whole if whole.ndim == 1 else np.ascontiguousarray(
                np.array_split(whole, 2, axis=int(columns))[rank])
        (folder / f"consolidated.0{rank}.pth").write_bytes(TorchFiles.zip(shard, prefix=f"consolidated.0{rank}"))
    (folder / "params.json").write_text(json.dumps({
        "dim": config["hidden_size"], "multiple_of": 32, "n_heads": config["num_attention_heads"], "norm_eps": 1e-6,
        "n_kv_heads": config["num_key_value_heads"], "n_layers": config["num_hidden_layers"], "vocab_size": -1}))
    return folder


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, ROWS + 70])
def test_the_sum_is_that_of_numpy(zoo: Zoo, host: Host, rows: int) -> None:
    found = overlay(host, zoo.delta(rows), zoo.base())
    assert same(contents(found), {name: array.astype(np.float32) for name, array in
                                  plain_sum(zoo.delta(rows), zoo.base()).items()})
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"f16"}
    assert found.config == config_of(zoo.delta(rows)) and found.naming == "huggingface"
    wanted, given = arrays(zoo.target(rows)), contents(found)
    assert max(float(np.abs(given[name] - wanted[name].astype(np.float32)).max()) for name in wanted) < 5e-3


def test_new_rows_are_the_deltas_to_the_bit_and_the_old_are_not_wiped(zoo: Zoo, host: Host) -> None:
    delta = arrays(zoo.delta())
    delta[EMBEDDING][ROWS] = -0.0
    save_file(delta, zoo.delta() / "model.safetensors")
    found = overlay(host, zoo.delta(), zoo.base()).tensors
    for name in (EMBEDDING, OUTPUT):
        assert found[name].read(ROWS, ROWS + 1).tobytes() == delta[name][ROWS].tobytes()
        assert np.abs(found[name].decode(0, ROWS)).min(axis=1).max() > 0


def test_a_base_with_the_new_token_already_is_added_to_as_it_is(zoo: Zoo, host: Host) -> None:
    base = zoo.model("padded", 5, vocab_size=ROWS + 1)
    delta = zoo.delta(ROWS + 1, base=base, name="padded")
    found = contents(overlay(host, delta, base))
    assert same(found, {name: array.astype(np.float32) for name, array in plain_sum(delta, base).items()})
    assert np.abs(found[EMBEDDING] - arrays(zoo.target())[EMBEDDING].astype(np.float32)).max() < 5e-3


@pytest.mark.parametrize("form", ["meta", "gguf", "sharded", "bin"])
def test_the_base_may_have_any_form(zoo: Zoo, host: Host, form: str) -> None:
    base = zoo.base()
    if form == "meta":
        base = as_meta(zoo, base)
    elif form == "gguf":
        base = save_as(base, zoo.folder / "base.gguf", "f16", host).path
    elif form == "sharded":
        base = write(zoo.folder / "sharded", arrays(base), config_of(base), ROWS, shards=3)
    else:
        base = write(zoo.folder / "bin", {}, config_of(base), ROWS)
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(TorchFiles.zip(arrays(zoo.base())))
    assert same(contents(overlay(host, zoo.delta(), base)), contents(overlay(host, zoo.delta(), zoo.base())))


def test_a_delta_may_be_in_shards(zoo: Zoo, host: Host) -> None:
    assert same(contents(overlay(host, zoo.delta(shards=4), zoo.base())),
                contents(overlay(host, zoo.delta(), zoo.base())))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
def test_one_pass_is_two_steps_bit_for_bit(zoo: Zoo, host: Host, cli: Cli, kind: str) -> None:
    whole, one, two = (zoo.folder / name for name in ("merged.gguf", "one.gguf", "two.gguf"))
    assert cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", whole).status == 0
    done = cli("convert", zoo.delta(), one, "--base", zoo.base(), "--outtype", kind)
    assert done.status == 0 and not done.err
    assert cli("convert", whole, two, "--outtype", kind).status == 0
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_plain_type_is_rounded_to_once(zoo: Zoo, host: Host, kind: str) -> None:
    """Not to the delta's f16 first."""
    path = save_as(zoo.delta(), zoo.folder / "out.gguf", kind, host, base=zoo.base()).path
    opened, delta, base = host.open(path).tensors["token_embd.weight"], arrays(zoo.delta()), arrays(zoo.base())
    wanted = delta[EMBEDDING].astype(np.float32)
    wanted[:ROWS] += base[EMBEDDING].astype(np.float32)
    assert opened.encoding.name == kind
    assert np.array_equal(opened.array(), wanted) == (kind == "f32")
    assert np.abs(opened.array() - wanted).max() <= np.abs(wanted).max() * 2 ** -8


def test_a_sum_reads_by_rows_and_is_rounded_once() -> None:
    random = np.random.default_rng(1)
    first, second, third = (random.standard_normal((rows, 5)).astype(np.float32) for rows in (9, 9, 4))
    found = Sum("x", [ArrayTensor(first), ArrayTensor(second), ArrayTensor(third)], F16)
    whole = first + second
    whole[:4] += third
    for start, stop in ((0, 9), (3, 5), (4, 9), (8, 9), (2, 2)):
        assert np.array_equal(found.read(start, stop).view(np.float16), whole[start:stop].astype(np.float16))


def test_what_f16_does_not_hold_is_said_by_name(zoo: Zoo, host: Host, cli: Cli) -> None:
    delta = arrays(zoo.delta())
    delta[QUERY][3, 5], base = 65504, arrays(zoo.base())
    base[QUERY][3, 5] = 400
    save_file(delta, zoo.delta() / "model.safetensors")
    save_file(base, zoo.base() / "model.safetensors")
    out = zoo.folder / "out.gguf"
    done = cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out)
    assert done.status == 1 and f"tensor {QUERY}: a weight of the sum is 65904, more than f16 holds" in done.err
    assert "bf16" in done.err and not out.exists()
    assert cli("merge", "--base", zoo.base(), "--delta", zoo.delta(), "--target", out, "--type", "bf16").status == 0


def test_tables_of_frequencies_are_in_nobodys_way(zoo: Zoo, host: Host) -> None:
    """Some saved them, some did not."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    for path in (zoo.base(), zoo.delta()):
        extra = copied(path, f"{path.name}-extra")
        save_file({**arrays(path), name: np.ones(8, np.float32)}, extra / "model.safetensors")
    mixed = [overlay(host, zoo.folder / delta, zoo.folder / base) for delta in (zoo.delta().name, "delta200-1-extra")
             for base in ("base", "base-extra")]
    plain = contents(mixed[0])
    assert all(same({key: value for key, value in contents(found).items() if key != name}, plain) for found in mixed)
    for found in mixed:
        to_canonical(found, host.architectures["llama"])


def test_masks_that_are_no_numbers_are_in_nobodys_way(zoo: Zoo, host: Host) -> None:
    base = zoo.model("gpt2", 1, family="gpt2")
    masked = copied(base, "masked")
    save_file({**arrays(base), "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.bool_)},
              masked / "model.safetensors")
    assert same(contents(overlay(host, masked, masked)), contents(overlay(host, base, base)))


def test_a_delta_without_a_tokenizer_has_the_bases(zoo: Zoo, host: Host) -> None:
    assert overlay(host, zoo.delta(), zoo.base()).tokenizer == host.open(zoo.delta()).tokenizer
    (zoo.delta() / "tokenizer.json").unlink()
    assert overlay(host, zoo.delta(), zoo.base()).tokenizer == host.open(zoo.base()).tokenizer


def test_an_overlay_pickles(zoo: Zoo, host: Host) -> None:
    found = overlay(host, zoo.delta(), zoo.base())
    assert same(contents(pickle.loads(pickle.dumps(found))), contents(found))


def test_every_family_merges_and_speaks(host: Host, tmp_path: Path) -> None:
    """The sum of two halves is the model, to the bit; so that all that a family does to names and rows is there."""
    for name in host.architectures:
        zoo = Zoo(tmp_path / name, host)
        whole = zoo.model("whole", 3, family=name)
        halves = {key: array.astype(np.float32) / 2 for key, array in arrays(whole).items()}
        half = write(zoo.folder / "half", halves, config_of(whole), 0)
        found = overlay(host, half, half)
        assert same(contents(found), contents(host.open(whole))), name
        save_as(half, zoo.folder / "out.gguf", "f16", host, base=half, tokenizer=whole)
        save_as(whole, zoo.folder / "whole.gguf", "f16", host)
        assert same(contents(host.open(zoo.folder / "out.gguf")), contents(host.open(zoo.folder / "whole.gguf"))), name


@pytest.mark.parametrize(("change", "words"), [
    ("sizes", "hidden_size = 96, in the base 48"),
    ("missing", "base-missing: tensor blk.0.attn_q.weight missing from the checkpoint"),
    ("more", "llama does not know tensor model.layers.1.self_attn.sinks.weight"),
    ("family", "is a qwen2, "),
    ("extended", "tokens were added to this base already"),
    ("quantized", "is q8_0; merging wants the model before it was quantized"),
    ("converted", "is a converted file; a delta is merged in the form in which it was published (huggingface, meta)"),
    ("heads", "num_key_value_heads = 2, in the base 1"),
    ("nothing", "does not exist")])
def test_a_base_that_does_not_fit_is_refused_in_words(zoo: Zoo, host: Host, cli: Cli, change: str, words: str) -> None:
    base, delta = zoo.base(), zoo.delta()
    if change == "converted":
        delta = save_as(delta, zoo.folder / "d.gguf", "f16", host).path
    elif change == "sizes":
        base = zoo.model("small", 1, hidden_size=48)
    elif change in ("missing", "more"):
        weights = arrays(base)
        weights |= {"model.layers.1.self_attn.sinks.weight": np.ones(4, np.float16)}
        if change == "missing":
            weights = {name: array for name, array in arrays(base).items() if name != QUERY}
        base = write(zoo.folder / f"base-{change}", weights, config_of(base), ROWS)
    elif change == "family":
        base = zoo.model("other", 1, family="qwen2")
    elif change == "extended":
        base = zoo.model("large", 1, vocab_size=ROWS + 5)
    elif change == "quantized":
        base = save_as(base, zoo.folder / "q.gguf", "q8_0", host).path
    elif change == "heads":
        base = zoo.model("heads", 1, num_key_value_heads=1)
    else:
        base = zoo.folder / "nowhere"
    out = zoo.folder / "out.gguf"
    for line in (("merge", "--base", base, "--delta", delta, "--target", out),
                 ("convert", delta, out, "--base", base, "--outtype", "q4_0")):
        done = cli(*line)
        assert done.status == 1 and done.err.count("\n") == 1 and words in done.err
        assert not out.exists() and not list(zoo.folder.glob("*.part*"))


def test_a_delta_of_a_type_that_nobody_writes_is_refused_for_what_it_is(zoo: Zoo, host: Host, cli: Cli) -> None:
    base = zoo.base()
    blocks = {name: BlockTensor(np.zeros((tensor.rows, Q4_K.row_bytes(256)), np.uint8), (*tensor.shape[:-1], 256), Q4_K)
              if len(tensor.shape) > 1 else tensor
              for name, tensor in to_canonical(host.open(base), host.architectures["llama"])[0].tensors.items()}
    made = to_canonical(host.open(base), host.architectures["llama"])[0].having(tensors=blocks)
    host.writers["gguf"].save(made, zoo.folder / "k.gguf", host)
    done = cli("merge", "--base", base, "--delta", zoo.folder / "k.gguf", "--target", zoo.folder / "out.gguf")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "is q4_k; merging wants the model before it was quantized" in done.err


def test_another_model_of_the_same_sizes_is_said_once_and_not_refused(zoo: Zoo, host: Host, cli: Cli) -> None:
    """As LLaMA 2 is, for a delta of LLaMA's."""
    out, theirs = zoo.folder / "out.gguf", config_of(zoo.delta())
    (zoo.delta() / "config.json").write_text(json.dumps({**theirs, "_name_or_path": "/home/x/llama-7b"}))
    other = copied(zoo.base(), "other")
    (other / "config.json").write_text(json.dumps({
        **config_of(other), "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 4096,
        "_name_or_path": "meta-llama/Llama-2-7b-hf"}))
    for line in (("merge", "--base", other, "--delta", zoo.delta(), "--target", out, "--force"),
                 ("convert", zoo.delta(), out, "--base", other, "--force")):
        done = cli(*line)
        assert done.status == 0 and done.err.count("\n") == 1
        assert f"{zoo.delta()} may be a delta for another model than {other}: rms_norm_eps = 1e-06, in the base " \
            "1e-05; rope_theta = 10000.0, in the base 500000.0; max_position_embeddings = 128, in the base 4096; " \
            "they name themselves '/home/x/llama-7b' and 'meta-llama/Llama-2-7b-hf'" in done.err
    named = copied(zoo.base(), "named")
    (named / "config.json").write_text(json.dumps({**config_of(named), "_name_or_path": "someone/llama"}))
    for base in (named, as_meta(zoo, zoo.base()), save_as(zoo.base(), zoo.folder / "b.gguf", "f16", host).path):
        assert not cli("convert", zoo.delta(), out, "--base", base, "--force").err


def test_a_delta_that_is_taken_for_a_model_is_said_to_be_one(host: Host, tmp_path: Path, cli: Cli) -> None:
    """As they are: little was changed in training. Its sum with the base is not."""
    for family, size in (("llama", 0.3), ("gpt2", 0.01), ("gptneox", 0.01), ("bloom", 0.3)):
        zoo = Zoo(tmp_path / family, host)
        base = zoo.model("base", 1, family=family)
        random, weights = np.random.default_rng(3), arrays(base)
        delta = write(zoo.folder / "delta", {name: (size * random.standard_normal(array.shape)).astype(np.float16)
                                             for name, array in weights.items()}, config_of(base), ROWS)
        out, said = zoo.folder / "out.gguf", "it looks like the difference of two models, a delta"
        lines: list[tuple[str | Path, ...]] = [("convert", delta, out), ("run", "-m", delta, "-p", "x", "-n", "1")]
        for line in lines:
            done = cli(*line)
            assert done.status == 0 and done.err.count(said) == 1, (family, done.err)
        assert said in cli("inspect", delta).out and said in cli("inspect", out).out
        lines = [("convert", delta, out, "--base", base, "--force"), ("inspect", out), ("inspect", base)]
        for line in lines:
            done = cli(*line)
            assert said not in f"{done.out}{done.err}" and not done.status


def test_a_missing_tensor_of_either_is_named(zoo: Zoo, host: Host) -> None:
    """Also where the other checks find nothing: a bias is no part of a LLaMA."""
    config = {**config_of(zoo.delta()), "attention_bias": True}
    width = {"q": 96, "k": 32, "v": 32, "o": 96}
    biases = {f"model.layers.{i}.self_attn.{part}_proj.bias": np.ones(width[part], np.float16)
              for i in range(2) for part in width}
    delta = write(zoo.folder / "biased", {**arrays(zoo.delta()), **biases}, config, ROWS + 1)
    with pytest.raises(BestiaryError, match=r"base lacks tensors .*self_attn.*bias.* and 5 more"):
        overlay(host, delta, zoo.base())


def test_only_a_vocabulary_grows(zoo: Zoo, host: Host) -> None:
    """Rows of another matrix would not be noticed: they are as wide."""
    base = zoo.model("thin", 1, intermediate_size=128)
    with pytest.raises(BestiaryError, match="intermediate_size = 160, in the base 128"):
        overlay(host, zoo.delta(), base)
    config = {**config_of(zoo.base()), "intermediate_size": None}
    weights = arrays(zoo.base())
    with pytest.raises(BestiaryError, match="intermediate_size"):
        overlay(host, zoo.delta(), write(zoo.folder / "silent", weights, config, ROWS))


def test_shuffled_shards_are_refused(zoo: Zoo, cli: Cli) -> None:
    delta = zoo.delta(shards=3)
    first, second = (delta / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    spare = delta / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    out = zoo.folder / "out.gguf"
    done = cli("convert", delta, out, "--base", zoo.base(), "--outtype", "q4_0")
    assert done.status == 1 and done.err.count("\n") == 1 and "which does not hold it" in done.err and not out.exists()
    second.unlink()
    done = cli("convert", delta, out, "--base", zoo.base(), "--outtype", "q4_0")
    assert done.status == 1 and "shard model-00002-of-00003.safetensors is missing" in done.err and not out.exists()
