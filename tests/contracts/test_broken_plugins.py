"""Each contract finds what it is there to find: a plugin with one fault fails the test of that fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.host import Host, HostSettings
from bestiary.plugin import Key, PreTokenizer
from bestiary.testing import (
    ArchitectureContract,
    BackendContract,
    Broken,
    Contract,
    HostWith,
    LoaderContract,
    QuantizerContract,
    WriterContract,
)
from bestiary.testing.contract import pickled
from bestiary_plugins.backends.numpy import NumpyBackend
from bestiary_plugins.loaders.gguf_writer import GgufWriter
from bestiary_plugins.quantizers.q8_0 import QuantizerQ8_0
from tests.contracts import broken
from tests.contracts.broken import run

pytest_plugins = ["pytester"]
HOST = Host(HostSettings(names=()))


class Flats(LoaderContract):
    damages = 150

    def sample(self, folder: Path) -> Path:
        return broken.flat_sample(folder)


def having(item: Any, **attributes: Any) -> Any:
    """The item with attributes of its own."""
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


ARCHITECTURES: list[tuple[Any, str, str]] = [
    (broken.Summing(), "test_the_cache_changes_nothing", "one by one: the logits are .* of their spread"),
    (broken.Centring(), "test_what_comes_later_changes_nothing_before_it", "the last token changes the logits before"),
    (broken.Narrowing(), "test_the_forward_pass_gives_numbers", "narrowed returned shape .*, not"),
    (broken.OneMore(), "test_the_graph_declares_what_it_uses", "the output has 42 columns; vocab_size says 41"),
    (broken.BadName(), "test_the_graph_declares_what_it_uses", "weight 'lm_head.Layers.weight' has no canonical name"),
    (broken.OneWay(), "test_every_naming_leads_to_its_weights_and_back", "dots.weight does not come back as it was"),
    (broken.Nameless(), "test_every_naming_leads_to_its_weights_and_back", "no rule of the naming .* gives dots"),
    (broken.Careless(), "test_a_config_of_wrong_values_is_refused_in_words", "example_config.. with no vocab_size"),
    (broken.Growing(), "test_a_normalised_config_stays_as_it_is", "changes rope_theta again"),
    (broken.Greedy(), "test_it_claims_its_own_models_and_no_others", "claims.{}. is 90; it is nobody's"),
    (broken.Unpicklable(), "test_it_pickles", "the architecture dotted does not pickle: .*lambda"),
    (broken.Losing(), "test_what_is_around_its_tokenizer_keeps_the_text", "'Hello, world!' is encoded and comes back"),
    (broken.Misplacing(), "test_a_layout_has_a_place_for_every_token", "layout.. of 21 tokens has positions of .20. "),
    (broken.Standing(), "test_what_is_generated_stands_where_it_would_in_a_prompt",
     "after 19 tokens next = .0,., step = .1,. put two more at ..0, 1..; .* of all 21 puts them at ..19, 20"),
    (broken.Backwards(), "test_what_is_generated_stands_where_it_would_in_a_prompt", "step = .-1,. put two more at"),
    (broken.Fickle(), "test_the_graph_declares_what_it_uses", "graph.. of dotted gives another graph when"),
    (broken.Injected(), "test_its_templates_render", "the user's words are not in the prompt|special=True"),
    (having(broken.Dotted(), pre_tokenizers={"odd": PreTokenizer(("[a-",))}),
     "test_its_rules_for_text_are_known_to_the_library", r"pre-tokenizer odd: '\[a-' is no expression"),
    (having(broken.Dotted(), pre_tokenizers={"odd": PreTokenizer((7,))}),  # type: ignore[arg-type]
     "test_the_host_takes_it", "the host sets this plugin aside: .*pre_tokenizers"),
    (having(broken.Dotted(), keys=(Key("rope_theta", "{arch}.half", "f32", from_file=lambda value: value / 2),)),
     "test_its_keys_say_back_what_they_were_told", "half turns rope_theta = .* and the graph is another"),
]
QUANTIZERS: list[tuple[Any, str, str]] = [
    (broken.Coarse(), "test_no_weight_is_further_off_than_the_bound", "of the largest in its block off; the bound is"),
    (broken.Neighbourly(), "test_rows_do_not_depend_on_one_another", "otherwise than beside others"),
    (broken.Short(), "test_zeros_stay_zeros", "gives .*; needed: uint8 of"),
    (broken.Strict(), "test_extreme_weights_harm_nobody_else", "infinite end in ValueError: weights must be finite"),
    (broken.Weighing(), "test_any_importance_is_taken", "divide by zero|nothing to do with the rows"),
    (broken.InPlace(), "test_no_weight_is_further_off_than_the_bound", "changes the rows that it is given"),
    (broken.Lying(), "test_any_bytes_are_decoded", "the decoder gives other weights than the layout says"),
    (broken.Lying(), "test_what_is_written_opens_without_the_plugin", "does the layout say what the decoder does"),
    (broken.Lying(), "test_every_backend_gives_the_logits_of_the_reference", "the backend cpu is .* from numpy"),
    (broken.Forgetting(), "test_what_it_leaves_to_others_is_known", "q8_of_nobody"),
]
LOADERS: list[tuple[Any, str, str]] = [
    (broken.Raising(), "test_a_damaged_file_is_refused_in_words", "JSONDecodeError|UnicodeDecodeError|RecursionError"),
    (broken.Hungry(), "test_a_damaged_file_is_refused_in_words", "MemoryError|no answer"),
    (broken.Everybodys(), "test_it_leaves_others_alone", "recognise.. of an empty folder is 90; it must be 0"),
    (broken.Nervous(), "test_it_leaves_others_alone", "raises (IsADirectory|FileNotFound|Index)Error"),
    (broken.Sourceless(), "test_a_checkpoint_comes_out_of_its_pickle", "has no source="),
    (broken.Rangeless(), "test_a_tensor_reads_by_rows", "rows 1 to 2 by themselves are other bytes|rows . to ."),
]
WRITERS: list[tuple[Any, str, str]] = [
    (broken.Overwriting(), "test_nothing_is_overwritten_unasked", "DID NOT RAISE"),
    (broken.Halving(), "test_a_source_that_ends_leaves_nothing", "a writing that failed left"),
    (broken.Dating(), "test_the_same_checkpoint_gives_the_same_bytes", "written twice the file differs"),
    (broken.Whole(), "test_what_it_writes_is_read_back", "is read back as f32"),
    (broken.Whole(), "test_it_reads_by_ranges_and_each_row_once", "is read at once"),
]
BACKENDS: list[tuple[Any, str, str]] = [
    (broken.OtherGraph("rms_norm", eps=0.5), "test_every_family_gives_the_logits_of_the_reference", "model of "),
    (broken.OtherGraph("gelu", form="tanh"), "test_every_operation_means_what_the_reference_means", "gelu: "),
    (broken.OtherGraph("attention", window=0), "test_every_operation_means_what_the_reference_means", "with a window"),
    (broken.CountingBackend(), "test_the_cache_changes_nothing", "one by one: .* from one prefill"),
    (broken.EndBackend(), "test_only_what_is_wanted_comes_back", "wanted tokens have other logits"),
    (broken.ClippingBackend(), "test_a_bad_batch_is_refused_and_the_cache_stays", "beyond the vocabulary is taken"),
    (broken.AdvancingBackend(), "test_a_failing_operation_leaves_the_cache_as_it_was", "holds 2 tokens, not 1"),
    (broken.WordyBackend(), "test_the_cache_changes_nothing", "gives <U.* of shape .21, .*; needed: float32 of shape"),
    (broken.NarrowBackend(), "test_the_cache_changes_nothing", "gives float32 of shape .21, 1. for the output"),
    (broken.FlatBackend(), "test_every_family_gives_the_logits_of_the_reference", "of shape .[0-9]+,. for the output"),
    (broken.FlatBackend(), "test_a_graph_that_was_cut_gives_the_whole", "of shape .[0-9]+,. for the output"),
    (broken.Chatty(), "test_it_says_what_it_is", "not texts by name"),
    (broken.RefusingBackend(), "test_every_family_gives_the_logits_of_the_reference", "refuses the models of all"),
]
CASES = [(contract, *case) for contract, cases in (
    (ArchitectureContract(), ARCHITECTURES), (QuantizerContract(), QUANTIZERS), (Flats(), LOADERS),
    (WriterContract(), WRITERS), (BackendContract(), BACKENDS)) for case in cases]
RIGHT: list[tuple[Contract, Any]] = [
    (ArchitectureContract(), broken.Dotted()), (QuantizerContract(), QuantizerQ8_0()), (Flats(), broken.Flat()),
    (WriterContract(), GgufWriter()), (BackendContract(), NumpyBackend())]


@pytest.mark.parametrize(("contract", "item", "test", "words"), CASES,
                         ids=[f"{type(item).__name__}-{test}" for _, item, test, _ in CASES])
def test_what_is_broken_is_found_and_said(contract: Contract, item: Any, test: str, words: str, tmp_path: Path) -> None:
    with pytest.raises((Broken, Warning, pytest.fail.Exception), match=f"(?s){words}"):
        run(contract, test, item, tmp_path)


@pytest.mark.parametrize(("contract", "item"), RIGHT, ids=[type(item).__name__ for _, item in RIGHT])
def test_the_same_tests_pass_where_nothing_is_broken(contract: Contract, item: Any, tmp_path: Path) -> None:
    tests = {test for other, _, test, _ in CASES if other.kind == contract.kind}
    for test in sorted(tests):
        (tmp_path / test).mkdir()
        run(contract, test, item, tmp_path / test)


def test_a_heavy_import_is_found() -> None:
    contract = QuantizerContract()
    contract.check_import(QuantizerQ8_0())
    contract.heavy = ("numpy",)
    with pytest.raises(Broken, match="importing bestiary_plugins.quantizers.q8_0 imports numpy: import that inside"):
        contract.check_import(QuantizerQ8_0())


def test_the_item_wins_over_what_is_installed_and_the_host_pickles() -> None:
    item = QuantizerQ8_0()
    host = HostWith("quantizers", item)
    assert host.quantizers["Q8_0"] is host.quantizers["7"] is item
    assert set(host.quantizers) == set(HOST.quantizers)
    again = pickled(host, "the host")
    assert isinstance(again.quantizers["q8_0"], QuantizerQ8_0) and again.settings == host.settings


def test_a_backend_that_calls_itself_exact_is_held_to_it() -> None:
    backend, contract = NumpyBackend(), BackendContract()
    assert HOST.backends["cpu"].exact and not HOST.backends["numpy"].exact
    assert contract.own_bound(backend) == contract.bound
    assert contract.own_bound(having(NumpyBackend(), exact=True)) == 0
    assert contract.own_bound(having(backend, exact=False)) == contract.bound
    contract.exact = True
    assert contract.own_bound(backend) == 0


GOOD = '''
from bestiary.testing import QuantizerContract
from bestiary_plugins.quantizers.q8_0 import QuantizerQ8_0


class TestQ8(QuantizerContract):
    quantizer = QuantizerQ8_0()
    bound = 0.6 / 127
'''


def test_ten_lines_are_enough_and_what_is_wrong_with_them_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_good=GOOD, test_bad=GOOD.replace("0.6", "0.3"),
                        test_class=GOOD.replace("QuantizerQ8_0()", "QuantizerQ8_0"))
    count = sum(name.startswith("test_") for name in dir(QuantizerContract))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--continue-on-collection-errors")
    result.assert_outcomes(passed=2 * count - 1, failed=1, errors=1)
    result.stdout.fnmatch_lines([
        "*TestQ8.quantizer is the class QuantizerQ8_0, not an instance of it*",
        "*a weight is 0.00* of the largest in its block off; the bound is 0.00*"])


def test_a_class_that_says_no_item_or_a_wrong_one_is_told_so_once(pytester: pytest.Pytester) -> None:
    header, right = GOOD.rpartition("    quantizer")[0], "    quantizer = QuantizerQ8_0()\n"
    fixture = "    @pytest.fixture\n    def quantizer(self):\n        return QuantizerQ8_0()\n"
    mark = header.replace("class", "@pytest.mark.parametrize('quantizer', [QuantizerQ8_0()])\nclass")
    pytester.makepyfile(test_none=header + "    bound = 1\n", test_wrong=header + "    quantizer = 'q8_0'\n",
                        test_right=header + right, test_fixture="import pytest\n" + header + fixture,
                        test_mark="import pytest\n" + mark + "    bound = 1\n")
    count = sum(name.startswith("test_") for name in dir(QuantizerContract))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--continue-on-collection-errors")
    result.assert_outcomes(passed=3 * count, errors=2)
    result.stdout.fnmatch_lines([
        "*TestQ8 does not say what it tests: write quantizer = YourQuantizer() in it, or a fixture quantizer*",
        "*TestQ8.quantizer is str 'q8_0', no Quantizer*"])


def test_random_damage_is_the_same_every_time() -> None:
    from bestiary.testing.damage import damaged

    data = np.arange(200, dtype=np.uint8).tobytes()
    assert [damaged(data, seed) for seed in range(50)] == [damaged(data, seed) for seed in range(50)]
    assert sum(damaged(data, seed)[1] != data for seed in range(50)) > 40
