"""How long `bestiary --help` takes: as it is installed, and beside 50 installed plugins.

    python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP = (sys.executable, "-m", "bestiary", "--help")
PLUGIN = """from bestiary.hookspecs import hookimpl
@hookimpl
def bestiary_commands(): return {{"stub-{i}": "stub_{i}:main"}}
def main(): "A stub."
"""


def stubs(folder: Path, count: int) -> None:
    """Installs plugins that each bring a command into a folder of packages."""
    for i in range(count):
        (folder / f"stub_{i}.py").write_text(PLUGIN.format(i=i))
        about = folder / f"stub_{i}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stub-{i}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[bestiary]\nstub-{i} = stub_{i}\n")


def median(runs: int, **environment: str) -> float:
    """Seconds on the clock."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True, env={**os.environ, **environment})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"as installed     {median(runs):.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        stubs(Path(folder), 50)
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        print(f"with 50 plugins  {median(runs, PYTHONPATH=path):.3f} s")


if __name__ == "__main__":
    main()
