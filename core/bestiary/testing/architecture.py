"""The contract of an architecture: its names, its config, its forward pass, its ways with text."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.architecture import COMMON_KEYS, Architecture
from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.contributions import one_line
from bestiary.errors import BestiaryError
from bestiary.graph import OPERATIONS, Graph
from bestiary.host import Host
from bestiary.saving import choose_writer
from bestiary.template import Segment
from bestiary.testing.contract import Broken, HostWith, expect, pickled
from bestiary.testing.hostile import only_refused
from bestiary.testing.naming import spellings
from bestiary.testing.running import RunningContract
from bestiary.testing.text import SAMPLES, ByteTokenizer
from bestiary.testing.tiny import Model, difference, make_model, random_ids
from bestiary.tokenizer import Tokenizer

CANONICAL_NAME = re.compile(r"(blk\.(0|[1-9][0-9]*)\.)?[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
LONGEST_NAME = 60
"""Readers of the canonical file take names of up to 63 bytes; a foreign encoding adds a few."""
MOST_WEIGHTS = 1 << 21
CONTEXTS = (1, 1 << 20)
"""What a graph declares for one of them, it uses in that of another."""
BAD_VALUES: tuple[Any, ...] = (
    "", "x", "12", -1, 0, 1, 3, 0.5, 1 << 31, 1 << 32, 1 << 63, -(1 << 63), 1e300, math.nan, math.inf, True, None, [],
    [1], [[]], {}, {"a": 1})
NOBODY: tuple[dict[str, Any], ...] = (
    {}, {"model_type": "of-nobody", "architectures": ["OfNobodyForCausalLM"]}, {"model_type": None},
    {"model_type": [], "architectures": 7}, {"model_type": {}, "architectures": [None, {}]})


class ArchitectureContract(RunningContract):
    """Subclass it as TestSomething with `architecture`, and with `configs`: further configs beside example_config()
    which take other ways through `normalise` and `graph`."""

    kind = "architectures"
    architecture: Architecture
    configs: Sequence[Mapping[str, Any]] = ()

    @pytest.fixture
    def host(self, architecture: Architecture) -> Host:
        """What is installed and the architecture."""
        return HostWith(self.kind, architecture)

    def tokenizer(self, architecture: Architecture) -> Tokenizer:
        """What `wrap` is tried around; override it where the family needs tokens of its own."""
        return ByteTokenizer()

    def models(self, architecture: Architecture) -> Iterator[tuple[str, Model]]:
        """A model of each config, and which it is."""
        for index, config in enumerate((architecture.example_config(), *self.configs)):
            which = f"configs[{index - 1}]" if index else "example_config()"
            try:
                yield which, make_model(architecture, config)
            except BestiaryError as error:
                raise Broken(f"{which} is refused: {error}") from error

    def test_the_host_takes_it(self, architecture: Architecture) -> None:
        self.check_contribution(architecture)

    def test_it_pickles(self, architecture: Architecture) -> None:
        self.check_pickles(architecture)

    def test_its_import_is_light(self, architecture: Architecture) -> None:
        self.check_import(architecture)

    def test_it_claims_its_own_models_and_no_others(self, architecture: Architecture, host: Host) -> None:
        nothing = TokenizerMaterial()
        config = architecture.example_config()
        sure = architecture.claims(config, nothing)
        expect(type(sure) is int and 0 < sure <= 100, f"claims() of its own example_config() is {sure!r}; 1 to 100 say "
                                                      "that the model is of this family")
        for other in NOBODY:
            sure = architecture.claims(other, nothing)
            expect(type(sure) is int and sure == 0, f"claims({other}) is {sure!r}; it is nobody's and must give 0")
        found = host.architecture_of(config, nothing)
        expect(found.name == architecture.name, f"its example_config() is taken for a model of {found.name}, which is "
                                                "surer of it")

    def test_a_normalised_config_stays_as_it_is(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            shapes, given = dict(model.graph.weights), copy.deepcopy(dict(model.given))
            once = architecture.normalise(given, shapes)
            expect(given == model.given, f"normalise changes the config that it is given ({which}); it must make a new "
                                         "one")
            twice = architecture.normalise(once, shapes)
            changed = [key for key in {**once, **twice} if once.get(key) != twice.get(key)]
            expect(not changed, f"normalise of a normalised config changes {', '.join(changed)} again ({which})")
            expect(architecture.graph(twice, 32) == architecture.graph(once, 32), f"graph() differs ({which})")
            try:
                json.dumps(once, default=float)
            except (TypeError, ValueError) as error:
                raise Broken(f"the normalised config of {which} cannot be written as JSON: {error}") from None

    def test_a_published_config_says_the_same(self, architecture: Architecture) -> None:
        """What `published_config` gives leads to the same graph, to what it does not say itself, and to itself."""
        for which, model in self.models(architecture):
            shapes, normal = dict(model.graph.weights), model.checkpoint.config
            said = architecture.published_config(normal, model.tensors)
            again = architecture.normalise(said, shapes)
            changed = [key for key in normal if key not in said and normal[key] != again.get(key)]
            expect(not changed, f"normalise of the published config changes {', '.join(changed)} ({which})")
            expect(architecture.graph(again, 32) == architecture.graph(normal, 32), f"graph() differs ({which})")
            expect(architecture.published_config(again, model.tensors) == said,
                   f"what is published changes when it is read and published again ({which})")

    def test_a_config_of_wrong_values_is_refused_in_words(self, architecture: Architecture) -> None:
        """By a BestiaryError, or else it is accepted and gives a graph that pickles; nothing else may happen."""
        for which, model in self.models(architecture):
            cases = list(damaged_configs(model.given))
            namings = [({**made}, naming) for naming, rules in architecture.namings.items()
                       for made, left in spellings(rules, model.given, own_tensors(architecture, model)) if not left]

            def case(index: int, model: Model = model, cases: Any = cases, namings: Any = namings) -> None:
                for tensors, naming in [(model.tensors, CANONICAL), *namings]:
                    given = Checkpoint(Path("damaged"), cases[index][1], tensors, naming)
                    pickle.dumps(to_canonical(given, architecture)[1])

            only_refused(case, [f"{which} with {words}" for words, _ in cases], "a damaged config")

    def test_its_example_is_small(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            count = sum(math.prod(shape) for shape in model.graph.weights.values())
            expect(count <= MOST_WEIGHTS, f"{which} has {count} weights; at most {MOST_WEIGHTS} keep tests quick")
            expect(model.graph.layers >= 2, f"{which} has {model.graph.layers} layer; two show what one hides")

    def test_the_graph_declares_what_it_uses(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            graph = model.graph
            expect(isinstance(graph, Graph), f"graph() gives {type(graph).__name__}, not the Graph of Trace.finish")
            expect(pickled(graph, "the graph") == graph, "the graph comes out of its pickle as another")
            graphs = [architecture.graph(model.checkpoint.config, context) for context in CONTEXTS]
            for context, other in zip(CONTEXTS, graphs, strict=True):
                expect(other.weights == graph.weights, f"the graph of context {context} declares other weights than "
                                                       f"that of the model's own ({which}); see Trace.keep")
            nodes = [node for other in (graph, *graphs) for node in (
                *other.nodes, *(other.past.graph.nodes if other.past else ()))]
            used = {name for node in nodes for name in node.weights.values()}
            expect(used == set(graph.weights), f"weights declared and not used, or used and not declared: "
                                               f"{', '.join(sorted(used ^ set(graph.weights)))} ({which})")
            for node in graph.nodes:
                expect(node.op in OPERATIONS, f"unknown operation {node.op!r}; known: {', '.join(OPERATIONS)}")
            for name, shape in graph.weights.items():
                fits = CANONICAL_NAME.fullmatch(name) is not None and len(name) <= LONGEST_NAME
                expect(fits, f"weight {name!r} has no canonical name: blk.N.part.weight for layer N, else part.weight, "
                             f"of small letters, digits and _, at most {LONGEST_NAME} characters")
                expect(shape and all(type(size) is int and size > 0 for size in shape), f"weight {name}: {shape}")
            layers, vocabulary = (model.checkpoint.config.get(key) for key in ("num_hidden_layers", "vocab_size"))
            expect(graph.layers == layers, f"the graph has {graph.layers} layers; num_hidden_layers says {layers}. Are "
                                           "they traced by `for i in g.layers(count)`?")
            expect(graph.vocabulary == vocabulary, f"the output has {graph.vocabulary} columns; vocab_size says "
                                                   f"{vocabulary}")
            for name, tensor in architecture.derived(model.checkpoint.config).items():
                expect(graph.weights.get(name) == tensor.shape, f"derived() gives {name} of shape {tensor.shape}; the "
                                                                f"graph declares {graph.weights.get(name)}")

    def test_every_naming_leads_to_its_weights_and_back(self, architecture: Architecture) -> None:
        """Bit by bit; of `configs` each in one naming at least, since not every program has every variant."""
        for which, model in self.models(architecture):
            tensors, missing, told = own_tensors(architecture, model), dict[str, list[str]](), False
            for naming, rules in architecture.namings.items():
                for made, left in spellings(rules, model.given, tensors):
                    if naming == CANONICAL:  # what such rules do not name is called as it is
                        made, left = {**made, **{name: tensors[name] for name in left}}, []
                    if left:
                        missing[naming] = left
                        continue
                    told = True
                    self.check_naming(architecture, model, naming, made, f"the naming {naming!r} of {which}")
            if missing and (not told or which == "example_config()"):
                naming, left = next(iter(missing.items()))
                raise Broken(f"no rule of the naming {naming!r} gives {', '.join(left)} ({which})")

    def check_naming(self, architecture: Architecture, model: Model, naming: str, made: Mapping[str, Any],
                     what: str) -> None:
        try:
            found, graph = to_canonical(Checkpoint(Path("tiny"), model.given, made, naming), architecture)
        except BestiaryError as error:
            raise Broken(f"{what}: the model in these names is refused: {error}") from error
        expect(graph == model.graph, f"{what}: the graph is another than that of the canonical model")
        for name, tensor in model.tensors.items():
            expect(np.array_equal(found.tensors[name].array(), tensor.array()),
                   f"{what}: {name} does not come back as it was; a transform's inverse does not undo it")

    def test_its_keys_say_back_what_they_were_told(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            config, shapes = model.checkpoint.config, dict(model.graph.weights)
            for key in (*COMMON_KEYS, *architecture.keys):
                value = config.get(key.config)
                try:
                    told = key.to_file(value) if key.to_file and value is not None else value
                    back = key.from_file(told) if key.from_file and told is not None else told
                    if back is not None:
                        graph = architecture.graph(architecture.normalise({**config, key.config: back}, shapes), 32)
                        expect(graph == architecture.graph(config, 32), f"{key.file} turns {key.config} = {value!r} "
                                                                        f"into {back!r}, and the graph is another")
                except (BestiaryError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                    raise Broken(f"the key {key.file} cannot hold {key.config} = {value!r}: {one_line(error)} "
                                 f"({which})") from error

    def test_it_goes_through_the_canonical_file(self, architecture: Architecture, host: Host, tmp_path: Path) -> None:
        """What `convert` writes opens as the same model: the same graph, weights and logits."""
        writer = choose_writer(host, None, None)
        for index, (which, model) in enumerate(self.models(architecture)):
            path = tmp_path / f"{index}{writer.suffix}"
            writer.save(model.checkpoint, path, host)
            opened = host.open(path)
            family = host.architecture_of(opened.config, opened.tokenizer)
            expect(family.name == architecture.name, f"{which}: the saved file is taken for one of {family.name}")
            again, graph = to_canonical(opened, architecture)
            expect(graph == model.graph, f"{which}: the graph of the saved file is another: does normalise() read all "
                                         "that the config says, and is every key's from_file the inverse of to_file?")
            ids = random_ids(graph.vocabulary, 9)
            found, wanted = (self.runs(host, self.reference, Model(
                model.given, saved, graph, model.layout)).prefill(ids) for saved in (again, model.checkpoint))
            expect(difference(found, wanted) == 0, f"{which}: the saved file gives other logits")
            pickled(again, "the opened file's checkpoint")

    def test_its_templates_render(self, architecture: Architecture) -> None:
        said = "<s>[INST] {system} {content} </s> <|end|> \n### Human:"
        turns = ([{"role": "user", "content": said}],
                 [{"role": "system", "content": "S"}, {"role": "user", "content": said}],
                 [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"},
                  {"role": "user", "content": said}])
        for name, template in architecture.templates.items():
            pickled(template, f"the template {name}")
            expect(template.name == name, f"templates[{name!r}] calls itself {template.name!r}")
            for number, messages in enumerate(turns):
                try:
                    segments = template.render(messages)
                except BestiaryError as error:
                    expect(number, f"template {name} refuses a single message of the user: {error}")
                    continue
                expect(segments and all(isinstance(segment, Segment) for segment in segments),
                       f"template {name} gives {segments!r:.80}, not a list of Segments")
                marked = "".join(segment.text for segment in segments if segment.special)
                free = "".join(segment.text for segment in segments if not segment.special)
                expect(said in free or said.strip() in free, f"template {name}: the user's words are not in the prompt "
                                                             "as they were said")
                expect("{content}" not in marked, f"template {name}: the user's words stand in a segment with "
                                                  "special=True, where they could become special tokens")

    def test_its_rules_for_text_are_known_to_the_library(self, architecture: Architecture, host: Host) -> None:
        from tokenizers import Regex, pre_tokenizers

        for name, rule in architecture.pre_tokenizers.items():
            for pattern in rule.patterns:
                try:
                    split = pre_tokenizers.Split(Regex(pattern), "isolated")
                except Exception as error:
                    raise Broken(f"pre-tokenizer {name}: {pattern!r} is no expression: {one_line(error)}") from None
                for text in SAMPLES:
                    pieces = "".join(piece for piece, _ in split.pre_tokenize_str(text))
                    expect(pieces == text, f"pre-tokenizer {name} loses characters of {text!r}")
        for ranks in architecture.rank_lists:
            known = {**host.pre_tokenizers, **architecture.pre_tokenizers}
            expect(ranks.pre_tokenizer in known, f"a rank list of {ranks.size} splits text by {ranks.pre_tokenizer!r}, "
                                                 "which nobody provides")
            strange = [text for text in (ranks.bos, ranks.eos, *ranks.ends) if text not in ranks.special]
            expect(not strange, f"a rank list of {ranks.size}: {strange} are not among its special tokens")

    def test_what_is_around_its_tokenizer_keeps_the_text(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            wrapped = architecture.wrap(self.tokenizer(architecture), model.checkpoint.config)
            expect(isinstance(wrapped, Tokenizer), f"wrap() gives {type(wrapped).__name__}, not a Tokenizer ({which})")
            for text in SAMPLES:
                back = wrapped.decode(wrapped.encode(text))
                expect(back == text, f"wrap(): {text!r} is encoded and comes back as {back!r} ({which}); where that is "
                                     "the family's way, override this test and say what is kept")


def own_tensors(architecture: Architecture, model: Model) -> dict[str, Any]:
    """Those that stand in a checkpoint."""
    derived = architecture.derived(model.checkpoint.config)
    return {name: tensor for name, tensor in model.tensors.items() if name not in derived}


def damaged_configs(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The config with each value in turn left out, and replaced by others; and what was done, in words."""
    for key, value in config.items():
        yield f"no {inside}{key}", {name: other for name, other in config.items() if name != key}
        for bad in BAD_VALUES:
            yield f"{inside}{key} = {bad!r}", {**config, key: bad}
        if isinstance(value, Mapping):
            for words, changed in damaged_configs(value, f"{inside}{key}."):
                yield words, {**config, key: changed}
