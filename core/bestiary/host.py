"""The plugin host: loads plugins, calls their hooks under guard, and keeps what they provide by name."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bestiary import hookspecs
from bestiary.architecture import Architecture, PreTokenizer, RankList
from bestiary.backend import Backend
from bestiary.contributions import KINDS, Refused, call_hooks, one_line, shown
from bestiary.discovery import OWN, Candidate, installed, one_file
from bestiary.encoding import PLAIN, Encoding
from bestiary.errors import BestiaryError, printable
from bestiary.first_look import described, first_look
from bestiary.guard import PASSING, calling, loading, printing_to_stderr, same, whose
from bestiary.hooks import hooks_of
from bestiary.loader import Loader, Writer
from bestiary.plugin_report import PluginReport
from bestiary.quantizer import Quantizer
from bestiary.registry import Origin, Provided, Registry, normal
from bestiary.template import Template

if TYPE_CHECKING:
    from bestiary.checkpoint import Checkpoint, TokenizerMaterial

T = TypeVar("T")
_SLOW = 1.0
"""Seconds of a plugin's import from which on the user is told: every command waits for it."""


@dataclass(frozen=True)
class HostSettings:
    """What a Host loads, and what wins; pickles, so that a worker process can make the same Host again.

    names: the third parties to load, by distribution or entry point; None for all that are installed. files: one-file
    plugins. prefer: distributions that win where two provide one name, the first one first.
    """

    names: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, files: Iterable[str] = (), prefer: Iterable[str] = ()) -> HostSettings:
        """With `names` from BESTIARY_PLUGINS: unset means all third parties, empty none, "a,b" exactly those."""
        listed = os.environ.get("BESTIARY_PLUGINS")
        names = None if listed is None else tuple(name.strip() for name in listed.split(",") if name.strip())
        return cls(names, tuple(files), tuple(prefer))


@dataclass
class _Plugin:
    """A plugin, its hooks once it is loaded, and what those that were called gave."""

    candidate: Candidate
    hooks: dict[str, list[Callable[[], Any]]] | None = None
    provided: dict[str, tuple[Provided[Any], ...]] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None
    traceback: str | None = None

    @property
    def origin(self) -> Origin:
        return self.candidate.origin


_said: set[str] = set()  # one line per plugin and process, however many hosts the process makes


class Host:
    """The plugins, and what they provide.

    Making one reads metadata of installed distributions and imports nothing; plugins are imported, and a hook is
    called, when something of its kind is first asked for. A plugin that cannot be imported, or one of whose hooks
    fails, is set aside as a whole: nothing of it is used, one line on the log `bestiary` says so, `report` has the
    traceback. Only hooks set a plugin aside: what fails of its items later, asked by `recognise`, `architecture_of`
    or `unavailable`, counts as not able and is said; what fails under `calling` is an error that names the item.

    Raises BestiaryError where the settings name a distribution or file that does not exist.
    """

    def __init__(self, settings: HostSettings | None = None, entry_points: bool = True) -> None:
        settings = HostSettings.from_environment() if settings is None else settings
        self.settings = replace(settings, files=tuple(os.path.abspath(file) for file in settings.files))
        self.entry_points = entry_points
        found = installed(hookspecs.GROUP, settings.names) if entry_points else []
        self._plugins = [_Plugin(candidate) for candidate in (*found, *map(one_file, self.settings.files))]
        self._registries: dict[str, Registry[Any]] = {}
        self._lock = threading.RLock()
        self._quiet = False
        self._clashing: set[str] = set()  # whose clashes were said
        distributions = {normal(plugin.origin.distribution) for plugin in self._plugins} | {OWN}
        for name in settings.prefer:
            if normal(name) not in distributions:
                raise BestiaryError(f"--prefer {name}: no plugin comes from it; they come from: "
                                    + ", ".join(sorted(distributions)))

    def __reduce__(self) -> tuple[Callable[[HostSettings, bool], Host], tuple[HostSettings, bool]]:
        return _again, (self.settings, self.entry_points)

    @property
    def architectures(self) -> Registry[Architecture]:
        return self._registry("architectures")

    @property
    def loaders(self) -> Registry[Loader]:
        return self._registry("loaders")

    @property
    def writers(self) -> Registry[Writer]:
        return self._registry("writers")

    @property
    def quantizers(self) -> Registry[Quantizer]:
        return self._registry("quantizers")

    @property
    def backends(self) -> Registry[Backend]:
        return self._registry("backends")

    @property
    def commands(self) -> Registry[str]:
        """name -> "module:function"."""
        return self._registry("commands")

    @property
    def encodings(self) -> Registry[Encoding]:
        """The plain numbers, what each quantizer writes, and what only loaders know. Several may know one encoding."""
        with self._lock:
            known = [(entry.origin, encoding) for kind in ("quantizers", "loaders") for entry in self._provided(kind)
                     for encoding in ((entry.item.encoding,) if kind == "quantizers" else entry.item.encodings)]
            if "encodings" not in self._registries:
                own = Origin("core", OWN, "", "bestiary.encoding")
                provided = [Provided(name, encoding, own) for name, encoding in PLAIN.items()]
                for origin, encoding in known:
                    if not any(same(one.item, encoding) for one in provided):
                        provided.append(Provided(encoding.name, encoding, origin))
                self._keep("encodings", Registry("encoding", provided, self.settings.prefer))
            return self._registries["encodings"]

    @property
    def templates(self) -> Registry[Template]:
        """The chat formats that families supply. Several families may supply one."""
        return self._of_families("chat template", lambda family: family.templates.items())

    @property
    def pre_tokenizers(self) -> Registry[PreTokenizer]:
        """The splitting rules that families supply. Several families may supply one."""
        return self._of_families("pre-tokenizer", lambda family: family.pre_tokenizers.items())

    @property
    def rank_lists(self) -> Registry[RankList]:
        """What families know of bare lists of ranks, by the number of ranks in words."""
        return self._of_families("rank list of size", lambda family: ((str(ranks.size), ranks)
                                                                      for ranks in family.rank_lists))

    def _of_families(self, kind: str, given: Callable[[Architecture], Iterable[tuple[str, T]]]) -> Registry[T]:
        with self._lock:
            families = self._provided("architectures")
            if kind not in self._registries:
                provided: list[Provided[T]] = []
                for family in families:
                    provided += [Provided(name, item, family.origin) for name, item in given(family.item)
                                 if not any(name == known.name and same(item, known.item) for known in provided)]
                self._keep(kind, Registry(kind, provided, self.settings.prefer))
            return self._registries[kind]

    def recognise(self, path: str | os.PathLike[str], loader: str | None = None) -> Loader:
        """The loader of that name, or the one that recognises the path most surely. Raises BestiaryError where the path
        is missing, empty, or a Git LFS pointer, where no loader recognises it, and where two are equally sure."""
        path = Path(path)
        start = first_look(path)
        if loader is not None:
            return self.loaders[loader]
        surest = self._surest(self.loaders.entries(), lambda item: item.recognise(path), f"recognise {path}")
        if not surest:
            raise BestiaryError(f"no loader recognises {path} ({described(path, start)}); "
                                f"known: {', '.join(self.loaders.names) or 'none'}")
        return self._only(self.loaders, surest, f"recognise {path}", "--loader")

    def open(self, path: str | os.PathLike[str], loader: str | None = None) -> Checkpoint:
        """The checkpoint at the path, its tensors unread. Raises as `recognise`, and for a damaged file."""
        return self.open_as(self.recognise(path, loader), path)

    def open_as(self, loader: Loader, path: str | os.PathLike[str]) -> Checkpoint:
        """As `open`, by a loader that is chosen already."""
        from bestiary.guarded_checkpoint import guarded  # late: it needs numpy

        guard = self.calling(loader, f"open {path}")
        with printing_to_stderr():
            with guard:
                checkpoint: object = loader.open(Path(path), self)
            return guarded(checkpoint, Path(path), guard)

    def architecture_of(self, config: Mapping[str, Any], tokenizer: TokenizerMaterial,
                        name: str | None = None) -> Architecture:
        """The family of that name, or the one that claims the model most surely; so too of two of that name. Raises
        BestiaryError, listing the known, where none does, and where two are equally sure."""
        if name is not None:
            surest = self._claiming(self.architectures.candidates(name), config, tokenizer)
            return surest[0].item if len(surest) == 1 else self.architectures[name]
        surest = self._claiming(self.architectures.entries(), config, tokenizer)
        if not surest:
            what = config.get("architectures") or config.get("model_type")
            called = f"unknown architecture {what!r}" if what else "the config names no architecture"
            raise BestiaryError(f"{called}; known: {', '.join(self.architectures.names) or 'none'}. "
                                "A plugin package can add one, --architecture choose one")
        return self._only(self.architectures, surest, "claim the model", "--architecture")

    def filed_as(self, name: str, config: Mapping[str, Any], tokenizer: TokenizerMaterial) -> list[Architecture]:
        """The families that a canonical file means by the name. Of several with one name only the surest: a file of
        theirs is not for who claims no such model."""
        config = {**{key: value for key, value in config.items() if key != "architectures"}, "model_type": name}
        found: dict[str, list[Provided[Architecture]]] = {}
        for entry in self.architectures.entries():
            if entry.item.file_name == name:
                found.setdefault(entry.name.casefold(), []).append(entry)
        return [entry.item for alike in found.values()
                for entry in (len(alike) > 1 and self._claiming(alike, config, tokenizer) or alike)]

    def _claiming(self, entries: Iterable[Provided[Architecture]], config: Mapping[str, Any],
                  tokenizer: TokenizerMaterial) -> list[Provided[Architecture]]:
        return self._surest(entries, lambda item: item.claims(config, tokenizer), "claim the model")

    def unavailable(self, backend: Backend) -> str | None:
        """Why the backend does not run here, or None. One that cannot say does not."""
        try:
            with printing_to_stderr():
                reason: object = backend.available()
            if reason is not None and not isinstance(reason, str):
                raise Refused(f"it answers {shown(reason)}, not None or the reason in words")
            return None if reason is None else printable(" ".join(reason.split())) or "it does not say why"
        except PASSING:
            raise
        except BaseException as error:
            return f"{self.whose(backend)} cannot say whether it does: {one_line(error)}"

    def calling(self, item: object, what: str) -> calling:
        """Around a call into an item of a plugin: what it raises is said to be its own. See guard.calling."""
        return calling(self.whose(item), what)

    def whose(self, item: object) -> str:
        """The item in words: "loader NAME of DISTRIBUTION VERSION"."""
        for plugin in self._plugins:
            for kind, entries in plugin.provided.items():
                for entry in entries:
                    if entry.item is item:
                        return f"{KINDS[kind].singular} {entry.name} of {entry.origin}"
                    if kind == "architectures":
                        for name, template in entry.item.templates.items():
                            if template is item:
                                return f"chat template {name} of {entry.origin}"
        return whose(item)  # no plugin's: made by who calls us

    def report(self) -> list[PluginReport]:
        """What every plugin provides, or why it is set aside. Calls all hooks."""
        with self._lock:
            for kind in KINDS:
                self._provided(kind)
            registries = (*map(self._registry, KINDS), self.encodings, self.templates, self.pre_tokenizers,
                          self.rank_lists)
            clashes = [(line, entry.origin) for registry in registries
                       for line, entries in registry.clashes().items() for entry in entries]
            return [PluginReport(
                plugin.origin.plugin, plugin.origin.distribution, plugin.origin.version, plugin.origin.entry_point,
                {kind: tuple(entry.name for entry in entries) for kind, entries in plugin.provided.items() if entries},
                plugin.seconds, plugin.reason, plugin.traceback,
                tuple(dict.fromkeys(line for line, origin in clashes if origin is plugin.origin)))
                for plugin in self._plugins]

    def _registry(self, kind: str) -> Registry[Any]:
        with self._lock:
            provided = self._provided(kind)
            if kind not in self._registries:
                retired = {name: reason for entry in provided if kind == "quantizers"
                           for name, reason in entry.item.retired.items()}
                self._keep(kind, Registry(KINDS[kind].singular, provided, self.settings.prefer, retired,
                                          self._only_read if kind == "quantizers" else dict))
            return self._registries[kind]

    def _only_read(self) -> dict[str, str]:
        """What is said of encodings that loaders know, for who wants to write one that no quantizer does."""
        return {encoding.name: "it is read and run, and not written yet" for entry in self._provided("loaders")
                for encoding in entry.item.encodings}

    def _keep(self, kind: str, registry: Registry[Any]) -> None:
        """Names that mean two things stand in nobody's way until they are asked for: that they do is said."""
        self._registries[kind] = registry
        for entries in registry.clashes().values():
            self.say_clash([entry.origin for entry in entries])

    def say_clash(self, origins: Iterable[Origin], line: str = "") -> None:
        """A third party that gives something of another's name is named once, in that line or in general, however many
        names it is: `bestiary plugins` lists them all."""
        new = {str(origin): None for origin in origins
               if normal(origin.distribution) != OWN and str(origin) not in self._clashing}
        self._clashing |= new.keys()
        if line and new:
            self._log(line)
        elif new:
            self.say(f"{' and '.join(new)}: some of its names are other plugins' too; the surest of them is used, or "
                      "what --prefer chooses; `bestiary plugins` lists them")

    def _provided(self, kind: str) -> list[Provided[Any]]:
        """What the plugins that are not set aside provide of a kind; calls the hooks that were not called yet."""
        for plugin in self._plugins:
            self._load(plugin)
            if plugin.hooks is not None and plugin.reason is None and kind not in plugin.provided:
                with self._guarding(plugin):
                    plugin.provided[kind] = call_hooks(plugin.hooks.get(kind, ()), kind, plugin.origin)
        return [entry for plugin in self._plugins for entry in plugin.provided.get(kind, ())]

    def _load(self, plugin: _Plugin) -> None:
        if plugin.reason is None and plugin.hooks is None:
            with self._guarding(plugin):
                started = time.perf_counter()
                try:
                    loaded = plugin.candidate.load()
                finally:
                    plugin.seconds = time.perf_counter() - started
                plugin.hooks = hooks_of(loaded)
                if plugin.seconds >= _SLOW and plugin.origin.distribution != OWN:
                    self.say(f"plugin {plugin.origin.plugin!r} of {plugin.origin} took {plugin.seconds:.1f} s to "
                              "import, and every command waits for it; BESTIARY_PLUGINS says which are loaded")

    @contextlib.contextmanager
    def _guarding(self, plugin: _Plugin) -> Iterator[None]:
        """Sets the plugin aside where it raises. What it prints goes to stderr: stdout may be somebody's JSON."""
        try:
            with loading():
                yield
        except PASSING:
            raise
        except BaseException as error:  # SystemExit too: a plugin does not end the program
            plugin.reason, plugin.traceback = one_line(error), traceback.format_exc()
            plugin.provided.clear()
            self._registries.clear()  # what it gave before it failed is not used either
            self.say(f"plugin {plugin.origin.plugin!r} of {plugin.origin} is set aside: {plugin.reason}; "
                      "see `bestiary plugins`")

    def say(self, line: str) -> None:
        """The line on the log, once a process."""
        if not self._quiet and line not in _said:
            _said.add(line)
            self._log(line)

    def _log(self, line: str) -> None:
        if not self._quiet:
            import logging  # late: a process without a bad plugin does not need it

            logging.getLogger("bestiary").warning("%s", printable(line))

    def _surest(self, entries: Iterable[Provided[T]], score: Callable[[T], int], what: str) -> list[Provided[T]]:
        """The items with the highest score above 0. One that raises counts as 0 and is said so; its plugin stays, since
        a single odd file must not take all of it away."""
        ranked: list[tuple[int, Provided[T]]] = []
        for entry in entries:
            try:
                with printing_to_stderr():
                    value = score(entry.item)
                if not isinstance(value, int):
                    raise Refused(f"the answer is {value!r}, not a number from 0 to 100")
                ranked.append((min(value, 100), entry))
            except PASSING:
                raise
            except BaseException as error:
                self.say(f"{entry.name} of {entry.origin} could not say whether to {what}: {one_line(error)}")
        best = max((value for value, _ in ranked), default=0)
        return [entry for value, entry in ranked if value == best > 0]

    def _only(self, registry: Registry[T], found: list[Provided[T]], what: str, option: str) -> T:
        """The single one of those that are equally sure: by name, or because its distribution is preferred."""
        if len(found) == 1:  # another of its name may be installed; it has nothing to say about this
            return found[0].item
        if len({entry.name.casefold() for entry in found}) == 1:
            return registry[found[0].name]
        for wanted in map(normal, self.settings.prefer):
            chosen = [entry for entry in found if normal(entry.origin.distribution) == wanted]
            if len(chosen) == 1:
                return chosen[0].item
        who = " and ".join(f"{entry.name} of {entry.origin}" for entry in found)
        raise BestiaryError(f"{who} {what} equally surely; choose with {option} NAME")


def _again(settings: HostSettings, entry_points: bool) -> Host:
    """The same Host in another process. It need not say again what the first one said, and it imports one-file plugins
    at once, because what they define may come next in the pickle."""
    host = Host(settings, entry_points)
    host._quiet = True
    for plugin in host._plugins[len(host._plugins) - len(settings.files):]:
        host._load(plugin)
    return host
