"""What a search guided by coverage found (scripts/fuzz_atheris.py): each input is used or refused, and nothing else."""

from __future__ import annotations

import pytest

from bestiary.host import Host
from bestiary.testing.children import run_cases
from tests.hostile.formats.corpus import FOLDER, INPUTS, kept, replaced
from tests.hostile.formats.sample import scratch

LARGEST = 300_000


@pytest.mark.parametrize("name", INPUTS)
def test_the_part_that_the_others_are_made_of_is_used(name: str, host: Host) -> None:
    with scratch() as folder:
        replaced(name, host, folder)(INPUTS[name]().part)


@pytest.mark.parametrize("name", sorted(folder.name for folder in FOLDER.iterdir()))
def test_every_find_is_used_or_refused(name: str, host: Host) -> None:
    finds = kept(name)
    assert finds
    with scratch() as folder:
        use = replaced(name, host, folder)
        use(INPUTS[name]().part)  # imports what the children share
        tally = run_cases(lambda seed: use(finds[seed].read_bytes()), range(len(finds)))
    assert not tally.escapes, "\n\n".join(f"{finds[escape.seed]}: {escape.how}" for escape in tally.escapes)
    assert tally.loaded + tally.refused == len(finds)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < LARGEST
