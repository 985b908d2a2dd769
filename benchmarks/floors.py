"""What Bestiary is to reach beside llama.cpp, beside the machine's limits and beside itself, and whether a run did."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
PEER, LIMIT, OWN, Q4_0, LOAD, ALLOWED = "llama.cpp", "the limit", "our own", "our q4_0", "llama.cpp's time", "allowed"


class Floor(NamedTuple):
    """test: a pattern of rows' names. beside: what the figure is a share of. least: the least share, and the most where
    `beside` is in AT_MOST. types, shape, threads, isa: which rows and instruction sets it is for; nothing for all."""

    test: str
    beside: str
    least: float
    types: tuple[str, ...] = ()
    shape: str = "1.1b"
    threads: int = 2
    isa: str = ""


K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl", "q4_k_m", "q5_k_m")
AT_MOST = (LOAD, ALLOWED)
FLOORS = (
    Floor("prefill512", PEER, 2.1, ("q4_0",), isa="avx512"),
    Floor("prefill512", LIMIT, 0.52, ("q4_0",), isa="avx512"),
    Floor("prefill512", PEER, 4.0, ("q8_0",), isa="avx512"),
    Floor("prefill512", Q4_0, 0.9, ("q8_0",), isa="avx512"),
    Floor("prefill512", PEER, 2.0, ("q4_1", "q5_0"), isa="avx512"),
    Floor("prefill512", PEER, 1.1, ("f16",), isa="avx512"),
    Floor("prefill512", PEER, 1.5, ("bf16",), isa="avx512"),
    Floor("prefill2048", PEER, 2.2, ("q4_0",), isa="avx512"),
    Floor("prefill512", PEER, 1.3, ("q4_0",), isa="avx2"),
    Floor("decode", PEER, 0.97, isa="avx512"),
    Floor("decode", PEER, 1.0, isa="avx2"),
    Floor("decode", LIMIT, 0.85),
    Floor("decode", PEER, 1.3, ("q4_0",), threads=1),
    Floor("decode", PEER, 1.2, ("q8_0",), threads=1),
    Floor("prefill512", PEER, 2.0, ("q4_k", "q5_k", "q6_k", "q4_k_m", "q5_k_m")),
    Floor("prefill512", PEER, 2.5, ("q2_k", "q3_k", "iq4_xs", "iq4_nl")),
    Floor("decode", PEER, 1.2, K_QUANTS, threads=1),
    Floor("decode2000", PEER, 1.4),
    Floor("decode8", PEER, 2.0, ("q4_0",)),
    Floor("decode8", PEER, 3.0, ("q8_0",)),
    Floor("decode", PEER, 1.3, shape="100m"),
    Floor("*busy*", OWN, 0.9),
    Floor("clamped8*", OWN, 0.9),
    Floor("load", LOAD, 0.8, ("q4_0",)),
    Floor("peak memory", ALLOWED, 1.0, ("q4_0",)),
)


class Verdict(NamedTuple):
    row: Row
    floor: Floor
    reached: float

    @property
    def met(self) -> bool:
        return self.reached <= self.floor.least if self.floor.beside in AT_MOST else self.reached >= self.floor.least


def verdicts(rows: Sequence[Row], isa: str) -> list[Verdict]:
    """Each floor that a row is measured by."""
    return [Verdict(row, floor, reached) for row in rows for floor in FLOORS
            if applies(floor, row, isa) and (reached := share(row, floor.beside, rows)) is not None]


def applies(floor: Floor, row: Row, isa: str) -> bool:
    return (fnmatch.fnmatch(row["test"], floor.test) and row["shape"] == floor.shape and row["threads"] == floor.threads
            and (not floor.types or row["type"] in floor.types) and isa.startswith(floor.isa))


def share(row: Row, beside: str, rows: Iterable[Row]) -> float | None:
    """Median of the shares of neighbouring runs; None where the other was not measured."""
    ours = row.get("ours") or []
    if beside == Q4_0:
        others = [other["ours"] for other in rows
                  if other["type"] == "q4_0" and all(other[key] == row[key] for key in ("shape", "threads", "test"))]
        return statistics.median(ours) / statistics.median(others[0]) if others else None
    others = row.get({PEER: "theirs", LOAD: "theirs", LIMIT: "limit", OWN: "own", ALLOWED: "allowed"}[beside]) or []
    if not ours or not others:
        return None
    if len(others) == 1:
        others = others * len(ours)
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def shown(verdict: Verdict) -> list[str]:
    row, floor = verdict.row, verdict.floor
    sign = "<=" if floor.beside in AT_MOST else ">="
    return [row["shape"], row["type"], str(row["threads"]), row["test"], f"{sign} {floor.least:.4g} of {floor.beside}",
            f"{verdict.reached:.2f}", "met" if verdict.met else "NOT MET"]


TITLES = ("shape", "type", "threads", "test", "floor", "reached", "")
