"""The engine: requests together give the same tokens as alone, and every end has its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.architecture import PromptLayout
from bestiary.backend import Batch, KVCache, Limits, Plan
from bestiary.engine import Engine, Generation, Request
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Trace
from bestiary.host import Host
from bestiary.sampling import Sampling
from bestiary.tensor import ArrayTensor

VOCABULARY = 23
GREEDY = Sampling(temperature=0)


def graph(prefix_mask: bool = False) -> Graph:
    g = Trace()
    x = g.embed("embed", VOCABULARY, 16)
    for i in g.layers(2):
        q, k, v = (g.linear(g.rms_norm(x, None, 1e-5), f"{i}.{name}", 16) for name in "qkv")
        mask = "prefix" if prefix_mask else "causal"
        x = g.add(x, g.attention(g.rope(q, 8, 100.0), g.rope(k, 8, 100.0), v, 2, 2, mask=mask))
    return g.finish(g.linear(x, "output", VOCABULARY), hidden=x, prefix_mask=prefix_mask)


class Watched(Plan):
    """A plan that remembers how many tokens of which sequence each forward ran."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.graph, self.limits = plan, plan.graph, plan.limits
        self.batches: list[list[int]] = []
        self.broken = False

    def new_cache(self, limits: Limits | None = None) -> KVCache:
        return self.plan.new_cache(limits)

    def forward(self, batch: Batch, cache: KVCache, output: str = "logits") -> NDArray[np.float32]:
        if self.broken:
            raise BestiaryError("broken")
        self.batches.append(batch.sequences.tolist())
        return self.plan.forward(batch, cache, output)


@pytest.fixture
def build(host: Host) -> Any:
    """A function that makes an engine over a small random model; its limits by keyword."""
    random = np.random.default_rng(4)
    tensors = {name: ArrayTensor(2 * random.standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5)
               for name, shape in graph().weights.items()}

    def make(prefix: int = 0, layout: Callable[[list[int]], PromptLayout] | None = None, **limits: Any) -> Engine:
        given = {"context": 40, "sequences": 3, "batch": 16, "cache_type_k": "f32", "cache_type_v": "f32", **limits}
        plan = host.backends["numpy"].compile(graph(bool(prefix)), tensors, Limits(**given))

        def counting(ids: list[int]) -> PromptLayout:
            return PromptLayout((tuple(range(len(ids))),), (len(ids),), (1,), prefix)

        return Engine(Watched(plan), layout or counting)

    return make


def watched(engine: Engine) -> Watched:
    assert isinstance(engine.plan.plan, Watched)
    return engine.plan.plan


def request(ids: Sequence[int], count: int = 10, **more: Any) -> Request:
    return Request(tuple(ids), count, GREEDY, **more)


def generate(engine: Engine, asked: Request) -> list[int]:
    generation = engine.submit(asked)
    tokens = list(engine.run(generation))
    assert generation.tokens == tokens
    return tokens


def by_hand(engine: Engine, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens by the whole text anew for each."""
    chosen = list(ids)
    for _ in range(count):
        n = len(chosen)
        logits = watched(engine).plan.forward(
            Batch(np.array(chosen, np.int32), np.arange(n, dtype=np.int32)[None], np.zeros(n, np.int32),
                  np.array([n - 1], np.int32)), engine.plan.new_cache(Limits(
                      64, 1, 64, cache_type_k="f32", cache_type_v="f32")))
        assert np.diff(np.sort(logits[0])[-2:]) > 1e-3, "the model's choice is not clear enough for this test"
        chosen.append(int(logits[0].argmax()))
    return chosen[len(ids):]


PROMPTS = ([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4], [12, 3] * 6, [20, 1, 20])


def test_one_request_gives_what_running_the_whole_text_gives(build: Any) -> None:
    engine = build(batch=64)
    for prompt in PROMPTS:
        assert generate(engine, request(prompt)) == by_hand(engine, prompt, 10)


@pytest.mark.parametrize("limits", [{"sequences": 6}, {"sequences": 3}, {"sequences": 2, "batch": 3}, {"sequences": 1},
                                    {"sequences": 6, "batch": 1}], ids=str)
def test_requests_together_give_the_same_as_alone(build: Any, limits: dict[str, int]) -> None:
    alone = [generate(build(), request(prompt, 6 + i)) for i, prompt in enumerate(PROMPTS)]
    engine = build(**limits)
    running = [engine.submit(request(prompt, 6 + i)) for i, prompt in enumerate(PROMPTS)]
    for i in (4, 0, 5, 3, 1, 2):
        assert list(engine.run(running[i])) == alone[i]
    assert all(generation.reason == "length" for generation in running)
    assert max(len(batch) for batch in watched(engine).batches) <= engine.plan.limits.batch


def test_sampled_requests_together_give_the_same_as_alone(build: Any) -> None:
    def asked(i: int) -> Request:
        return Request(tuple(PROMPTS[i]), 8, Sampling(seed=i, temperature=0.3))

    alone = [generate(build(), asked(i)) for i in range(len(PROMPTS))]
    engine = build()
    running = [engine.submit(asked(i)) for i in range(len(PROMPTS))]
    assert [list(engine.run(generation)) for generation in running] == alone


def test_a_long_prompt_is_run_in_parts_beside_what_is_running(build: Any) -> None:
    engine = build(batch=4, sequences=2)
    first = engine.submit(request([1, 2], 20))
    while not first.tokens:
        engine.step()
    long = engine.submit(request(range(1, 20), 1))
    before = len(first.tokens)
    while long.reason is None:
        engine.step()
        assert len(watched(engine).batches[-1]) <= 4
    assert len(first.tokens) - before >= 6  # one token each step, though the prompt was long


def test_the_longest_shared_beginning_is_not_run_again(build: Any) -> None:
    engine = build(sequences=2)
    first = engine.submit(request([1, 2, 3, 4, 5], 3))
    answer = list(engine.run(first))
    other = engine.submit(request([9, 9], 2))
    list(engine.run(other))
    assert (first.reused, other.reused) == (0, 0)
    turn = [1, 2, 3, 4, 5, *answer, 8, 8]
    again = engine.submit(request(turn, 4))
    fresh = generate(build(), request(turn, 4))
    watched(engine).batches.clear()
    assert list(engine.run(again)) == fresh
    assert again.reused == 5 + 2  # what the sequence held: the answer's last token was never run
    assert len(watched(engine).batches[0]) == len(turn) - 7


def test_the_same_prompt_again_runs_its_last_token_only(build: Any) -> None:
    engine = build(sequences=1)
    first = generate(engine, request([1, 2, 3, 4], 5))
    again = engine.submit(request([1, 2, 3, 4], 5))
    assert list(engine.run(again)) == first
    assert again.reused == 3


def test_a_prompt_that_shares_half_of_a_sequence_forgets_the_rest(build: Any) -> None:
    engine = build(sequences=1)
    generate(engine, request([1, 2, 3, 4, 5, 6], 5))
    turned = engine.submit(request([1, 2, 3, 9, 9], 5))
    assert list(engine.run(turned)) == generate(build(), request([1, 2, 3, 9, 9], 5))
    assert turned.reused == 3


def test_tokens_that_stand_elsewhere_in_another_prompt_are_run_again(build: Any) -> None:
    def halves(ids: list[int]) -> PromptLayout:
        """The second half of a prompt stands at one position, and where that is depends on its length."""
        half = len(ids) // 2
        return PromptLayout(((*range(half), *(half,) * (len(ids) - half)),), (half,), (1,))

    long = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for first, second, shared in (([1, 2, 3, 4, 5], long, 3), (long, [1, 2, 3, 4, 5], 3), (long, long, 8)):
        engine = build(layout=halves, sequences=1)
        generate(engine, request(first, 3))
        again = engine.submit(request(second, 6))
        assert list(engine.run(again)) == generate(build(layout=halves), request(second, 6))
        assert again.reused == shared


def test_a_prefix_mask_takes_its_prefix_whole_and_reuses_nothing(build: Any) -> None:
    engine = build(prefix=5, batch=8, sequences=2)
    other = engine.submit(request([3, 2, 1, 2, 3, 4], 12))
    for _ in range(3):
        engine.step()
    asked = request([1, 2, 3, 4, 5, 6], 4)
    generation = engine.submit(asked)
    tokens = list(engine.run(generation))
    own = generation.sequence
    sizes = [batch.count(own) for batch in watched(engine).batches if own in batch]
    assert sizes[0] >= 5
    list(engine.run(other))
    again = engine.submit(asked)
    assert list(engine.run(again)) == tokens
    assert again.reused == 0
    with pytest.raises(BestiaryError, match="a prefix of 5 tokens takes one forward; the limit is 4"):
        build(prefix=5, batch=4).submit(asked)


def ended(engine: Engine, asked: Request) -> Generation:
    generation = engine.submit(asked)
    list(engine.run(generation))
    return generation


def test_an_ending_token_ends_and_is_not_given_out(build: Any) -> None:
    engine = build()
    free = generate(engine, request([1, 2, 3], 10))
    stop = next(token for token in free if free.index(token) > 1)
    generation = ended(engine, request([1, 2, 3], 10, ends=frozenset({stop})))
    assert generation.reason == "end"
    assert generation.tokens == free[:free.index(stop)]


def test_banned_tokens_are_never_generated(build: Any) -> None:
    engine = build()
    free = generate(engine, request([1, 2, 3], 10))
    assert not set(free) & set(generate(engine, request([1, 2, 3], 10, banned=frozenset(free))))


def test_a_full_context_ends_with_its_reason(build: Any) -> None:
    engine = build(context=12)
    generation = ended(engine, request([1, 2, 3], -1))
    assert generation.reason == "context"
    assert len(generation.ids) == 12 + 1  # the last token needs no place: nothing follows it
    assert generation.tokens == by_hand(engine, [1, 2, 3], 10)
    assert ended(engine, request(range(1, 12), 5)).reason in ("context", "length")


def test_what_can_never_run_is_refused_when_it_is_asked_for(build: Any) -> None:
    engine = build(context=12)
    for ids, words in (([], "an empty prompt"), (range(12), "the prompt has 12 tokens; the context holds 12"),
                       ([1, VOCABULARY], f"token {VOCABULARY} is outside of the model's vocabulary of {VOCABULARY}"),
                       ([-1], "token -1 is outside")):
        with pytest.raises(BestiaryError, match=words):
            engine.submit(request(ids))
    assert generate(engine, request([1], 2))  # and nothing of it is left behind


def test_no_tokens_asked_for_runs_the_prompt_only(build: Any) -> None:
    engine = build(context=12)
    generation = ended(engine, request(range(1, 13), 0))
    assert (generation.tokens, generation.reason) == ([], "length")
    assert [len(batch) for batch in watched(engine).batches] == [12]
    again = ended(engine, request(range(1, 12), 1))
    assert again.reused == 10


def test_cancelling_frees_the_place_for_who_waits(build: Any) -> None:
    engine = build(sequences=1)
    first = engine.submit(request([1, 2, 3], 30))
    waiting = engine.submit(request([4, 5], 4))
    running = engine.run(first)
    got = [next(running), next(running)]
    assert waiting.tokens == []
    engine.cancel(first)
    assert (first.reason, first.tokens) == ("cancelled", got)
    assert list(running) == []
    assert list(engine.run(waiting)) == generate(build(), request([4, 5], 4))
    engine.cancel(waiting)
    assert waiting.reason == "length"  # it had ended already


def test_a_request_can_be_cancelled_while_it_waits(build: Any) -> None:
    engine = build(sequences=1)
    first, second = engine.submit(request([1], 5)), engine.submit(request([2], 5))
    engine.cancel(second)
    assert list(engine.run(second)) == []
    assert list(engine.run(first)) == generate(build(), request([1], 5))


def test_what_a_cancelled_sequence_holds_is_reused(build: Any) -> None:
    engine = build(sequences=1)
    first = engine.submit(request([1, 2, 3, 4], 20))
    running = engine.run(first)
    next(running)
    engine.cancel(first)
    again = engine.submit(request([1, 2, 3, 4], 3))
    assert list(engine.run(again)) == generate(build(), request([1, 2, 3, 4], 3))
    assert again.reused == 3


def test_a_forward_that_fails_ends_its_requests_and_no_others(build: Any) -> None:
    engine = build(sequences=1)
    first, waiting = engine.submit(request([1, 2], 5)), engine.submit(request([3], 5))
    watched(engine).broken = True
    with pytest.raises(BestiaryError, match="broken"):
        list(engine.run(first))
    assert first.reason == "cancelled"
    watched(engine).broken = False
    assert list(engine.run(waiting)) == generate(build(), request([3], 5))


def test_requests_run_in_the_order_they_came(build: Any) -> None:
    engine = build(sequences=1)
    running = [engine.submit(request([i + 1], 3)) for i in range(4)]
    order: list[Generation] = []
    while len(order) < 4:
        order += [generation for generation in engine.step() if generation.reason]
    assert order == running
    assert engine.step() == []


def test_first_and_last_token_are_timed(build: Any) -> None:
    generation = ended(build(), request([1, 2], 3))
    assert generation.first_token is not None
    assert generation.last_token is not None
    assert generation.started <= generation.first_token <= generation.last_token


def test_threads_that_share_an_engine_get_what_they_get_alone(build: Any) -> None:
    prompts = [[1 + i, 2, 3] for i in range(8)]
    alone = [generate(build(), request(ids, 12)) for ids in prompts]
    engine = build(sequences=3)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda ids: generate(engine, request(ids, 12)), prompts)) == alone
