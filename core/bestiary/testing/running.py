"""The part of an architecture's contract that runs its forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.architecture import PromptLayout
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.past import compiled
from bestiary.testing.contract import Broken, Contract, expect
from bestiary.testing.tiny import LIMITS, Ids, Model, Piece, Runs, difference, random_ids, running_backends

if TYPE_CHECKING:
    from bestiary.architecture import Architecture

TOKENS = 21


class RunningContract(Contract):
    """backends: names of those that the model is run on, by default all that run here. reference: the one that is
    right. bound: how far logits may be apart that should be the same, as a share of their spread."""

    backends: Sequence[str] | None = None
    reference: str = "numpy"
    bound: float = 1e-4

    def models(self, architecture: Architecture) -> Iterator[tuple[str, Model]]:
        raise NotImplementedError

    def ids(self, config: Mapping[str, Any], count: int, seed: int) -> Ids:
        """Token ids of a prompt; override it where the layout of one needs certain tokens."""
        return random_ids(config["vocab_size"], count, seed)

    def prompts(self, model: Model) -> list[Ids]:
        """Three, of different lengths."""
        config = model.checkpoint.config
        most = min(TOKENS, config["max_position_embeddings"])
        return [self.ids(config, count, seed) for seed, count in enumerate((most, max(most // 2, 1), max(most - 3, 1)))]

    def runs(self, host: Host, backend: str, model: Model, threads: int = 1) -> Runs:
        plan = compiled(host.backends[backend], model.graph, model.tensors, replace(LIMITS, threads=threads))
        return Runs(plan, model.layout)

    def test_a_layout_has_a_place_for_every_token(self, architecture: Architecture) -> None:
        for which, model in self.models(architecture):
            streams = max([node.params["stream"] + 1 for node in model.graph.nodes if node.op == "rope"], default=1)
            for ids in (*self.prompts(model), self.prompts(model)[0][:1]):
                layout = model.layout(ids.tolist())
                expect(isinstance(layout, PromptLayout), f"layout() gives {type(layout).__name__} ({which})")
                found = len(layout.positions), len(layout.next), len(layout.step)
                expect(min(found) == max(found) >= streams, f"layout() has positions, next and step for {found} "
                       f"position streams; the graph of {which} uses {streams}")
                lengths = {len(stream) for stream in layout.positions}
                expect(lengths == {len(ids)}, f"layout() of {len(ids)} tokens has positions of {lengths} ({which})")
                expect(0 <= layout.prefix <= len(ids), f"layout() of {len(ids)} tokens: prefix {layout.prefix}")
                expect(model.graph.prefix_mask or not layout.prefix, f"layout() has a prefix of {layout.prefix}, and "
                       f"the graph of {which} is finished without prefix_mask=True")
                expect(model.layout(ids.tolist()) == layout, "layout() of the same ids differs")

    def test_what_is_generated_stands_where_it_would_in_a_prompt(self, architecture: Architecture) -> None:
        """`next` and `step` go on as layout() itself does; not where a longer prompt's tokens stand elsewhere."""
        for which, model in self.models(architecture):
            for ids in (prompt.tolist() for prompt in self.prompts(model) if len(prompt) > 2):
                layout, longer = model.layout(ids[:-2]), model.layout(ids)
                if longer.prefix != layout.prefix or tuple(
                        tuple(stream)[:-2] for stream in longer.positions) != tuple(map(tuple, layout.positions)):
                    continue
                found = [(first, first + step) for first, step in zip(layout.next, layout.step, strict=True)]
                wanted = [tuple(stream)[-2:] for stream in longer.positions]
                expect(found == wanted, f"after {len(ids) - 2} tokens next = {layout.next}, step = {layout.step} put "
                       f"two more at {found}; layout() of all {len(ids)} puts them at {wanted} ({which})")

    def test_the_forward_pass_gives_numbers(self, architecture: Architecture, host: Host) -> None:
        for which, model in self.models(architecture):
            ids = self.prompts(model)[0]
            try:
                logits = self.runs(host, self.reference, model).prefill(ids)
            except Exception as error:
                raise Broken(f"the forward pass of {which} fails: {type(error).__name__}: {error}") from error
            expect(logits.shape == (len(ids), model.graph.vocabulary), f"{which}: logits of shape {logits.shape}")
            expect(np.isfinite(logits).all(), f"{which}: logits that are infinite or no number")
            expect(np.ptp(logits) > 1e-3, f"{which}: all logits are alike; do they depend on the weights?")

    def test_what_comes_later_changes_nothing_before_it(self, architecture: Architecture, host: Host) -> None:
        for which, model in self.models(architecture):
            runs, ids = self.runs(host, self.reference, model), self.prompts(model)[0]
            changed = ids.copy()
            changed[-1] = (changed[-1] + 1) % model.graph.vocabulary
            if runs.prefix(changed) != runs.prefix(ids) or runs.prefix(ids) == len(ids):
                continue
            one, other = runs.prefill(ids), runs.prefill(changed)
            found = difference(other[:-1], one[:-1])
            expect(found <= self.bound, f"{which}: the last token changes the logits before it by {found:.1e} of their "
                                        "spread")
            expect(np.abs(other[-1] - one[-1]).max() > 0, f"{which}: the last token does not change its own logits")

    def test_the_cache_changes_nothing(self, architecture: Architecture, host: Host) -> None:
        """One by one, in pieces, beside others, after truncating and copying: the logits of one prefill. An operation
        of the model's own that looks at other tokens than its row does not keep this."""
        for which, model in self.models(architecture):
            runs = self.runs(host, self.reference, model)
            ids, *others = self.prompts(model)
            wanted = runs.prefill(ids)
            for way, logits in runs.every_way(ids, others).items():
                found = difference(logits, wanted)
                expect(found <= self.bound, f"{which}, {way}: the logits are {found:.1e} of their spread from those of "
                                            f"one prefill; at most {self.bound:.1e} are rounding")

    def test_every_backend_gives_the_same(self, architecture: Architecture, host: Host) -> None:
        """Those that can run it; where one says that it is exact, to the bit whatever threads, batch and pieces."""
        for which, model in self.models(architecture):
            ids, *others = self.prompts(model)
            wanted = self.runs(host, self.reference, model).prefill(ids)
            for name, backend in running_backends(host, self.backends).items():
                try:
                    runs = self.runs(host, name, model)
                except BestiaryError as error:
                    expect(self.backends is None, f"{which}: the backend {name} refuses it: {error}")
                    continue  # it says what it cannot run
                logits = runs.prefill(ids)
                found = difference(logits, wanted)
                expect(found <= self.bound, f"{which}: the backend {name} is {found:.1e} of the spread of the logits "
                                            f"from {self.reference}; the bound is {self.bound:.1e}")
                bound = 0.0 if backend.exact else self.bound
                ways = {**runs.every_way(ids, others), **{f"with {threads} threads": self.runs(
                    host, name, model, threads).prefill(ids) for threads in (2, 3)}}
                for way, rows in ways.items():
                    found = difference(rows, logits)
                    expect(found <= bound, f"{which}: the backend {name} {way} is {found:.1e} of the spread of the "
                                           f"logits from its own prefill; the bound is {bound:.1e}")

    def test_two_halves_make_the_whole(self, architecture: Architecture, host: Host) -> None:
        for which, model in self.models(architecture):
            ids = self.prompts(model)[0]
            wanted = self.runs(host, self.reference, model).prefill(ids)
            try:
                parts = model.graph.cut(model.graph.layers // 2)
            except BestiaryError:
                continue  # more than one value crosses the cut
            backend = host.backends[self.reference]
            first, second = (Runs(backend.compile(part, model.tensors, LIMITS), model.layout) for part in parts)
            piece = Piece(0, ids, 0, len(ids))
            hidden = first.forward(first.plan.new_cache(), piece, output="hidden")
            logits = second.plan.forward(second.batch(piece, hidden=hidden), second.plan.new_cache())
            expect(difference(logits, wanted) <= self.bound, f"{which}: the graph cut in two gives other logits")
