"""What all contracts share: how a test class says which item it tests, and the promises of items of every kind."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from bestiary.contributions import KINDS, PREFIX, Refused, call_hooks, one_line, shown
from bestiary.discovery import Candidate
from bestiary.hookspecs import hookimpl
from bestiary.host import Host, HostSettings, _Plugin
from bestiary.registry import Origin

HEAVY = ("datasets", "jax", "matplotlib", "numba", "onnx", "onnxruntime", "pandas", "scipy", "sklearn", "tensorflow",
         "torch", "transformers")
"""Packages that take long to import: everybody's `bestiary --help` would wait for them."""
LONGEST_IMPORT = 120
"""Seconds after which an import hangs."""
UNDER_TEST = "under-test"

IMPORTER = """
import importlib, importlib.util, sys
name, file = sys.argv[1:3]
if file:
    spec = importlib.util.spec_from_file_location("under_test", file)
    module = sys.modules["under_test"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
else:
    importlib.import_module(name)
print(" ".join(sorted({module.partition(".")[0] for module in sys.modules})), file=sys.__stderr__)
"""


class Broken(AssertionError):
    """A promise that the plugin does not keep; the message says which, and what was found."""


def expect(kept: object, words: str) -> None:
    """Raises Broken with the words where the promise is not kept. (An `assert` would say nothing under `python -O`.)"""
    __tracebackhide__ = True
    if not kept:
        raise Broken(words)


class HostWith(Host):
    """What is installed, and one item more, which wins where another has its name: so that a plugin is tested before
    it is installed. Pickles, if the item does."""

    def __init__(self, kind: str, item: Any, settings: HostSettings | None = None) -> None:
        super().__init__(settings)
        self._made_of = (kind, item, self.settings)
        origin = Origin(UNDER_TEST, UNDER_TEST, "", type(item).__module__)
        self._plugins.append(_Plugin(Candidate(origin, functools.partial(plugin_of, kind, item))))
        self.settings = HostSettings(self.settings.names, self.settings.files, (UNDER_TEST, *self.settings.prefer))

    def __reduce__(self) -> Any:
        return HostWith, self._made_of


def plugin_of(kind: str, item: Any) -> ModuleType:
    """A plugin that provides the item and nothing else."""
    module = ModuleType(UNDER_TEST)
    setattr(module, PREFIX + kind, hookimpl(lambda: [item]))
    return module


class Contract:
    """The base of the contracts. kind: whose hook gives such items. heavy: what the plugin's import must not import."""

    kind = ""
    heavy: tuple[str, ...] = HEAVY

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs the tests with the class's own item; where it has none, pytest looks for a fixture of that name."""
        rule = KINDS[self.kind]
        item = getattr(type(self), rule.singular, None)
        if rule.singular not in metafunc.fixturenames:
            return
        where = f"{type(self).__name__}.{rule.singular}"
        if isinstance(item, type):
            raise Broken(f"{where} is the class {item.__name__}, not an instance of it: "
                         f"write {rule.singular} = {item.__name__}()")
        if isinstance(item, rule.item):
            metafunc.parametrize(rule.singular, [item], ids=[str(getattr(item, "name", rule.singular))])
        elif item is not None and not callable(item):  # pytest's fixtures are
            raise Broken(f"{where} is {shown(item)}, no {rule.item.__name__}")
        elif item is None and not given(metafunc, rule.singular):
            raise Broken(f"{type(self).__name__} does not say what it tests: write {rule.singular} = "
                         f"Your{rule.item.__name__}() in it, or a fixture {rule.singular}")

    def check_contribution(self, item: Any) -> None:
        """Raises Broken unless the host takes the item."""
        try:
            call_hooks([lambda: [item]], self.kind, Origin(UNDER_TEST, UNDER_TEST, "", ""))
        except Refused as error:
            raise Broken(f"the host sets this plugin aside: {error}") from None

    def check_pickles(self, item: Any) -> None:
        """Raises Broken unless the item comes back from a pickle: worker processes get their items so."""
        again = pickled(item, f"the {KINDS[self.kind].singular} {item.name}")
        expect(again.name == item.name, f"its pickle has the name {again.name!r}, not {item.name!r}")

    def check_import(self, item: Any) -> None:
        """Raises Broken where importing the item's module alone imports something heavy."""
        imported = imports_of(type(item).__module__)
        found = sorted(set(self.heavy) & imported)
        expect(not found, f"importing {type(item).__module__} imports {', '.join(found)}: import that inside of the "
                          "functions that need it; every start of bestiary imports every plugin")


def given(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether a test gets this argument from a fixture or a parametrize mark; True where pytest does not tell."""
    fixtures = getattr(metafunc, "_arg2fixturedefs", None)  # public in no version of pytest
    return fixtures is None or name in fixtures or any(metafunc.definition.iter_markers("parametrize"))


def pickled(value: Any, what: str) -> Any:
    """The value by way of a pickle."""
    try:
        again = pickle.loads(pickle.dumps(value))
    except Exception as error:
        raise Broken(f"{what} does not pickle: {one_line(error)}. What it holds must be made at the top of a module: "
                     "no lambdas, no classes or functions inside of functions, no open files") from error
    expect(type(again) is type(value), f"the pickle of {what} gives {shown(again)}")
    return again


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """The top-level packages that a fresh interpreter holds after it imported the module."""
    try:
        by_name = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        by_name = False
    file = "" if by_name else getattr(sys.modules.get(module), "__file__", None) or ""
    path = os.pathsep.join(entry for entry in (os.getcwd(), *sys.path) if entry)
    try:
        done = subprocess.run([sys.executable, "-c", IMPORTER, module, file], env={**os.environ, "PYTHONPATH": path},
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LONGEST_IMPORT)
    except subprocess.TimeoutExpired:
        raise Broken(f"importing {module} takes longer than {LONGEST_IMPORT} s") from None
    lines = done.stderr.strip().splitlines() or [""]
    expect(done.returncode == 0, f"{module} cannot be imported by a fresh interpreter: {lines[-1]}")
    return frozenset(lines[-1].split())
