"""How long `bestiary --help` takes: as it is installed, and beside 50 plugins that pip installed.

    python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from temporary import temporary

HELP = (sys.executable, "-m", "bestiary", "--help")
PLUGIN = """from bestiary.hookspecs import hookimpl
@hookimpl
def bestiary_commands(): return {{"stub-{i}": "stub_{i}:main"}}
def main(): "A stub."
"""


def stubs(folder: Path, count: int) -> None:
    """Makes wheels of plugins that each bring a command, and has pip install them into the folder."""
    with temporary() as made:
        wheels = []
        for i in range(count):
            about = f"stub_{i}-1.0.dist-info"
            wheels.append(f"{made}/stub_{i}-1.0-py3-none-any.whl")
            with zipfile.ZipFile(wheels[-1], "w") as wheel:
                wheel.writestr(f"stub_{i}.py", PLUGIN.format(i=i))
                wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: stub-{i}\nVersion: 1.0\n")
                wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{about}/entry_points.txt", f"[bestiary]\nstub-{i} = stub_{i}\n")
                wheel.writestr(f"{about}/RECORD", "")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
                        str(folder), *wheels], check=True)


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
    with temporary() as folder:
        stubs(folder, 50)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        print(f"with 50 plugins  {median(runs, PYTHONPATH=path):.3f} s")


if __name__ == "__main__":
    main()
