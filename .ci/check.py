"""Reads what the tests recorded and fails unless all that must run did run. The last line is the sum."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHONS = ("py310", "py311", "py312", "py313")
OPTIMIZED = "optimized"
SANITIZE = "sanitize"
WANTED = (*PYTHONS, OPTIMIZED, SANITIZE, "parity")
DAMAGED = 2000
"""Damaged files of each format, in one environment at least."""
ON_THE_MACHINE = ("tests/faults/test_disk_full.py", "tests/faults/test_little_memory.py")
"""What needs a machine that lets its users mount a file system in a namespace, and limits memory."""


def main(folder: Path) -> int:
    """Prints a line an environment, what is missing, the instruction sets, the sum; returns the exit status."""
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/ran.json"))}
    missing = [f"{name} did not run" for name in WANTED if name not in records]
    for name, record in records.items():
        print(f"{name}: Python {record['python']}, {record['passed']} passed, {record['failed']} failed, "
              f"{len(record['skipped'])} skipped, {record['data_tests']} of the passed on test data")
        for test, reason in record["skipped"].items():
            print(f"  skipped: {test}: {reason}")
        if not record["passed"]:
            missing.append(f"{name}: no test passed")
        if name not in ("parity", SANITIZE) and not record["data_tests"]:
            missing.append(f"{name}: no test on the test data ran (BESTIARY_TEST_DATA)")
        if name != "parity" and not record["isas"]:
            missing.append(f"{name}: no compiled kernel was tested")
        if name == OPTIMIZED and not record["optimized"]:
            missing.append(f"{name}: that was no python -O")
    missing += [*undamaged(records), *unmarked(records)]
    for name, record in records.items():
        for test, why in record.get("failures", {}).items():
            print(f"FAILED: {name}: {test}\n    {why}")
    for line in missing:
        print(f"MISSING: {line}")
    passed = sum(record["passed"] for record in records.values())
    failed = sum(record["failed"] for record in records.values())
    isas = sorted({isa for record in records.values() for isa in record["isas"]})
    print(f"instruction sets tested: {', '.join(isas) or 'none'}")
    print(f"{passed} passed, {failed} failed")
    return 1 if missing or failed else 0


def undamaged(records: dict[str, Any]) -> list[str]:
    """The formats of which too few damaged files were read everywhere."""
    most: dict[str, int] = {}
    for record in records.values():
        for name, count in record.get("damaged", {}).items():
            most[name] = max(count, most.get(name, 0))
    print(f"damaged files: {sum(most.values())} of {len(most)} formats in one environment")
    if not most:
        return ["no damaged files were read"]
    return [f"{name}: {count} damaged files were read; {DAMAGED} are wanted" for name, count in most.items()
            if count < DAMAGED]


def unmarked(records: dict[str, Any]) -> list[str]:
    """What ran nowhere though this machine could."""
    missing = [] if any(record.get("slow") for record in records.values()) else ["no test marked slow ran"]
    if not namespaces():
        print("NOT TESTED: full disks and little memory; this machine lets nobody mount a file system in a namespace "
              "of his own (unshare -rm). Run them where that works.")
        return missing
    ran = [test for record in records.values() for test in record.get("machine", ())]
    return missing + [f"{file}: nothing of it that needs the machine ran" for file in ON_THE_MACHINE
                      if not any(test.startswith(file) for test in ran)]


def namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
