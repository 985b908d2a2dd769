"""`bestiary plugins`: what is installed, what it provides, and what is set aside."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.errors import printable


def plugins(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the tracebacks of what is set aside.")] = False,
    as_json: options.Json = False,
) -> None:
    """List the plugins, what they provide, and those that are set aside."""
    with terminal.aside(as_json):
        reports = options.host_of(context).report()
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=2, ensure_ascii=False))
        return
    for report in reports:
        state = "set aside" if report.reason is not None else f"{report.seconds * 1000:.0f} ms"
        origin = f"{report.distribution} {report.version}".rstrip()
        print(printable(f"{report.plugin} of {origin} ({report.entry_point}), {state}"))
        for kind, names in report.provides.items():
            print(printable(f"  {kind:<15}{', '.join(names)}"))
        if report.reason is not None:
            print(printable(f"  {'reason':<15}{report.reason}"))
            if verbose and report.traceback:
                print("\n".join("    " + printable(line) for line in report.traceback.rstrip().split("\n")))
