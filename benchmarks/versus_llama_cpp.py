"""Bestiary and llama.cpp on the same synthetic file, in turn, on the same cores, beside the machine's own limits.

    python benchmarks/versus_llama_cpp.py [--shape 1.1b,...] [--types q4_0,...] [--threads 1,2] [--tests prefill512,...]
        [--rounds 7] [--isa avx2] [--floors] [--peer-python VENV/bin/python] [--markdown FILE] [--json FILE]

Needs gcc and, in the interpreter of --peer-python, llama-cpp-python built for the machine (the extra `bench`). Each
program runs in a child process. Of each test, a round is one run of ours, one of theirs, one of the probe that limits
the test; figures are medians over the rounds, ratios medians of the rounds' ratios. llama.cpp runs at its best setting
(weights repacked or not; attention in either way; sequences in one buffer or several), which short trials find.
Run it on an idle machine; --busy puts a busy neighbour beside both, on one of their cores or free to move, and measures
our own single thread in turn with them. The test clamped8 asks both for 8 threads on the same cores, in turn with ours
of as many threads as cores. --floors says which of the figures that are wanted (floors.py) were reached.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import floors
import numpy as np
import synthetic
from children import Child, Probes, Sides, compiled_probes, neighbour, usable_cpus
from program import Test
from temporary import temporary

from bestiary.host import Host

TESTS = {
    "prefill128": Test("prefill", 128), "prefill512": Test("prefill", 512), "prefill2048": Test("prefill", 2048),
    "decode": Test("decode", 32), "decode2000": Test("decode", 32, 2000),
    "decode4": Test("decode", 32, 0, 4), "decode8": Test("decode", 32, 0, 8),
}
CHECK, LOAD, CLAMPED = "check", "load", "clamped8"
ASKED = 8
"""Threads that the test CLAMPED asks for."""
CLAMPED_TESTS = {"prefill128": Test("prefill", 128), "decode": Test("decode", 4)}  # short: llama.cpp may take seconds
TYPES = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "mxfp4", *synthetic.QUANTIZED)
USUAL = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q4_k", "q6_k", "q4_k_m")
ARITHMETIC = {"f16": ("f32",), "bf16": ("bf16", "f32")}
"""Encoding -> the multiply-adds that its prefill is made of, the first that there are; int8 for all others."""
LOADED_TOKENS = 520
"""Tokens that `Program.load` runs."""
PROMPT = 48
"""Tokens of the prompt of which both programs' logits are compared."""
Row = dict[str, Any]


class Progress:
    """A line on stderr for each step, with what is left by the average of those done."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.started = steps, 0, time.monotonic()

    def __call__(self, text: str) -> None:
        spent = time.monotonic() - self.started
        left = f", {spent / self.done * (self.steps - self.done) / 60:.0f} min left" if self.done else ""
        self.done += 1
        print(f"[{self.done}/{self.steps}{left}] {text}", file=sys.stderr, flush=True)


class Running(NamedTuple):
    """The children that a test runs in turn. weights: llama.cpp's setting for them. own: a third, ours in another way;
    what it is stands in own_is."""

    ours: Child
    theirs: Child
    probe: Probes
    weights: str
    own: Child | None = None
    own_is: str = ""


class Comparison:
    """One file, one number of threads."""

    def __init__(self, given: argparse.Namespace, sides: Sides, host: Host, probes: Path, shape: str, type: str,
                 threads: int) -> None:
        self.given, self.sides, self.host, self.probes = given, sides, host, probes
        self.shape, self.type, self.threads = shape, type, threads
        self.config = synthetic.SHAPES[shape]
        family = self.config["model_type"]
        self.path, self.tiny = (synthetic.made(config, name, type, given.models, host, sides.quantize)
                                for config, name in ((self.config, shape), (synthetic.TINY[family], f"tiny-{family}")))
        self.cpus = usable_cpus()[:threads]
        warm(self.path)

    def row(self, test: str, ours: list[float], theirs: list[float], **more: Any) -> Row:
        return {"shape": self.shape, "type": self.type, "threads": self.threads, "test": test, "ours": ours,
                "theirs": theirs, **more}

    def rows(self, progress: Progress) -> Iterator[Row]:
        tests = self.given.tests
        about = f"{self.shape} {self.type}, {self.threads} threads"
        if LOAD in tests:
            progress(f"{about}: load")
            yield from self.loads()
        if CLAMPED in tests:
            progress(f"{about}: {CLAMPED}")
            yield from self.clamped()
        if set(tests) <= {LOAD, CLAMPED}:
            return
        busy, trials = self.given.busy, any(name in TESTS for name in tests)
        one = (1, f"1 thread of ours, busy {busy}") if busy and self.threads > 1 else None
        with self.running(self.threads, one, trials) as children:
            if CHECK in tests:
                progress(f"{about}: check")
                yield self.check(children.ours, children.theirs)
            for name in tests:
                if name in TESTS:
                    progress(f"{about}: {name}")
                    yield self.speeds(f"{name}, busy {busy}" if busy else name, TESTS[name], children)

    def clamped(self) -> Iterator[Row]:
        """More threads asked for than there are cores."""
        with self.running(ASKED, (self.threads, f"{self.threads} threads of ours"), False) as children:
            for name, test in CLAMPED_TESTS.items():
                yield self.speeds(f"{CLAMPED} {name}", test, children)

    @contextlib.contextmanager
    def running(self, threads: int, own: tuple[int, str] | None, trials: bool) -> Iterator[Running]:
        """Children that have loaded the file. own: the threads of another of ours, and what it is."""
        with contextlib.ExitStack() as stack:
            def begun(start: Any, count: int) -> tuple[Child, str]:
                child = stack.enter_context(start(self.cpus))
                return child, child.do("begin", path=str(self.path), threads=count, trials=trials)

            ours, theirs = begun(self.sides.ours, threads), begun(self.sides.theirs, threads)
            third = begun(self.sides.ours, own[0])[0] if own else None
            self.facts = {"ours": ours[0].do("facts"), "theirs": theirs[0].do("facts")}
            probe = Probes(self.probes, self.cpus, len(self.cpus))
            stack.enter_context(probe.child)
            yield Running(ours[0], theirs[0], probe, theirs[1], third, own[1] if own else "")

    def speeds(self, name: str, test: Test, children: Running) -> Row:
        ours, theirs, probe, weights, own, own_is = children
        for child in (ours, own):
            if child:
                child.do("prepare", test=test)
        setting = theirs.do("prepare", test=test)
        ours_runs, their_runs, own_runs, limit_runs = list[float](), list[float](), list[float](), list[float]()
        limits = ("read",) if test.kind == "decode" else ARITHMETIC.get(self.type, ("int8",))
        limits = tuple(limit for limit in limits if probe(limit))[:1]
        for _ in range(self.given.rounds):
            ours_runs.append(ours.do("sample", seconds=self.given.seconds))
            if own:
                own_runs.append(own.do("sample", seconds=self.given.seconds))
            their_runs.append(theirs.do("sample", seconds=self.given.seconds))
            limit_runs += [probe(limit) / self.amount(test) for limit in limits]
        return self.row(name, ours_runs, their_runs, limit=limit_runs, limited_by="".join(limits), unit="tokens/s",
                        setting=f"{weights}, {setting}", own=own_runs, own_is=own_is)

    def amount(self, test: Test) -> float:
        """What a token takes of the limit: bytes read, or multiply-adds with weights."""
        if test.kind == "decode":
            return synthetic.read(self.path, self.host) / test.sequences
        return synthetic.multiplied(self.config, self.host)

    def check(self, ours: Child, theirs: Child) -> Row:
        """Whether both compute the same."""
        vocabulary = int(self.config.get("vocab_size") or self.config["padded_vocab_size"])
        ids = np.random.default_rng(2).integers(259, vocabulary, PROMPT).tolist()
        both = []
        with tempfile.TemporaryDirectory(dir=self.probes.parent) as folder:
            for child in (ours, theirs):
                file = Path(folder, f"{child.name}.npy")
                child.do("logits", ids=ids, to=str(file))
                both.append(np.load(file).astype(np.float64))
        a, b = both
        return self.row(
            CHECK, [], [], argmax=float(np.mean(a.argmax(1) == b.argmax(1))), finite=bool(np.isfinite(both).all()),
            difference=float(np.sqrt(np.mean((a - b) ** 2)) / np.std(b)))

    def loads(self) -> Iterator[Row]:
        """A process for each load; llama.cpp's way to load is the one that was fastest in a trial."""
        request = {"tiny": str(self.tiny), "path": str(self.path), "threads": self.threads}

        def loaded(start: Any, **more: Any) -> dict[str, float]:
            with start(self.cpus) as child:
                result: dict[str, float] = child.do("load", **request, **more)
                return result

        modes = {mode: loaded(self.sides.theirs, mode=mode)["first_token"] for mode in ("AUTO", "MMAP", "NONE")}
        mode = min(modes, key=modes.__getitem__)
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        size, pages = self.path.stat().st_size, list[float]()
        for _ in range(self.given.rounds):
            found["ours"].append(loaded(self.sides.ours))
            found["theirs"].append(loaded(self.sides.theirs, mode=mode))
            probe = Probes(self.probes, self.cpus, len(self.cpus))
            with probe.child:
                pages += [size / speed for speed in (probe("pages"),) if speed]
        for name, figure, unit, scale in (("load", "load", "s", 1.0), ("load, first token", "first_token", "s", 1.0),
                                          ("peak memory", "peak", "MB", 1e-6)):
            allowed = 1.05 * size + synthetic.cached(self.config, LOADED_TOKENS, self.host) + 100e6
            more: Row = {"limit": pages, "limited_by": "fresh pages"}
            if unit == "MB":
                more = {"limit": [size / 1e6], "limited_by": "file", "allowed": [allowed / 1e6]}
            yield self.row(name, *([scale * one[figure] for one in found[side]] for side in ("ours", "theirs")),
                           setting=f"load mode {mode}", unit=unit, **more)


def warm(path: Path) -> None:
    """Reads the file, so that it is in memory."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def shown(row: Row) -> list[str]:
    """The cells of a row of the table."""
    start = [row["shape"], row["type"], str(row["threads"]), row["test"]]
    if row["test"] == CHECK:
        says = "" if row["finite"] else "NOT FINITE; "
        return [*start, f"{says}same likeliest token {100 * row['argmax']:.0f} %", "",
                f"differ by {100 * row['difference']:.1f} %", "", "", ""]
    ours, theirs = statistics.median(row["ours"]), statistics.median(row["theirs"])
    ratios = sorted(a / b for a, b in zip(row["ours"], row["theirs"], strict=True))
    shares = ["", ""]
    if limit := row.get("limit"):
        limits = limit if len(limit) == len(row["ours"]) else limit * len(row["ours"])
        shares = [f"{100 * statistics.median(a / b for a, b in zip(row[side], limits, strict=True)):.0f} %"
                  for side in ("ours", "theirs")]
    limited = f"{statistics.median(limit):.4g} ({row['limited_by']})" if limit else ""
    if row.get("own"):
        limited += f"; {floors.share(row, floors.OWN, ()):.2f} of {row['own_is']}"
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return [*start, f"{ours:.4g} {row['unit']}", f"{theirs:.4g} {row['unit']}", ratio, *shares,
            f"{limited}; {row['setting']}".removeprefix("; ")]


TITLES = ("shape", "type", "threads", "test", "Bestiary", "llama.cpp", "ratio", "of the limit", "llama.cpp's",
          "limit; llama.cpp's setting")


def markdown(rows: list[Row], facts: dict[str, Any], reached: list[floors.Verdict]) -> str:
    lines = [f"{facts['cpu']}; {facts['date']}; load average at the end {facts['load']}", "",
             f"    {facts['command']}", "",
             *(f"- {name}: {', '.join(f'{key} {value}' for key, value in one.items())}"
               for name, one in facts.get("programs", {}).items()), "", *table(TITLES, map(shown, rows))]
    if reached:
        lines += ["", *table(floors.TITLES, map(floors.shown, reached))]
    return "\n".join([*lines, ""])


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    for row in (titles, ["---" for _ in titles], *rows):
        yield "| " + " | ".join(row) + " |"


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {len(usable_cpus())} CPUs"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {len(usable_cpus())} CPUs"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def names(known: Any) -> Any:
        def parse(text: str) -> list[str]:
            found = text.split(",")
            for name in found:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r}; known: {', '.join(known)}")
            return found
        return parse

    parser.add_argument("--shape", type=names(synthetic.SHAPES), default=["1.1b"], metavar="NAME,...",
                        help=", ".join(synthetic.SHAPES))
    parser.add_argument("--types", type=names(TYPES), default=list(USUAL), metavar="NAME,...",
                        help=f"{', '.join(TYPES)}; by default {', '.join(USUAL)}")
    parser.add_argument("--threads", type=lambda text: [int(count) for count in text.split(",")], default=[1, 2],
                        metavar="N,...")
    tests = (CHECK, *TESTS, CLAMPED, LOAD)
    parser.add_argument("--tests", type=names(tests), default=[test for test in tests if test != CLAMPED],
                        metavar="NAME,...", help=f"{', '.join(tests)}; by default all but {CLAMPED}")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each program in turn")
    parser.add_argument("--seconds", type=float, default=0.5, help="the least that a run takes")
    parser.add_argument("--isa", help="the instruction set that Bestiary is held to")
    parser.add_argument("--peer-python", default=sys.executable, metavar="FILE",
                        help="an interpreter with llama-cpp-python, by default this one")
    parser.add_argument("--models", type=Path, default=synthetic.FOLDER, metavar="FOLDER",
                        help="where the synthetic files are kept")
    parser.add_argument("--busy", choices=("pinned", "free"),
                        help="a busy neighbour, on the first core of the programs or on any of them")
    parser.add_argument("--floors", action="store_true", help="say which figures that are wanted were reached")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    given = parser.parse_args()
    most = len(usable_cpus())
    if given.rounds < 1 or not all(1 <= count <= most for count in given.threads):
        parser.error(f"--rounds at least 1, --threads 1 to {most}: of more the programs do not run at their best")
    if not shutil.which(given.peer_python):
        parser.error(f"--peer-python {given.peer_python} is no program")
    for file in (given.markdown, given.json):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder {file.parent}")
    return given


def command(given: argparse.Namespace) -> str:
    """The command without the places that only this machine has."""
    chosen = {"shape": given.shape, "types": given.types, "threads": given.threads, "tests": given.tests,
              "rounds": [given.rounds], "seconds": [given.seconds], "isa": [given.isa], "busy": [given.busy]}
    words = [f"--{name} {','.join(map(str, values))}" for name, values in chosen.items() if values != [None]]
    return " ".join(["python benchmarks/versus_llama_cpp.py", *words, *["--floors"] * given.floors])


def main() -> None:
    given = arguments()
    host, sides = Host(), Sides(given.peer_python, given.isa)
    isa = given.isa or host.backends["cpu"].describe().get("isa", "")
    combinations = list(itertools.product(given.shape, given.types, given.threads))
    progress = Progress(len(combinations) * len(given.tests))
    facts: dict[str, Any] = {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d"),
                             "command": command(given)}
    rows: list[Row] = []
    reached: list[floors.Verdict] = []
    with temporary() as folder, contextlib.ExitStack() as stack:
        probes = compiled_probes(folder, given.isa)
        if given.busy:
            cpus = usable_cpus()[:max(given.threads)]
            busy = neighbour(cpus[:1] if given.busy == "pinned" else cpus)
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        print("\t".join(TITLES))
        for shape, type, threads in combinations:
            comparison = Comparison(given, sides, host, probes, shape, type, threads)
            for row in comparison.rows(progress):
                rows.append(row)
                print("\t".join(shown(row)), flush=True)
                facts["programs"] = getattr(comparison, "facts", facts.get("programs", {}))
                facts["load"] = f"{os.getloadavg()[0]:.1f}"
                reached = floors.verdicts(rows, isa) if given.floors else []
                if given.json:
                    given.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))
                if given.markdown:
                    given.markdown.write_text(markdown(rows, facts, reached))
    if reached:
        print("\n" + "\n".join("\t".join(row) for row in (floors.TITLES, *map(floors.shown, reached))))
    print(f"load of the machine meanwhile: {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
