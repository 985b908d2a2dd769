"""A plugin's function by its name, "module:function": a command, or an operation of a graph."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from bestiary.errors import BestiaryError
from bestiary.graph import Graph
from bestiary.guard import calling


def named_function(name: str, who: str) -> Callable[..., Any]:
    """The function of that name, which a plugin gave and never a file. Raises BestiaryError, in `who`'s name, where it
    is not there."""
    module, _, function = name.partition(":")
    with calling(who, "load"):
        try:
            found: Callable[..., Any] | None = getattr(import_module(module), function, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a module that it needs
            raise BestiaryError(f"{who}: there is no module {error.name}") from None
    if found is None or not callable(found):
        raise BestiaryError(f"{who}: module {module} has no function {function}")
    return found


def operation(name: str) -> Callable[..., Any]:
    """The function of a graph's node "call"."""
    return named_function(name, f"operation {name}")


def check_functions(graph: Graph, who: str) -> None:
    """Raises BestiaryError where a function that the graph calls is not there: its family, `who`, is wrong, and no
    backend."""
    for name in sorted({node.params["function"] for node in graph.nodes if node.op == "call"}):
        named_function(name, f"{who}: operation {name}")
