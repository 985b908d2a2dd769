"""The last word of .ci/run: whether all that must run did run."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MACHINE = ["tests/faults/test_disk_full.py::a", "tests/faults/test_little_memory.py::b"]
GOOD: dict[str, Any] = {
    "python": "3.11", "optimized": True, "passed": 9, "failed": 0, "data_tests": 3, "isas": ["avx2"], "skipped": {},
    "damaged": {"gguf-v3": 2000, "meta": 2000}, "machine": MACHINE, "slow": ["x"]}


@pytest.fixture
def check() -> ModuleType:
    path = Path(__file__).parents[2] / ".ci" / "check.py"
    if not path.is_file():
        pytest.skip("this copy of the tests has no .ci/check.py")
    spec = importlib.util.spec_from_file_location("ci_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_of(check: ModuleType) -> dict[str, dict[str, Any]]:
    return {name: copy.deepcopy(GOOD) for name in check.WANTED}


def verdict(check: ModuleType, folder: Path, records: dict[str, dict[str, Any]]) -> int:
    for name, record in records.items():
        (folder / name).mkdir()
        (folder / name / "ran.json").write_text(json.dumps(record))
    return int(check.main(folder))


def nowhere(**values: object) -> Callable[[dict[str, dict[str, Any]]], None]:
    def change(records: dict[str, dict[str, Any]]) -> None:
        for record in records.values():
            record.update(values)

    return change


def test_where_all_ran_it_is_content(check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(check, tmp_path, all_of(check)) == 0
    assert "damaged files: 4000 of 2 formats" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "said"), [
    (nowhere(damaged={}), "no damaged files were read"),
    (nowhere(damaged={"gguf-v3": 2000, "meta": 0}), "meta: 0 damaged files were read"),
    (nowhere(slow=[]), "no test marked slow ran"),
    (nowhere(machine=MACHINE[:1]), "test_little_memory.py: nothing of it"),
    (nowhere(isas=[]), "no compiled kernel"), (lambda records: records.pop("py310"), "py310 did not run"),
    (lambda records: records.update(py314={**GOOD, "data_tests": 0}), "py314: no test on the test data"),
    (lambda records: records.update(py314={**GOOD, "failed": 1}), "1 failed")])
def test_what_is_missing_everywhere_is_named(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str], change: Callable[..., None],
                                             said: str) -> None:
    monkeypatch.setattr(check, "namespaces", lambda: True)
    records = all_of(check)
    change(records)
    assert verdict(check, tmp_path, records) == 1
    assert said in capsys.readouterr().out


def test_one_environment_is_enough_for_what_is_the_same_in_all(check: ModuleType, tmp_path: Path) -> None:
    records = all_of(check)
    nowhere(damaged={"gguf-v3": 0}, slow=[], machine=[])(records)
    records["py312"] = copy.deepcopy(GOOD)
    assert verdict(check, tmp_path, records) == 0


def test_a_machine_that_cannot_says_so(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check, "namespaces", lambda: False)
    records = all_of(check)
    nowhere(machine=[])(records)
    assert verdict(check, tmp_path, records) == 0
    assert "NOT TESTED: full disks" in capsys.readouterr().out
