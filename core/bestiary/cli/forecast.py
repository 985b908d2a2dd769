"""What `inspect --plan` prints."""

from __future__ import annotations

from typing import Any

from bestiary.cli import terminal
from bestiary.errors import one_line, printable


def text(facts: dict[str, Any]) -> str:
    """The forecast for people."""
    size, made_for, tokens = terminal.size, facts["made_for"], facts["context"]
    tokenizer = f"{'about ' * facts['tokenizer_estimated']}{size(facts['tokenizer_bytes'])} of the file" + \
        ", estimated: it is not here" * facts["tokenizer_estimated"]
    runs = facts["work_bytes"] + facts["program_bytes"]
    lines = [
        ("architecture", facts["architecture"]),
        ("weights", terminal.amount(facts["weights"]).strip()),
        ("tokenizer", tokenizer),
        ("converting", f"about {size(facts['convert_bytes'])} of memory, whatever the type"),
        ("context", f"{tokens} token{'s' * (tokens != 1)}" + f", made for {made_for}" * (tokens != made_for)),
    ]
    if facts["cache"]:
        lines += [("its cache", ", ".join(f"{kind} {size(count)}" for kind, count in facts["cache"].items())),
                  ("running", f"weights, cache and about {size(runs)}")]
    if facts["machine_bytes"] is not None:
        lines.append(("memory here", size(facts["machine_bytes"])))
    wide = max(len(key) for key, _ in lines) + 2
    rows = [["type", "file", "bits per weight", "memory to run", "fits here"], *(
        [row["type"], size(row["bytes"]), f"{row['bits_per_weight']:.2f}",
         "unknown" if row["run_bytes"] is None else size(row["run_bytes"]),
         {None: "unknown", True: "yes", False: "no"}[row["fits"]]] for row in facts["types"])]
    said = [one_line(facts["path"]), *(f"  {key:<{wide}}{one_line(value)}" for key, value in lines), "",
            *terminal.table(rows).split("\n")]
    said += [line for row in facts["types"] if (line := other_than_written(row))]
    return "\n".join(map(printable, said))


def other_than_written(row: dict[str, Any]) -> str | None:
    """A line where a row runs in other types than those in which it is written."""
    if row["runs_as"] is None:
        return None
    runs, written = terminal.type_counts(row["runs_as"]), terminal.type_counts(row["types"])
    return f"{row['type']}: it runs as {runs}; `convert` without a type makes a file of {written}"
