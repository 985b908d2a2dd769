"""Damaged files of every format: each is used as far as it gets, or refused in one line, and nothing else happens."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bestiary.host import Host
from bestiary.testing.children import run_cases
from tests.contracts.samples import REFUSING
from tests.hostile.formats import FORMATS
from tests.hostile.formats.sample import scratch

COUNT = int(os.environ.get("BESTIARY_DAMAGED_FILES", "2000"))
"""Of each format; tox asks for fewer but on one Python, scripts/fuzz_files.py does more of the same."""


@pytest.mark.parametrize("name", FORMATS)
def test_the_sample_is_used_as_it_is(name: str, host: Host) -> None:
    sample = FORMATS[name]()
    with scratch() as folder:
        sample.attempt(sample.files, host, folder)


def test_every_loader_has_a_sample(host: Host) -> None:
    assert {sample().loader for sample in FORMATS.values()} - {"template"} == {
        name.casefold() for name in host.loaders if name not in REFUSING}


def test_the_same_number_does_the_same_damage() -> None:
    for make in FORMATS.values():
        one, two = make(), make()
        for seed in range(5):
            assert one.damaged(seed) == two.damaged(seed)


def test_damage_that_changes_nothing_does_not_count() -> None:
    for make in FORMATS.values():
        sample = make()
        assert all(sample.damaged(seed)[1] != sample.files for seed in range(200))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_used_or_refused(name: str, host: Host, record_property: Callable[[str, object], None]
                                           ) -> None:
    sample = FORMATS[name]()
    with scratch() as folder:
        sample.attempt(sample.files, host, folder)
        tally = run_cases(sample.case(host, folder), range(COUNT))
    record_property("hostile", f"{name:20} {tally}")
    record_property("damaged", [name, tally.loaded + tally.refused])
    assert not tally.escapes, "\n\n".join(f"{name} {escape.seed}: {escape.how}" for escape in tally.escapes)
    assert tally.loaded + tally.refused == COUNT
    assert tally.loaded and tally.refused > COUNT // 4  # neither is all of the damage fatal, nor none
