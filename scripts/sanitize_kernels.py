"""The kernels under the address and undefined-behaviour sanitizers: builds them so, and runs their tests.

    python scripts/sanitize_kernels.py [--no-build-isolation] [PYTEST ARGUMENTS]

Linux with GCC only. Memory of the kernels is fenced by guard pages as well, which the sanitizers do not watch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
TESTS = ("tests/kernels", *(f"tests/backends/test_cpu_{name}.py" for name in ("bits", "limits", "meaning", "plan")))
UNFIT = ("test_guard_pages.py", "test_built.py")
"""A child that must crash, or one that asks for the installed wheel, is not what is tested here."""


def library(name: str) -> str:
    """The path of GCC's run-time library of a sanitizer."""
    found = subprocess.run([os.environ.get("CXX", "g++"), f"-print-file-name={name}"], check=True,
                           capture_output=True, text=True).stdout.strip()
    return str(Path(found).resolve())


def build(folder: Path, options: list[str]) -> Path:
    """A folder with the compiled package alone."""
    environment = dict(os.environ) | {"CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", str(folder),
                    f"-Cbuild-dir={folder / 'build'}", str(ROOT)], check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site, [name for name in archive.namelist() if name.startswith("bestiary_kernels/")])
    if not list(site.glob("bestiary_kernels/_native*")):
        raise SystemExit("the kernels did not compile")
    return site


def main(arguments: list[str]) -> int:
    """Returns the exit status of the tests."""
    options = [argument for argument in arguments if argument == "--no-build-isolation"]
    chosen = [argument for argument in arguments if argument not in options]
    with tempfile.TemporaryDirectory() as name:
        site = build(Path(name), options)
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(str(path) for path in (site, ROOT / "core", ROOT / "plugins")),
            "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:handle_segv=1", "UBSAN_OPTIONS": "print_stacktrace=1",
            "BESTIARY_GUARD_PAGES": "after"}
        ignored = [f"--ignore=tests/kernels/{file}" for file in UNFIT]
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored,
                               *(chosen or TESTS)], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
