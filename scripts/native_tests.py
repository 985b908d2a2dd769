"""The kernels' own test program (tests/native): builds and runs it for each instruction set that can be tried here.

    python scripts/native_tests.py [--prove] [NAME ...]      names: avx2, avxvnni, avxvnni-emulated,
                                                            avx512, avx512-emulated, neon

Needs no Python package. AVX-512 is emulated by tests/native/emulated_avx512.h, and AVX-VNNI's one instruction in
quantized_avx2.h, so that machines without them run that code too; NEON is cross-compiled and runs under qemu-user. What
cannot run here is said in a line; that is an error only where it was named. `--prove` plants faults of three sorts in
each instruction set, and expects them to be found.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels" / "bestiary_kernels"
TESTS = ROOT / "tests" / "native"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
HERE = os.environ.get("CXX", "g++")
ARM_HERE = platform.machine() in ("aarch64", "arm64")
PROGRAM = (*sorted(TESTS.glob("*.cpp")), KERNELS / "layout.cpp", KERNELS / "isa_scalar.cpp")
SECONDS = 600
"""After which a run of the program has failed."""

STEP = ("a += n * kBlock, scales += n;", "a += n * kBlock, scales += 1;")
HSUM = ("t = _mm_add_ps(t, _mm_movehl_ps(t, t));", "t = _mm_hadd_ps(t, t);")


@dataclass(frozen=True)
class Target:
    """An instruction set's file, how it is compiled, and where it runs."""

    name: str
    isa: str
    """isa_*.cpp, which has table_*."""
    flags: tuple[str, ...]
    """For that file alone; those of kernels/CMakeLists.txt."""
    defines: tuple[str, ...]
    machine: tuple[str, ...]
    """Words of /proc/cpuinfo that the processor needs; none under an emulator."""
    faults: tuple[tuple[str, str, str, str], ...]
    """(file, what is replaced in it, by what, what the program says then)."""
    compiler: str = HERE
    emulator: str = ""
    packages: str = ""
    """Of Debian, with the compiler and the emulator."""
    sources: tuple[str, ...] = ()
    """Beside those of PROGRAM; if any, the program finds its tables itself."""

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        absent = [tool for tool in (self.compiler, self.emulator) if tool and not shutil.which(tool)]
        if absent:
            return f"no {' and no '.join(absent)}" + (f" (Debian: {self.packages})" if self.packages else "")
        known = cpu_words()
        lacking = [word for word in self.machine if word not in known]
        return f"this processor lacks {', '.join(lacking)}" if lacking else ""


def cpu_words() -> set[str]:
    """What Linux says of the processor."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def faults(vec: str, isa: str, whole: tuple[str, str], order: tuple[str, str]) -> tuple[tuple[str, str, str, str], ...]:
    """A read of a whole vector where fewer numbers are left; another order of additions; a wrong step from block to
    block."""
    return ((vec, *whole, "memory was touched that is not its"), (vec, *order, "in scalar"), (isa, *STEP, "in scalar"))


AVX2_FAULTS = faults("vec_avx2.h", "quantized_avx2.h",
                     ("_mm256_maskload_ps(p + 8, m.b)", "_mm256_loadu_ps(p + 8)"), HSUM)
AVX512 = faults("vec_avx512.h", "isa_avx512.cpp",
                ("_mm512_maskz_loadu_ps(tail(n), p)", "_mm512_maskz_loadu_ps(tail(n | 16), p)"), HSUM)
TARGETS = (
    Target("avx2", "isa_avx2.cpp", AVX2, ("-DBESTIARY_X86",), ("avx2", "fma", "f16c"),
           AVX2_FAULTS),
    Target("avxvnni", "isa_avxvnni.cpp", (*AVX2, "-mavxvnni"), ("-DBESTIARY_X86", "-DBESTIARY_AVXVNNI"),
           ("avx2", "fma", "f16c", "avx_vnni"), AVX2_FAULTS),
    Target("avxvnni-emulated", "isa_avxvnni.cpp", (*AVX2, "-DBESTIARY_EMULATE_VNNI"),
           ("-DBESTIARY_X86", "-DBESTIARY_AVXVNNI"), ("avx2", "fma", "f16c"), AVX2_FAULTS),
    # One that this machine may lack has a row like the next, and one like the next but one where it can be emulated.
    Target("avx512", "isa_avx512.cpp",
           (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-Wno-uninitialized",
            "-Wno-maybe-uninitialized"),
           ("-DBESTIARY_X86",), ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"), AVX512),
    Target("avx512-emulated", "isa_avx512.cpp",
           (*AVX2, "-O1", "-Wno-psabi", "-include", str(TESTS / "emulated_avx512.h")), ("-DBESTIARY_X86",),
           ("avx2", "fma", "f16c"), AVX512),
    Target("neon", "isa_neon.cpp", ("-march=armv8.2-a+dotprod",), ("-DBESTIARY_ARM",),
           ("asimddp",) if ARM_HERE else (),
           faults("vec_neon.h", "isa_neon.cpp", ("if (n == 16) return ld(p);", "if (n > 0) return ld(p);"),
                  ("vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d))",
                   "vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d))")),
           HERE if ARM_HERE else "aarch64-linux-gnu-g++", "" if ARM_HERE else "qemu-aarch64",
           "g++-aarch64-linux-gnu qemu-user", ("host.cpp",)),
)


def compile_all(jobs: Iterable[Sequence[str]]) -> None:
    """Runs the compilers, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for ended in pool.map(lambda job: subprocess.run(job, check=False, capture_output=True, text=True), jobs):
            if ended.returncode:
                raise SystemExit(f"{' '.join(ended.args)}\n{ended.stderr}")


def build(target: Target, folder: Path) -> Path:
    """The program for one table, in `folder`."""
    table = f"-DBESTIARY_TEST_TABLE=table_{Path(target.isa).stem.removeprefix('isa_')}"
    common = (target.compiler, *FLAGS, *target.defines, f"-I{KERNELS}", *(() if target.sources else (table,)))
    others = [*PROGRAM, *(KERNELS / name for name in target.sources)]
    compile_all([compiler_of_isa(target, KERNELS, folder / "isa.o"),
                 *((*common, "-c", str(path), "-o", str(folder / f"{path.stem}.o")) for path in others)])
    return link(target, folder)


def compiler_of_isa(target: Target, kernels: Path, to: Path) -> tuple[str, ...]:
    return (target.compiler, *FLAGS, *target.defines, *target.flags, f"-I{kernels}", "-c", str(kernels / target.isa),
            "-o", str(to))


def link(target: Target, folder: Path) -> Path:
    program = folder / "program"
    static = ("-static",) if target.emulator else ()
    compile_all([(target.compiler, *static, *map(str, sorted(folder.glob("*.o"))), "-o", str(program), "-pthread")])
    return program


def run(target: Target, program: Path, *arguments: str, cpu: str = "max") -> subprocess.CompletedProcess[str]:
    before = (target.emulator, "-cpu", cpu) if target.emulator else ()
    return subprocess.run([*before, str(program), *arguments], check=False, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=SECONDS)


def found(target: Target, program: Path) -> None:
    """Fails unless the program finds the table where the processor can run it, and only there."""
    for cpu, wanted in (("max", ["scalar", "neon"]), ("cortex-a53", ["scalar"])):
        names = run(target, program, "--tables", cpu=cpu).stdout.split()
        if names != wanted:
            raise SystemExit(f"a processor {cpu} should run {wanted}; found were {names}")


def prove(target: Target, folder: Path) -> None:
    """Fails unless every planted fault is found. The program's other parts are in `folder` already."""
    places = [folder / f"fault{i}" for i in range(len(target.faults))]
    for place, (file, old, new, _) in zip(places, target.faults, strict=True):
        shutil.copytree(KERNELS, place / "kernels")
        for path in folder.glob("*.o"):
            shutil.copy2(path, place)
        right = (KERNELS / file).read_text()
        if right.count(old) != 1:
            raise SystemExit(f"{file} does not hold {old!r} once: plant the fault elsewhere")
        (place / "kernels" / file).write_text(right.replace(old, new))
    compile_all([compiler_of_isa(target, place / "kernels", place / "isa.o") for place in places])
    for place, (_, _, new, words) in zip(places, target.faults, strict=True):
        ended = run(target, link(target, place))
        if ended.returncode != 1 or words not in ended.stdout:
            raise SystemExit(f"{target.name}: the planted {new!r} was not found:\n{ended.stdout[-2000:]}")
        print(f"{target.name}: the planted {new!r} was found", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Returns 1 where a result differs, or where what was named cannot run."""
    parser = argparse.ArgumentParser(description="The kernels' own test program.")
    parser.add_argument("--prove", action="store_true", help="plant faults, which must be found")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(target.name for target in TARGETS))
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {target.name for target in TARGETS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(target.name for target in TARGETS)}")
    status = 0
    for target in TARGETS:
        if options.names and target.name not in options.names:
            continue
        if why := target.missing():
            print(f"NOT TESTED: {target.name}: {why}", flush=True)
            status = status or int(bool(options.names))
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            program = build(target, Path(name))
            if target.emulator:
                found(target, program)
            ended = run(target, program)
            print(ended.stdout, end="")
            if ended.returncode:
                print(f"{target.name}: exit status {ended.returncode}")
                status = 1
            elif options.prove:
                prove(target, Path(name))
        print(f"{target.name}: {time.monotonic() - begun:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
