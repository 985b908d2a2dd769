"""A plugin's implementations of the hooks, checked against their specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pluggy

from bestiary import hookspecs
from bestiary.contributions import KINDS, PREFIX, Refused, shown


def hooks_of(plugin: object) -> dict[str, list[Callable[[], Any]]]:
    """The plugin's hook implementations by kind. Raises Refused for one that would never be called."""
    wanted = getattr(plugin, "bestiary_api", hookspecs.API)
    if not isinstance(wanted, int):
        raise Refused(f"bestiary_api is {wanted!r}, not a number")
    if wanted > hookspecs.API:
        raise Refused(f"it needs version {wanted} of the plugin interface and this bestiary has version "
                       f"{hookspecs.API}; a newer bestiary may run it")
    known = ", ".join(PREFIX + kind for kind in KINDS)
    manager = pluggy.PluginManager(hookspecs.GROUP)  # one a plugin: its hooks are called alone, its faults are its own
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:
        raise Refused(str(error).strip().splitlines()[-1]) from error
    hooks: dict[str, list[Callable[[], Any]]] = {}
    marked: list[object] = []
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            marked.append(implementation.function)
            if implementation.wrapper or implementation.hookwrapper:
                raise Refused(f"{caller.name} is a wrapper; each plugin's hook is called alone")
            if caller.has_spec():
                hooks.setdefault(caller.name.removeprefix(PREFIX), []).append(implementation.function)
            elif not implementation.optionalhook:
                raise Refused(f"{caller.name} is no hook; known: {known}")
    for name in dir(plugin):
        function = getattr(plugin, name) if name.removeprefix(PREFIX) in KINDS and name.startswith(PREFIX) else None
        if function is None or inspect.ismodule(function) or any(function is known for known in marked):
            continue
        if not inspect.isroutine(function):
            raise Refused(f"{name} is {shown(function)}, not a function marked with @hookimpl")
        raise Refused(f"{name} is not marked with @hookimpl")
    if not hooks:
        raise Refused(f"it has no hook; known: {known}")
    return hooks
