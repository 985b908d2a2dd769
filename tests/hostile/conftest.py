"""Prints what became of the damaged files, format by format."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = {dict(report.user_properties)["hostile"]: None
             for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())
             if report.when == "call" and "hostile" in dict(report.user_properties)}
    if found:
        terminalreporter.section("damaged files")
        for line in found:
            terminalreporter.write_line(line)
