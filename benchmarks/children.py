"""The other processes of the benchmark: the programs, the probes of the machine's limits, a busy neighbour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
WITHOUT = {"avx2": ("-mno-avx512f", "-mno-avxvnni"), "avxvnni": ("-mno-avx512f",), "scalar": ("-mno-avx512f",)}
"""Instruction set that Bestiary is told to use -> what the compiler of the probes is told of the others."""


class Child:
    """A process on some CPUs that answers lines with lines of JSON."""

    def __init__(self, command: Sequence[str], cpus: Iterable[int],
                 environment: Mapping[str, str] | None = None) -> None:
        self.name = Path(command[-1]).stem
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})}, preexec_fn=pinned(cpus))

    def line(self, text: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()} when it was asked: {text}")
        return json.loads(answer)

    def do(self, what: str, **arguments: Any) -> Any:
        return self.line(json.dumps({"do": what, **arguments}))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


def pinned(cpus: Iterable[int]) -> Callable[[], None] | None:
    """What a child does first; None where the system knows no affinity."""
    chosen = set(cpus)
    return (lambda: os.sched_setaffinity(0, chosen)) if hasattr(os, "sched_setaffinity") else None


def usable_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Sides:
    """How the two programs are started."""

    def __init__(self, peer_python: str, isa: str | None) -> None:
        self.peer_python, self.environment = peer_python, {"BESTIARY_ISA": isa} if isa else {}

    def ours(self, cpus: Iterable[int]) -> Child:
        return Child([sys.executable, str(HERE / "bestiary_side.py")], cpus, self.environment)

    def theirs(self, cpus: Iterable[int]) -> Child:
        return Child([self.peer_python, str(HERE / "llama_cpp_side.py")], cpus, {"PYTHONPATH": ""})

    def quantize(self, source: Path, to: Path, type: str, all_alike: bool) -> None:
        """Has llama.cpp make a file of the type from one of f16."""
        print(f"llama.cpp quantizes {source.name} to {type}", file=sys.stderr, flush=True)
        with self.theirs(usable_cpus()) as child:
            child.do("quantize", source=str(source), target=str(to), type=type, all_alike=all_alike)


def compiled_probes(folder: Path, isa: str | None) -> Path:
    """The probes, for the processor at hand."""
    program = folder / "probes"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-O3", "-march=native", *WITHOUT.get(isa or "", ()), "-pthread", "-o", str(program),
                    str(HERE / "probes.c")], check=True)
    return program


class Probes:
    """The machine's limits, of all threads together; asked for between the runs that they are compared with."""

    def __init__(self, program: Path, cpus: Iterable[int], threads: int) -> None:
        self.child, self.threads = Child([str(program)], cpus), threads

    def __call__(self, test: str) -> float:
        """Bytes a second ("read"), or multiply-adds a second ("int8", "f32", "bf16")."""
        return float(self.child.line(f"{test} {self.threads}")["best"])


def neighbour(cpus: Iterable[int]) -> subprocess.Popen[bytes]:
    """A process that does nothing, all the time; it ends with this one, however that ends."""
    busy = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    return subprocess.Popen([sys.executable, "-c", busy], preexec_fn=pinned(cpus))
