#!/usr/bin/env python3
"""Damages a small sample of every format that is read, uses it, and counts what loaded and what was refused.

    python scripts/fuzz_files.py --count 20000
    python scripts/fuzz_files.py --format gguf-v3 --count 100 --seed 5000 --show

It needs what the tests need (`pip install --group test`), and no data. What is neither loaded nor refused in one line
is an escape, is printed with its number, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bestiary.host import Host, HostSettings  # noqa: E402
from bestiary.testing.children import run_cases  # noqa: E402
from tests.hostile.formats import FORMATS  # noqa: E402
from tests.hostile.formats.sample import scratch  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="cases of each format")
    parser.add_argument("--seed", type=int, default=0, help="the first number")
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="by default all")
    parser.add_argument("--show", action="store_true", help="say what is done to the file, case by case")
    parser.add_argument("--most", type=int, default=20, help="escapes after which a format is given up")
    options = parser.parse_args()
    warnings.simplefilter("error")  # as in the tests
    warnings.simplefilter("ignore", ResourceWarning)
    host, escaped = Host(HostSettings(names=())), 0
    print(f"{'format':20}{'cases':>9}{'loaded':>9}{'refused':>9}{'escaped':>9}{'seconds':>9}"
          f"{'slowest, s':>20}{'largest, MB':>20}", flush=True)
    for name in options.format or FORMATS:
        sample, seeds, began = FORMATS[name](), range(options.seed, options.seed + options.count), time.monotonic()
        if options.show:
            for seed in seeds:
                print(f"{seed}: {sample.damaged(seed)[0]}")
        with scratch() as folder:
            sample.attempt(sample.files, host, folder)  # also imports what the children share
            tally = run_cases(sample.case(host, folder), seeds, most=options.most)
        print(f"{name:20}{tally.loaded + tally.refused + len(tally.escapes):9}{tally.loaded:9}{tally.refused:9}"
              f"{len(tally.escapes):9}{time.monotonic() - began:9.0f}"
              f"{tally.slowest.amount:9.2f} ({tally.slowest.seed:8}){tally.largest.amount / 1e6:9.0f} "
              f"({tally.largest.seed:8})", flush=True)
        for escape in tally.escapes:
            print(f"  {name} {escape.seed}: {escape.how}", flush=True)
        escaped += len(tally.escapes)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
