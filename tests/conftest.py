"""What all tests share: the test data, a host without third parties, and the rule that nothing is skipped unseen."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bestiary.host import Host, HostSettings
from tests.installing import Place


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test data: real files that are too large or not ours to keep here."""
    folder = os.environ.get("BESTIARY_TEST_DATA")
    if not folder:
        pytest.skip("BESTIARY_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def host() -> Host:
    """The built-in plugins and no others."""
    return Host(HostSettings(names=()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An environment to install packages in; a module's tests share one."""
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's choice of plugins does not reach the tests."""
    monkeypatch.delenv("BESTIARY_PLUGINS", raising=False)
    yield


def _skips_fail() -> bool:
    """Where the test data is there, everything is expected to run."""
    return bool(os.environ.get("BESTIARY_TEST_DATA"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _skips_fail() and item.get_closest_marker("machine") is None:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped where nothing may be: {reason}"
    if report.passed and report.when == "call":
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(parameters.get("isa"), str):
            report.user_properties.append(("isa", parameters["isa"]))
        if "data" in getattr(item, "fixturenames", ()):
            report.user_properties.append(("data", True))
        report.user_properties += [(mark, True) for mark in ("machine", "slow") if item.get_closest_marker(mark)]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _skips_fail():
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped as a whole where nothing may be: {report.longrepr}"
    return report


class Record:
    """Writes what really ran, for .ci/run to check. A test says the instruction set that it ran on by its parameter
    `isa`, or by `record_property("isa", name)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed = self.failed = self.data_tests = 0
        self.skipped: dict[str, str] = {}
        self.isas: set[str] = set()
        self.marked: dict[str, list[str]] = {"machine": [], "slow": []}
        self.damaged: dict[str, int] = {}
        self.failures: dict[str, str] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Formats that are damaged, whether or not that test is then chosen."""
        if getattr(item, "originalname", "") == "test_a_damaged_file_is_used_or_refused":
            parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
            if isinstance(parameters.get("name"), str):
                self.damaged.setdefault(parameters["name"], 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)
        self.passed += report.passed and report.when == "call"
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if report.passed and report.when == "call":
            self.isas |= {str(value) for name, value in report.user_properties if name == "isa"}
            self.data_tests += any(name == "data" for name, _ in report.user_properties)
            for name, value in report.user_properties:
                if name in self.marked:
                    self.marked[name].append(report.nodeid)
                elif name == "damaged" and isinstance(value, (list, tuple)):
                    self.damaged[value[0]] = value[1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        self.failed += report.failed
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failures[report.nodeid] = str(getattr(crash, "message", report.longrepr))[:1000]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps({
            "python": platform.python_version(), "optimized": sys.flags.optimize > 0, "passed": self.passed,
            "failed": self.failed, "failures": self.failures, "data_tests": self.data_tests, "isas": sorted(self.isas),
            "skipped": self.skipped, "damaged": self.damaged, **self.marked}, indent=1))


def pytest_configure(config: pytest.Config) -> None:
    if (path := os.environ.get("BESTIARY_TEST_RECORD")) and not hasattr(config, "workerinput"):  # once, for all workers
        config.pluginmanager.register(Record(Path(path)), "bestiary-record")
