"""The kernels under the address and undefined-behaviour sanitizers: builds them so, and runs their tests.

    python scripts/sanitize_kernels.py [--prove] [--no-build-isolation] [PYTEST ARGUMENTS]

Linux with GCC only. `--prove` plants a read behind a piece of memory and an overflow of a number, one after the other,
and expects each to be found; otherwise the tests must pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "core", "plugins", "kernels")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
RUNTIME = ("libasan.so", "libubsan.so", "libstdc++.so")
"""Loaded before Python is; the last, or the sanitizer does not find what throws an exception."""
TESTS = ("tests/kernels/test_products.py", "tests/kernels/test_border.py", "tests/kernels/test_quantizers.py",
         *(f"tests/backends/test_cpu_{name}.py" for name in ("bits", "experts", "limits", "meaning", "plan")))
SLOW = "not number_of_threads"
"""Large matrices, which the products of odd sizes say as much as."""
PROBE = ("tests/kernels/test_products.py", "-x", "-k", "formula or extreme")
PLANTED = {
    "heap-buffer-overflow": ("codes_.grow((size_t)std::max(quantized, plain) + 64)",
                             "codes_.grow((size_t)std::max(quantized, plain) / 2)"),
    "signed integer overflow": ("std::min(rows, work / kChunkWork)",
                                "std::min(rows, (work + (i64(1) << 62)) * 4 / kChunkWork)"),
}
"""What a sanitizer says -> what is replaced in program.cpp, and by what."""


def library(name: str) -> str:
    """The path of one of GCC's run-time libraries."""
    found = subprocess.run([os.environ.get("CXX", "g++"), f"-print-file-name={name}"], check=True,
                           capture_output=True, text=True).stdout.strip()
    return str(Path(found).resolve())


def build(folder: Path, options: list[str]) -> Path:
    """A folder with the compiled package alone, from the sources in folder/source."""
    environment = dict(os.environ) | {"CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", str(folder),
                    f"-Cbuild-dir={folder / 'build'}", "-Ccmake.define.BESTIARY_OPTIMIZE=-O1",
                    str(folder / "source")], check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site, [name for name in archive.namelist() if name.startswith("bestiary_kernels/")])
    (compiled,) = site.glob("bestiary_kernels/_native*.so")
    if not all(symbol in compiled.read_bytes() for symbol in (b"__asan_report", b"__ubsan_handle")):
        raise SystemExit(f"{compiled.name} was compiled without the sanitizers")
    return site


def run(site: Path, arguments: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """pytest, with these kernels; it leaves the standard error alone, where the sanitizers write as they end it."""
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(str(path) for path in (site, ROOT / "core", ROOT / "plugins")),
        "LD_PRELOAD": " ".join(map(library, RUNTIME)), "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment.pop("BESTIARY_GUARD_PAGES", None)  # memory of our own would be out of the sanitizer's sight
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *arguments],
                          cwd=ROOT, env=environment | more.pop("env", {}), check=False, text=True, **more)


def prove(folder: Path, options: list[str]) -> None:
    """Fails unless every planted fault is found."""
    program = folder / "source/kernels/bestiary_kernels/program.cpp"
    right = program.read_text()
    for words, (old, new) in PLANTED.items():
        if right.count(old) != 1:
            raise SystemExit(f"program.cpp does not hold {old!r} once: plant the fault elsewhere")
        program.write_text(right.replace(old, new))
        ended = run(build(folder, options), PROBE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    env={"BESTIARY_TEST_RECORD": ""})
        if not ended.returncode or words not in ended.stdout:
            raise SystemExit(f"a planted {words} was not found:\n{ended.stdout[-3000:]}")
        print(f"a planted {words} was found", flush=True)
    program.write_text(right)


def main(arguments: list[str]) -> int:
    """Returns the exit status of the tests."""
    options = [argument for argument in arguments if argument == "--no-build-isolation"]
    chosen = [argument for argument in arguments if argument not in (*options, "--prove")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source").mkdir()
        for source in SOURCES:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
            copy(ROOT / source, folder / "source" / source)
        if "--prove" in arguments:
            prove(folder, options)
        return run(build(folder, options), chosen or [*TESTS, "-k", SLOW]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
