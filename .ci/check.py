"""Reads what the tests recorded and fails unless all that must run did run. The last line is the sum."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PYTHONS = ("py310", "py311", "py312", "py313")
OPTIMIZED = "optimized"
SANITIZE = "sanitize"
WANTED = (*PYTHONS, OPTIMIZED, SANITIZE, "parity")


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
        if name in (*PYTHONS, OPTIMIZED) and not record["data_tests"]:
            missing.append(f"{name}: no test on the test data ran (BESTIARY_TEST_DATA)")
        if name in (*PYTHONS, OPTIMIZED, SANITIZE) and not record["isas"]:
            missing.append(f"{name}: no compiled kernel was tested")
        if name == OPTIMIZED and not record["optimized"]:
            missing.append(f"{name}: that was no python -O")
    for line in missing:
        print(f"MISSING: {line}")
    passed = sum(record["passed"] for record in records.values())
    failed = sum(record["failed"] for record in records.values())
    isas = sorted({isa for record in records.values() for isa in record["isas"]})
    print(f"instruction sets tested: {', '.join(isas) or 'none'}")
    print(f"{passed} passed, {failed} failed")
    return 1 if missing or failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
