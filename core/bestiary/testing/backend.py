"""The contract of a backend: the numpy meaning of every operation, and a cache that changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bestiary.backend import Backend, KVCache, Limits, Plan
from bestiary.contributions import one_line
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace
from bestiary.host import Host, HostSettings
from bestiary.past import compiled
from bestiary.tensor import ArrayTensor, Tensor
from bestiary.testing import operations
from bestiary.testing.batches import bad_batches
from bestiary.testing.contract import Broken, Contract, HostWith, expect
from bestiary.testing.operations import Refusal, graph_of, graphs, products
from bestiary.testing.tiny import (
    LIMITS,
    Ids,
    Layout,
    Piece,
    Runs,
    counting,
    difference,
    make_model,
    quantized,
    random_ids,
    random_weights,
    shuffled,
)

TOKENS = 21
FORWARD_FAULTS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


class BackendContract(Contract):
    """Subclass it as TestSomething with `backend`. bound: how far its logits may be from those of the reference, as a
    share of their spread. quantized_bound: the same where weights are quantized, since a backend may round activations
    then. exact: whether its logits are the same to the bit whatever the threads, the batch and the pieces of a prompt;
    by default what the backend itself says."""

    kind = "backends"
    backend: Backend
    reference: str = "numpy"
    bound: float = 1e-4
    quantized_bound: float = 0.03
    exact: bool | None = None

    @pytest.fixture
    def host(self, backend: Backend) -> Host:
        """What is installed and the backend. Where the backend does not run, what needs it is skipped."""
        host = HostWith(self.kind, backend)
        if (reason := host.unavailable(backend)) is not None:
            pytest.skip(f"backend {backend.name} does not run here: {reason}")
        return host

    def own_bound(self, backend: Backend) -> float:
        """How far its logits may be from its own, run in another way."""
        return 0.0 if (backend.exact if self.exact is None else self.exact) else self.bound

    def models(self, host: Host) -> Iterator[tuple[str, Graph, Mapping[str, Tensor], Layout]]:
        """A tiny model of every family that is known."""
        for name, family in host.architectures.items():
            model = make_model(family, family.example_config())
            yield name, model.graph, model.tensors, model.layout

    def compiled(self, backend: Backend, graph: Graph, tensors: Mapping[str, Tensor], limits: Limits = LIMITS,
                 ) -> Plan | None:
        """None where the backend refuses the graph: it says what it cannot run."""
        try:
            plan = backend.compile(graph, tensors, limits)
        except BestiaryError:
            return None
        expect(isinstance(plan, Plan), f"compile() gives {type(plan).__name__}, not a Plan")
        expect(plan.graph == graph and plan.limits == limits, "the plan's graph or limits are not those it was given")
        return plan

    def running(self, backend: Backend, host: Host) -> Iterator[tuple[str, Runs, Graph, Mapping[str, Tensor]]]:
        """Those of the models that it runs; at least one."""
        count = 0
        for name, graph, tensors, layout in self.models(host):
            if (plan := self.compiled(backend, graph, tensors)) is not None:
                count += 1
                yield name, Runs(plan, layout), graph, tensors
        expect(count, f"it refuses the models of all families that are known: {', '.join(host.architectures.names)}")

    def prompts(self, graph: Graph) -> list[Ids]:
        return [random_ids(graph.vocabulary, count, count) for count in (TOKENS, 10, 17)]

    def check_agrees(self, backend: Backend, what: str, graph: Graph, tensors: Mapping[str, Tensor],
                     layout: Layout, bound: float) -> bool:
        """Whether it was compared; raises Broken where it differs from the reference."""
        if (plan := self.compiled(backend, graph, tensors)) is None:
            return False
        embed = next(node for node in graph.nodes if node.op == "embed")
        ids = random_ids(graph.weights[embed.weights["weight"]][0], TOKENS)
        right = Host(HostSettings(names=())).backends[self.reference]  # the item may have its name
        wanted = Runs(right.compile(graph, tensors, LIMITS), layout).prefill(ids)
        found = difference(Runs(plan, layout).prefill(ids), wanted)
        expect(found <= bound, f"{what}: {found:.2e} of the spread of the logits from {self.reference}; the bound is "
                               f"{bound:.1e}")
        return True

    def test_the_host_takes_it(self, backend: Backend) -> None:
        self.check_contribution(backend)

    def test_it_pickles(self, backend: Backend) -> None:
        self.check_pickles(backend)

    def test_its_import_is_light(self, backend: Backend) -> None:
        self.check_import(backend)

    def test_it_says_what_it_is(self, backend: Backend) -> None:
        reason = backend.available()
        expect(reason is None or isinstance(reason, str) and reason, f"available() is {reason!r}; None says that it "
                                                                     "runs here, words why it does not")
        facts = backend.describe()
        expect(isinstance(facts, Mapping) and all(isinstance(text, str) for pair in facts.items() for text in pair),
               f"describe() gives {facts!r:.80}, not texts by name")

    def test_every_family_gives_the_logits_of_the_reference(self, backend: Backend, host: Host) -> None:
        compared = [self.check_agrees(backend, f"the model of {name}", graph, tensors, layout, self.bound)
                    for name, graph, tensors, layout in self.models(host)]
        expect(any(compared), f"it refuses the models of all families: {', '.join(host.architectures.names)}")

    def test_every_operation_means_what_the_reference_means(self, backend: Backend, host: Host) -> None:
        """Or is refused."""
        for name, graph in graphs():
            layout = with_prefix if graph.prefix_mask else counting
            self.check_agrees(backend, name, graph, random_weights(graph.weights), layout, self.bound)

    def test_every_encoding_gives_the_logits_of_the_reference(self, backend: Backend, host: Host) -> None:
        for name, quantizer in host.quantizers.items():
            graph = products(quantizer.encoding.block_size * max(1, -(-96 // quantizer.encoding.block_size)))
            bound = self.quantized_bound if quantizer.encoding.quantized else self.bound
            tensors = quantized(random_weights(graph.weights), quantizer)
            if not self.check_agrees(backend, f"weights in {name}", graph, tensors, counting, bound):
                continue
            ids, own = random_ids(operations.VOCABULARY, TOKENS), self.own_bound(backend)
            one, three = (Runs(backend.compile(graph, tensors, replace(LIMITS, threads=count))) for count in (1, 3))
            wanted = one.prefill(ids)
            for way, rows in (("one by one", one.in_pieces(ids, [1])), ("with 3 threads", three.prefill(ids))):
                found = difference(rows, wanted)
                expect(found <= own, f"weights in {name} {way}: {found:.2e} of the spread of the logits from one "
                                     f"prefill; the bound is {own:.1e}")

    def test_the_cache_changes_nothing(self, backend: Backend, host: Host) -> None:
        bound = self.own_bound(backend)
        for name, runs, graph, _ in self.running(backend, host):
            ids, *others = self.prompts(graph)
            wanted = runs.prefill(ids)
            for way, logits in runs.every_way(ids, others).items():
                found = difference(logits, wanted)
                expect(found <= bound, f"{name}, {way}: {found:.2e} of the spread of the logits from one prefill; the "
                                       f"bound is {bound:.1e}")

    def test_the_number_of_threads_changes_nothing(self, backend: Backend, host: Host) -> None:
        bound = self.own_bound(backend)
        for name, runs, graph, tensors in self.running(backend, host):
            ids = self.prompts(graph)[0]
            wanted = runs.prefill(ids)
            for threads in (2, 3, None):
                plan = backend.compile(graph, tensors, replace(LIMITS, threads=threads))
                found = difference(Runs(plan, runs.layout).prefill(ids), wanted)
                expect(found <= bound, f"{name}: with {threads} threads {found:.2e} of the spread of the logits from "
                                       f"one thread; the bound is {bound:.1e}")
                plan.close()

    def test_only_what_is_wanted_comes_back(self, backend: Backend, host: Host) -> None:
        bound = self.own_bound(backend)
        for name, runs, graph, _ in self.running(backend, host):
            ids = self.prompts(graph)[0]
            whole, piece = runs.prefill(ids), Piece(0, ids, 0, len(ids))
            for wanted in ([len(ids) - 1], [3, 1, 8], [2, 2], []):
                rows = runs.forward(runs.plan.new_cache(), piece, wanted=wanted)
                expect(not wanted or difference(rows, whole[wanted]) <= bound, f"{name}: wanted tokens have other "
                                                                              "logits than beside all")
            runs.forward(runs.plan.new_cache(), piece, output="hidden")  # looks at it

    def test_a_plan_may_share_weights(self, backend: Backend, host: Host) -> None:
        for name, runs, graph, tensors in self.running(backend, host):
            ids = self.prompts(graph)[0]
            again = backend.compile(graph, tensors, LIMITS, share=runs.plan, progress=lambda done, total, what: None)
            found = difference(Runs(again, runs.layout).prefill(ids), runs.prefill(ids))
            expect(found <= self.own_bound(backend), f"{name}: a plan that shares weights gives other logits")

    def test_weights_in_an_order_of_columns_of_their_own_are_the_same(self, backend: Backend, host: Host) -> None:
        """Where it says that it runs `order`; else it never meets one."""
        if not backend.orders:
            return
        graph = products(96)
        tensors = shuffled(random_weights(graph.weights))
        weights = {name: ArrayTensor(tensor.array()) for name, tensor in tensors.items()}
        plan = compiled(backend, graph, tensors, LIMITS)
        expect("order" in {node.op for node in plan.graph.nodes}, "its plan is of another graph than it was given")
        ids = random_ids(operations.VOCABULARY, TOKENS)
        found = difference(Runs(plan).prefill(ids), Runs(backend.compile(graph, weights, LIMITS)).prefill(ids))
        expect(found <= self.bound, f"{found:.2e} of the spread of the logits from those of the same weights decoded; "
                                    f"the bound is {self.bound:.1e}")

    def test_a_graph_that_was_cut_gives_the_whole(self, backend: Backend, host: Host) -> None:
        for name, runs, graph, tensors in self.running(backend, host):
            try:
                plans = [self.compiled(backend, part, tensors) for part in graph.cut(graph.layers // 2)]
            except BestiaryError:
                continue
            if plans[0] is None or plans[1] is None:
                continue
            ids = self.prompts(graph)[0]
            piece = Piece(0, ids, 0, len(ids))
            hidden = Runs(plans[0], runs.layout).forward(plans[0].new_cache(), piece, output="hidden")
            logits = Runs(plans[1], runs.layout).run(runs.batch(piece, hidden=hidden), plans[1].new_cache())
            expect(difference(logits, runs.prefill(ids)) <= self.own_bound(backend), f"{name}: the two halves of its "
                                                                                     "graph give other logits")

    def test_a_bad_batch_is_refused_and_the_cache_stays(self, backend: Backend, host: Host) -> None:
        for name, runs, graph, _ in self.running(backend, host):
            ids, cache = self.prompts(graph)[0], runs.plan.new_cache()
            wanted = runs.prefill(ids)
            start = max(5, runs.prefix(ids))
            runs.forward(cache, Piece(0, ids, 0, start))
            good = runs.batch(Piece(0, ids, start, start + 3))
            for what, batch in bad_batches(good, graph.vocabulary):
                self.check_refused(f"{name}: a batch {what}", cache, runs.plan.forward, batch, cache)
            self.check_refused(f"{name}: an unknown output", cache, runs.plan.forward, good, cache, "nonsense")
            if start < len(ids):
                rows = runs.in_pieces(ids, [3], cache)
                expect(difference(rows, wanted[start:]) <= self.own_bound(backend), f"{name}: after refused batches "
                                                                                    "the logits are others")
            self.check_refused(f"{name}: truncate() to more than it holds", cache, cache.truncate, 0, 1000)
            self.check_refused(f"{name}: copy() of more than it holds", cache, cache.copy, 0, 1, 1000)
            self.check_refused(f"{name}: length() of a sequence that is not there", cache, cache.length, 99)

    def check_refused(self, what: str, cache: KVCache, function: Callable[..., Any], *arguments: Any) -> None:
        before = cache.length(0)
        try:
            function(*arguments)
        except BestiaryError:
            expect(cache.length(0) == before, f"{what} is refused, and the cache holds {cache.length(0)} tokens, not "
                                              f"{before} as before")
            return
        except Exception as error:
            raise Broken(f"{what} ends in {one_line(error)}; a BestiaryError says what is wrong") from error
        raise Broken(f"{what} is taken; a BestiaryError should say what is wrong")

    def test_limits_that_it_cannot_keep_are_refused(self, backend: Backend, host: Host) -> None:
        _, graph, tensors, _ = next(self.models(host))
        for change in ({"cache_type_k": "nonsense"}, {"cache_type_v": "nonsense"}):
            try:
                backend.compile(graph, tensors, replace(LIMITS, **change)).new_cache()  # type: ignore[arg-type]
            except BestiaryError:
                continue
            raise Broken(f"{change} is taken; a BestiaryError should name the types that are known")

    def test_a_failing_operation_leaves_the_cache_as_it_was(self, backend: Backend, host: Host) -> None:
        """An operation of a plugin's own may raise; the forward is then as if it had not been."""
        def failing(g: Trace, x: Any) -> Any:
            x = operations.attention()(g, x)
            return g.call(f"{operations.__name__}:failing", x, width=x.width)

        graph = graph_of(failing)
        tensors = random_weights(graph.weights)
        if (plan := self.compiled(backend, graph, tensors)) is None:
            return
        runs, cache = Runs(plan), plan.new_cache()
        harmless, harmful = [], []
        for token in range(operations.VOCABULARY):
            ids = np.array([token], np.int32)
            try:
                runs.prefill(ids)
                harmless.append(token)
            except Refusal:
                harmful.append(token)
        ids = np.array([harmless[0], harmful[0]], np.int32)
        runs.forward(cache, Piece(0, ids, 0, 1))
        try:
            runs.forward(cache, Piece(0, ids, 1, 2))
        except FORWARD_FAULTS:
            expect(cache.length(0) == 1, f"after an operation that raised the cache holds {cache.length(0)} tokens, "
                                         "not 1 as before")
            return

    def test_a_cache_is_measured_and_a_plan_is_closed(self, backend: Backend, host: Host) -> None:
        for name, runs, graph, tensors in self.running(backend, host):
            cache, ids = runs.plan.new_cache(), self.prompts(graph)[0]
            batch = runs.batch(Piece(0, ids, 0, len(ids)))
            before = copy.deepcopy(batch)
            runs.plan.forward(batch, cache)
            for field in ("tokens", "positions", "sequences", "wanted"):
                expect(np.array_equal(getattr(batch, field), getattr(before, field)), f"forward() changes its {field}")
            expect(cache.length(0) == len(ids) and cache.length(1) == 0, f"{name}: the lengths of the cache are wrong")
            expect(type(cache.nbytes) is int and cache.nbytes > 0, f"{name}: the cache takes {cache.nbytes!r} bytes")
            needs = backend.needs(graph, tensors, LIMITS)
            expect(needs is None or needs.cache >= cache.nbytes, f"{name}: needs() says that the cache takes "
                   f"{needs and needs.cache} bytes when it is full; with {len(ids)} tokens it takes {cache.nbytes}")
            runs.plan.close()
            runs.plan.close()


def with_prefix(ids: list[int]) -> Any:
    """The first seven tokens see one another."""
    return replace(counting(ids), prefix=min(7, len(ids)))
