"""`bestiary plugins`: what is installed, what it provides, and what is set aside; and a new one to begin with."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from bestiary.cli import options, terminal
from bestiary.cli.main import hidden_commands
from bestiary.errors import printable
from bestiary.host import Host


def plugins(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(
        metavar="new KIND NAME", help="Write a package with a new plugin that works, to change: "
        "new architecture, loader, writer, quantizer, backend or command NAME.")] = None,
    folder: Annotated[Path | None, typer.Option(
        "--folder", metavar="FOLDER", help="Where new writes it; by default bestiary-NAME.")] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the tracebacks of what is set aside.")] = False,
    as_json: options.Json = False,
) -> None:
    """List the plugins, what they provide, and those that are set aside; or begin a new one."""
    if words or folder is not None:
        new(options.host_of(context), words or [], folder, as_json)
        return
    with terminal.aside(as_json):
        host = options.host_of(context)
        hidden = hidden_commands(host)
        reports = [replace(report, clashes=(*report.clashes, *(sentence for origin, sentence in hidden
                                                               if origin == report.origin)))
                   for report in host.report()]
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=2, ensure_ascii=False))
        return
    for report in reports:
        state = "set aside" if report.reason is not None else f"{report.seconds * 1000:.0f} ms"
        origin = f"{report.distribution} {report.version}".rstrip()
        print(printable(f"{report.plugin} of {origin} ({report.entry_point}), {state}"))
        for kind, names in report.provides.items():
            print(printable(f"  {kind:<15}{', '.join(names)}"))
        for clash in report.clashes:
            print(printable(f"  {'clash':<15}{clash}"))
        if report.reason is not None:
            print(printable(f"  {'reason':<15}{report.reason}"))
            if verbose and report.traceback:
                print("\n".join("    " + printable(line) for line in report.traceback.rstrip().split("\n")))


def new(host: Host, words: list[str], folder: Path | None, as_json: bool) -> None:
    """`bestiary plugins new KIND NAME`."""
    from bestiary import scaffold

    if len(words) != 3 or words[0] != "new":
        raise typer.BadParameter(f"{shlex.join(words) or '--folder'}: a new plugin is begun with `new KIND NAME`, "
                                 f"KIND one of {', '.join(scaffold.EXAMPLES)}")
    with terminal.aside(as_json):
        written, files = scaffold.create(words[1], words[2], host, folder)
    steps = [f"cd {shlex.quote(str(written))}", "pip install -e '.[test]'", "pytest"]
    if as_json:
        print(json.dumps({"folder": str(written), "files": files, "next": steps}, indent=2, ensure_ascii=False))
        return
    print(f"{printable(str(written))} holds a plugin that works: {', '.join(files)}. Next:")
    print("\n".join(printable(f"  {step}") for step in steps))
