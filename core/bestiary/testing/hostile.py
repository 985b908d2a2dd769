"""Runs cases that may fail only with a BestiaryError: in children with little memory, where the system has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from bestiary.testing.children import USUAL, Tally, outcome, run_cases
from bestiary.testing.contract import Broken

MEMORY, SECONDS = 512 << 20, 10


def only_refused(case: Callable[[int], object], names: Sequence[str], what: str, memory: int = MEMORY,
                 seconds: int = SECONDS) -> Tally:
    """Calls the case with each index of the names; raises Broken where it neither returns nor raises a BestiaryError
    of one line, says something, or takes more than children.USUAL of that memory (bytes, beyond what the process has)
    and time."""
    if hasattr(os, "fork"):
        tally = run_cases(case, range(len(names)), memory=memory, seconds=seconds, most=3)
        if tally.escapes:
            worst = tally.escapes[0]
            raise Broken(f"{what}: {names[worst.seed]}: anything but a BestiaryError of one line is an escape; so are "
                         f"words on stdout or stderr, more than {USUAL[0] * memory / 1e6:.0f} MB, and more than "
                         f"{USUAL[1] * seconds:g} s of work\n{worst.how}")
        return tally
    tally = Tally()
    for index, name in enumerate(names):
        kind, how = outcome(case, index)
        if kind == "escaped":
            raise Broken(f"{what}: {name}: anything but a BestiaryError of one line is an escape\n{how}")
        tally.loaded += kind == "loaded"
        tally.refused += kind == "refused"
    return tally
