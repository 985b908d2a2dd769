"""A loaded model: its plan, its tokenizer, and text out of it."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.architecture import Architecture, Config, PromptLayout
from bestiary.backend import Backend, Batch, Limits, Plan, Progress
from bestiary.canonical import to_canonical
from bestiary.chat import end_ids, rendered, template_of
from bestiary.checkpoint import Checkpoint, TokenizerMaterial, check_model, extended
from bestiary.contributions import shown
from bestiary.convert import convert, recipe_for
from bestiary.difference import SAID, is_difference
from bestiary.encoding import F32
from bestiary.engine import Engine, Generation, Request
from bestiary.errors import BestiaryError, short
from bestiary.guard import calling, printing_to_stderr, whose
from bestiary.guarded_tokenizer import GuardedTokenizer
from bestiary.host import Host
from bestiary.named_function import check_functions
from bestiary.ordering import in_order, say_decoded
from bestiary.overrides import check_taken, in_place_of, overridden, spelled, unused
from bestiary.past import compiled
from bestiary.rank_list import with_vocabulary
from bestiary.sampling import Sampling
from bestiary.template import Message, Template
from bestiary.tokenizer import Stream, Tokenizer
from bestiary.tokenizer_builder import build_tokenizer

log = logging.getLogger("bestiary")
LARGEST = 1 << 24
"""Of any number of tokens, sequences or threads: far more than fits, far less than overflows."""


class Model:
    """A checkpoint that is ready to run. A context manager; `close` frees its weights."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, backend: Backend, plan: Plan,
                 tokenizer: Tokenizer | None, material: TokenizerMaterial | None = None,
                 host: Host | None = None) -> None:
        """material: what the tokenizer was made of, where that is not the checkpoint's. host: knows chat formats."""
        self.checkpoint, self.architecture, self.backend, self.plan = checkpoint, architecture, backend, plan
        self._tokenizer, self.host = tokenizer, host
        self.tokenizer_material = checkpoint.tokenizer if material is None else material
        self.whose: Callable[[object], str] = whose if host is None else host.whose
        """A plugin's item in words."""
        self.engine = Engine(plan, self.layout, self.whose(backend))

    @property
    def config(self) -> Config:
        """The normalised config, in Hugging Face's key names."""
        return self.checkpoint.config

    @property
    def held(self) -> Checkpoint:
        """The checkpoint in the bits that it runs in, which may be in other orders of columns (see Tensor.ordered)."""
        return self.checkpoint.having(
            tensors=in_order(self.plan.graph, self.checkpoint.tensors, self.backend)[1])

    def facts(self) -> dict[str, str]:
        """How it runs: what the backend says of itself, and the threads that were asked for."""
        asked = {"threads": self.plan.limits.threads, "threads_prefill": self.plan.limits.threads_prefill}
        with calling(self.whose(self.backend), "describe itself"), printing_to_stderr():
            facts = dict(self.backend.describe())
        return {**facts, **{name: str(count) for name, count in asked.items() if count is not None}}

    def layout(self, ids: list[int]) -> PromptLayout:
        """Where a prompt's tokens stand. Raises BestiaryError where the architecture does not say it of every one."""
        who = self.whose(self.architecture)
        with calling(who, "lay out a prompt"), printing_to_stderr():
            found: object = self.architecture.layout(ids, self.config)
            if isinstance(found, PromptLayout) and stands(found, len(ids), self.plan.limits.context):
                return found
        raise BestiaryError(f"{who} laid out {len(ids)} tokens as {shown(found)}, not as a PromptLayout of them")

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises BestiaryError where the checkpoint came without one."""
        if self._tokenizer is None:
            raise BestiaryError(f"{self.checkpoint.path} has no tokenizer; name one with --tokenizer FILE")
        return self._tokenizer

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """The logits after each token of one sequence from token `first` on, (len(ids) - first, vocabulary)."""
        return self._forward(ids, "logits", first)

    def hidden(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The last hidden state of each token of one sequence, (len(ids), width)."""
        return self._forward(ids, "hidden")

    def _forward(self, ids: Sequence[int], output: str, first: int = 0) -> NDArray[np.float32]:
        ids = whole_ids(ids)
        if len(ids) > self.plan.limits.context:
            raise BestiaryError(f"{len(ids)} tokens; the context holds {self.plan.limits.context}")
        layout = self.layout(ids)
        cache = self.engine.plan.new_cache(replace(self.plan.limits, sequences=1, context=max(len(ids), 1)))
        vocabulary = self.plan.graph.vocabulary
        if not all(0 <= i < vocabulary for i in ids):
            raise BestiaryError(f"a token outside of the model's vocabulary of {vocabulary}")
        tokens, positions = np.array(ids, np.int64), np.array(layout.positions, np.int32)
        width = vocabulary if output == "logits" else self.plan.graph.nodes[self.plan.graph.hidden].width
        out = np.empty((max(len(ids) - first, 0), width), np.float32)
        step = self.plan.limits.batch
        for start in range(0, len(ids), step):
            part = slice(start, min(start + step, len(ids)))
            count = part.stop - start
            skipped = min(max(first - start, 0), count)
            batch = Batch(tokens[part].astype(np.int32), positions[:, part], np.zeros(count, np.int32),
                          wanted=np.arange(skipped, count, dtype=np.int32), prefixes={0: layout.prefix})
            with self.engine.lock:
                rows = self.engine.plan.forward(batch, cache, output)
            if skipped < count:
                out[start + skipped - first:part.stop - first] = rows
        return out

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int = -1, temperature: float = 0.8, top_k: int = 40,
                 top_p: float = 0.95, min_p: float = 0.05, seed: int | None = None, stop: str | Iterable[str] = (),
                 ignore_eos: bool = False, special: bool = False, **sampling: Any) -> TextStream:
        """Text that continues the prompt, piece by piece as it comes; a prompt of ids is taken as it is.

        stop: strings that end the text, themselves not included. special: spellings of special tokens in the prompt
        are those tokens. Further keywords are those of sampling.Sampling.
        """
        ids = (self.tokenizer.encode(prompt, bos=True, special=special) if isinstance(prompt, str)
               else whole_ids(prompt))
        settings = sampling_of({"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
                                "seed": seed, **sampling})
        return self.generate_from(ids, max_tokens, settings, stop, ignore_eos)

    def template(self, chosen: Template | str | None = None) -> Template:
        """The chat format: the checkpoint's own, or the one chosen (a name, a file of Jinja, a template). Raises
        BestiaryError, naming those there are, where the checkpoint has none and none is chosen."""
        return template_of(self.tokenizer_material, self.tokenizer, self.host, self.architecture, chosen)

    def chat(self, messages: Sequence[Message], template: Template | str | None = None, *, max_tokens: int = -1,
             stop: str | Iterable[str] = (), ignore_eos: bool = False, **sampling: Any) -> TextStream:
        """The answer to the messages, piece by piece as it comes; each has a "role" and a "content". Keywords as for
        `generate`. What is a special token in the template's text is none in a message's."""
        return self.chat_from(messages, self.template(template), max_tokens, sampling_of(sampling), stop, ignore_eos)

    def chat_from(self, messages: Sequence[Message], template: Template, max_tokens: int, sampling: Sampling,
                  stop: str | Iterable[str] = (), ignore_eos: bool = False) -> TextStream:
        """As `chat`, of complete settings."""
        if isinstance(messages, (str, bytes)) or not all(isinstance(message, Mapping) for message in messages):
            raise BestiaryError('messages are a list like [{"role": "user", "content": "Hello"}]')
        segments = rendered(template, messages, self.whose(template))
        ids = self.tokenizer.encode_segments(segments, bos=True)
        stops = (*template.stop, *stop_texts(stop))
        return self.generate_from(ids, max_tokens, sampling, stops, ignore_eos, end_ids(template, self.tokenizer))

    def generate_from(self, ids: Sequence[int], max_tokens: int, sampling: Sampling, stop: str | Iterable[str] = (),
                      ignore_eos: bool = False, ends: Iterable[int] = ()) -> TextStream:
        """As `generate`, of ids and complete settings. ends: ids that end the text, beside the tokenizer's."""
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < -1:
            raise BestiaryError(f"max_tokens = {max_tokens!r}; it must be 0 or more, or -1 for as many as fit")
        stops = stop_texts(stop)
        ends = frozenset(self.tokenizer.ends) | frozenset(ends)
        nameless = range(self.tokenizer.size, self.plan.graph.vocabulary)  # rows that no piece belongs to
        request = Request(tuple(ids), max_tokens, sampling, frozenset() if ignore_eos else ends,
                          frozenset(nameless) | (ends if ignore_eos else frozenset()))
        return TextStream(self, self.engine.submit(request), stops)

    def close(self) -> None:
        """Frees the weights; the model is not used again."""
        self.engine.plan.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def stands(layout: PromptLayout, count: int, context: int) -> bool:
    """Whether it says of each of `count` tokens, and of those after it, where they stand."""
    if not len(layout.next) == len(layout.step) == len(layout.positions) > 0:
        return False
    ends = [first + step * context for first, step in zip(layout.next, layout.step, strict=True)]
    streams = [np.asarray(numbers) for numbers in (*layout.positions, layout.next, ends)]
    return (type(layout.prefix) is int and 0 <= layout.prefix <= count
            and all(len(stream) == count for stream in layout.positions)
            and all(stream.ndim == 1 and (not stream.size or stream.dtype.kind in "iu" and stream.min() >= 0
                                          and stream.max() < 1 << 31) for stream in streams))


def whole_ids(ids: Sequence[int]) -> list[int]:
    """The ids as Python's integers. Raises BestiaryError for anything else."""
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        raise BestiaryError(f"{short(ids)} is no text and no list of token ids") from None


def stop_texts(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """The texts that end a text. Raises BestiaryError for anything but a text or several."""
    try:
        found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    except TypeError:
        found = (None,)  # type: ignore[assignment]
    if not all(isinstance(text, str) for text in found):
        raise BestiaryError(f"stop = {short(stop)}; it must be a text or a list of them")
    return found


class TextStream(Iterator[str]):
    """The text of a generation as it comes. Closing it, or dropping it, cancels what is left.

    reason: why it ended: "end", "stop" (a stop string), "length", "context" or "cancelled".
    """

    def __init__(self, model: Model, generation: Generation, stop: tuple[str, ...]) -> None:
        self._model, self.generation = model, generation
        self._stop = tuple(text for text in stop if text)
        self.reason: str | None = None
        self._pieces = self._text()

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()
        self._model.engine.cancel(self.generation)
        self.reason = self.reason or self.generation.reason

    def _text(self) -> Generator[str, None, None]:
        tokenizer = self._model.tokenizer
        prompt = self.generation.request.ids
        known = tokenizer.size  # many embeddings have more rows, and a token of those stands for no text
        stream = Stream(tokenizer, start=all(i >= known or tokenizer.special(i) for i in prompt))
        held = ""  # text that may turn out to be the beginning of a stop string
        try:
            for token in self._model.engine.run(self.generation):
                held += stream.push(token) if token < known else ""
                text, held, found = release(held, self._stop)
                if found:
                    self._model.engine.cancel(self.generation)
                    self.reason = "stop"
                if text:
                    yield text
                if found:
                    return
            self.reason = self.generation.reason
            text, rest, found = release(held + stream.finish(), self._stop)
            if found:
                self.reason = "stop"
            if tail := text + ("" if found else rest):
                yield tail
        finally:
            self._model.engine.cancel(self.generation)


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Sampling from keywords. Raises BestiaryError for one that is unknown."""
    known = [field.name for field in fields(Sampling)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise BestiaryError(f"unknown sampling option {unknown[0]!r}; known: {', '.join(known)}")
    return Sampling(**options)


def release(held: str, stop: tuple[str, ...]) -> tuple[str, str, bool]:
    """What of the text may be given out, what must be held back as a stop string's possible beginning, and whether a
    stop string was found: then the text before it is given out and nothing is held."""
    found = [at for at in (held.find(text) for text in stop) if at >= 0]
    if found:
        return held[:min(found)], "", True
    longest = max((n for text in stop for n in range(min(len(text) - 1, len(held)), 0, -1) if held.endswith(text[:n])),
                  default=0)
    return held[:len(held) - longest], held[len(held) - longest:], False


def load(path: str | os.PathLike[str], backend: str | None = None, threads: int | None = None,
         context: int | None = None, type: str | None = None, host: Host | None = None, *,
         tokenizer: str | os.PathLike[str] | None = None, add: str | os.PathLike[str] | None = None,
         batch: int = 512, sequences: int = 1, threads_prefill: int | None = None,
         cache_type_k: str | None = None, cache_type_v: str | None = None, loader: str | None = None,
         architecture: str | None = None, config: Config | None = None, progress: Progress | None = None) -> Model:
    """Loads a checkpoint of any known format.

    backend: by default the fastest that runs here (cpu, else numpy). threads: by default what the machine allows.
    context: tokens a sequence may hold; by default what the model was made for. type: a quantizer's name to
    quantize by while loading; by default the checkpoint keeps its own types. tokenizer: a file or checkpoint to
    take the tokenizer from. add: a checkpoint of further tensors, a trained prefix for example. cache_type_k,
    cache_type_v: encodings of the KV cache (f32, f16 or another of the backend's), by default f16, and f32 for a
    checkpoint whose weights are all f32. config: values in place of the checkpoint's own. Raises BestiaryError for
    anything wrong with the file or the choices.
    """
    host = host or Host()
    checkpoint = host.open(Path(path), loader)
    check_model(checkpoint)
    if add is not None:
        checkpoint = extended(checkpoint, host.open(Path(add)))
    said, config = checkpoint.config, spelled(config or {}, checkpoint.config)
    if config:
        checkpoint = overridden(checkpoint, config)
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)
    for name, count in (("context", context), ("threads", threads), ("threads_prefill", threads_prefill),
                        ("batch", batch), ("sequences", sequences)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= LARGEST):
            raise BestiaryError(f"{name} = {count!r}; it must be an integer from 1 to {LARGEST}")
    with host.calling(family, f"read {path}"):
        checkpoint, graph = to_canonical(checkpoint, family, context)
        check_taken(config, said, checkpoint.config, family)
        check_functions(graph, host.whose(family))
    if line := unused(config, graph):
        log.warning("%s", line)
    if is_difference(graph, checkpoint.tensors):
        log.warning("%s: %s", path, SAID)
    if type is not None:
        before = checkpoint.tensors
        checkpoint = convert(checkpoint, graph, recipe_for(host.quantizers[type], requantize=True), host)
        say_decoded(before, checkpoint.tensors, f"is lost on the way to {type}")
    made_for = int(checkpoint.config["max_position_embeddings"])
    if context is not None and context > made_for:
        log.warning("the model was made for a context of %d tokens; beyond them it may speak nonsense", made_for)
    context = context or made_for
    cache = "f32" if all(tensor.encoding == F32 for tensor in checkpoint.tensors.values()) else "f16"
    batch = context * sequences if graph.prefix_mask else min(batch, context * sequences)  # a prefix takes one forward
    limits = Limits(context, sequences, batch, threads, threads_prefill,
                    cache_type_k or cache, cache_type_v or cache)
    material = checkpoint.tokenizer
    if tokenizer is not None:
        material = in_place_of(material, host.open(Path(tokenizer)).tokenizer)
    speaks = make_tokenizer(material, family, checkpoint.config, host)  # what is wrong with it is said at once
    runs_on = choose_backend(host, backend)
    with host.calling(runs_on, f"prepare {path}"):
        plan = compiled(runs_on, graph, checkpoint.tensors, limits, progress)
    if not isinstance(plan, Plan):
        raise BestiaryError(f"{host.whose(runs_on)} prepared {path} and gave {shown(plan)}, not a Plan")
    return Model(checkpoint, family, runs_on, plan, speaks, material, host)


def made_for(path: str | os.PathLike[str], host: Host, loader: str | None = None,
             architecture: str | None = None) -> int:
    """Tokens of the context that the model was made for. Raises BestiaryError as `load` does."""
    checkpoint = host.open(Path(path), loader)
    family = host.architecture_of(checkpoint.config, checkpoint.tokenizer, architecture)
    with host.calling(family, f"read {path}"):
        return int(to_canonical(checkpoint, family)[0].config["max_position_embeddings"])


def choose_backend(host: Host, name: str | None) -> Backend:
    """The backend named, or the available one of the highest rank; one line says what a better one lacks."""
    if name is not None:
        backend = host.backends[name]
        if (reason := host.unavailable(backend)) is not None:
            raise BestiaryError(f"backend {name} does not run here: {reason}")
        return backend
    ranked = sorted((entry.item for entry in host.backends.entries()), key=lambda backend: -backend.rank)
    reasons: list[tuple[str, str]] = []
    for backend in ranked:
        reason = host.unavailable(backend)
        if reason is None:
            for missing, why in reasons:
                log.warning("backend %s does not run here: %s; %s is used instead, which is slower", missing, why,
                            backend.name)
            return backend
        reasons.append((backend.name, reason))
    raise BestiaryError("no backend runs here")


def make_tokenizer(material: TokenizerMaterial, family: Architecture | None, config: Config,
                   host: Host | None = None) -> Tokenizer | None:
    """The tokenizer of a checkpoint with its family's own handling around it; None where the checkpoint has none. What
    the family does not know of vocabularies, the others of the host may."""
    if material.empty:
        return None
    rules, lists = (dict(host.pre_tokenizers), [*host.rank_lists.values()]) if host else ({}, [])
    if family is None:
        return build_tokenizer(with_vocabulary(material, lists), rules)
    rules, lists = {**rules, **family.pre_tokenizers}, [*family.rank_lists, *lists]
    who = whose(family) if host is None else host.whose(family)
    with calling(who, "complete the tokenizer"), printing_to_stderr():
        material = family.material(material, config)
    tokenizer = build_tokenizer(with_rule(with_vocabulary(material, lists), family), rules)
    with calling(who, "wrap the tokenizer"), printing_to_stderr():
        wrapped: object = family.wrap(tokenizer, config)
    return tokenizer if wrapped is tokenizer else GuardedTokenizer(wrapped, who)


def with_rule(material: TokenizerMaterial, family: Architecture) -> TokenizerMaterial:
    """Files of 2023 do not name the rule that splits text: it is the family's where it has just one."""
    vocabulary = material.vocabulary
    files = material.files.keys() & {"tokenizer.model", "tokenizer.json"}
    if vocabulary is None or vocabulary.algorithm != "bytes" or vocabulary.pre_tokenizer or files:
        return material
    if len(set(family.pre_tokenizers.values())) != 1:
        raise BestiaryError("the file does not say how its tokenizer splits text, as many of 2023 and early 2024 do "
                            f"not, and models of {family.name} differ in it; convert the model anew, or name its "
                            "tokenizer with --tokenizer FILE")
    name = next(iter(family.pre_tokenizers))
    log.warning("the file does not say how its tokenizer splits text; models of %s do it as %s", family.name, name)
    return replace(material, vocabulary=replace(vocabulary, pre_tokenizer=name))


def load_tokenizer(path: str | os.PathLike[str], host: Host | None = None, loader: str | None = None) -> Tokenizer:
    """The tokenizer alone, of any checkpoint or vocabulary-only file."""
    return open_tokenizer(path, host or Host(), loader)[0]


def open_tokenizer(path: str | os.PathLike[str], host: Host, loader: str | None = None,
                   ) -> tuple[Tokenizer, TokenizerMaterial, Architecture | None]:
    """As `load_tokenizer`; with what it was made of, and its family where the checkpoint is a model's."""
    checkpoint = host.open(Path(path), loader)
    family = None if checkpoint.vocabulary_only else host.architecture_of(checkpoint.config, checkpoint.tokenizer)
    tokenizer = make_tokenizer(checkpoint.tokenizer, family, checkpoint.config, host)
    if tokenizer is None:
        raise BestiaryError(f"{path} has no tokenizer")
    return tokenizer, checkpoint.tokenizer, family
