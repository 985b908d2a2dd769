"""`bestiary bench`: tokens a second."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bestiary.cli import options, terminal
from bestiary.errors import BestiaryError


def bench(
    context: typer.Context,
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option(
        "-p", "--n-prompt", metavar="N,...",
        help="Tokens of the prompts; 0 for none. By default 512; of a plot 32,128,512,2048.")] = None,
    predict: Annotated[str, typer.Option(
        "-n", "--n-gen", metavar="N,...", help="Tokens to generate; 0 for none.")] = "64",
    threads: Annotated[str | None, typer.Option(
        "-t", "--threads", metavar="N,...", help="Threads; by default what the machine allows.")] = None,
    threads_batch: options.ThreadsBatch = None,
    repeats: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="Runs of each.")] = 3,
    depth: Annotated[str, typer.Option(
        "-d", "--n-depth", metavar="N,...", help="Tokens that are in the context before.")] = "0",
    sequences: Annotated[int, typer.Option(
        "--sequences", metavar="N", help="Sequences that are decoded together.")] = 1,
    batch: options.BatchSize = 512,
    type: options.Type = None,
    backend: options.Backend = None,
    cache_type_k: options.CacheTypeK = None,
    cache_type_v: options.CacheTypeV = None,
    plot: Annotated[Path | None, typer.Option(
        "--plot", metavar="FILE.png|svg",
        help="Draw tokens/s over threads (by default 1, 2, 4 ... and all) and over the prompt's length.")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
) -> None:
    """Measure prefill and decode in tokens a second.

    What is printed is the median of several runs.
    """
    from bestiary.benchmark import Bench
    from bestiary.files import replacing
    from bestiary.model import load, made_for
    from bestiary.readahead import usable_cpus
    from bestiary.saving import main_type
    from bestiary.speed_plot import advice, best, check_plot, draw, over_threads, swept_length, thread_counts

    host = options.host_of(context)
    prompts, predicts = options.numbers(prompt or "512", "-p", 0), options.numbers(predict, "-n", 0)
    depths = options.numbers(depth, "-d", 0)
    counts: Sequence[int | None] = [None]
    if threads:
        counts = [*dict.fromkeys(options.usable(count, "-t") for count in options.numbers(threads, "-t", 1))]
    for option, value in (("-r", repeats), ("--sequences", sequences), ("-tb", threads_batch)):
        if value is not None and value < 1:
            raise BestiaryError(f"{option} {value}: 1 or more is wanted")
    if plot is not None and threads_batch is not None:
        raise BestiaryError("-tb: a plot runs prompts and generation with the same threads, those of -t")
    for_prompts = options.usable(threads_batch, "-tb")
    rows: list[dict[str, Any]] = []
    timed = []
    with terminal.aside(as_json), terminal.said_once(), contextlib.ExitStack() as stack:
        path = options.model_path(host, model)

        def measure(count: int | None, prompts: Sequence[int], predicts: Sequence[int]) -> None:
            longest = max(1, *prompts, *predicts) + max(depths)
            with terminal.progress_bar("loading") as progress:
                loaded = load(path, backend, count, longest, type, host, batch=batch, sequences=sequences,
                              threads_prefill=for_prompts, cache_type_k=cache_type_k, cache_type_v=cache_type_v,
                              loader=loader, architecture=architecture, progress=progress)
            with loaded:
                facts, limits = loaded.facts(), loaded.plan.limits
                for place in depths:
                    runner = Bench(loaded, place, sequences)
                    for measured in (*(runner.prefill(n, repeats) for n in prompts if n),
                                     *(runner.decode(n, repeats) for n in predicts if n)):
                        timed.append((count or 0, measured))
                        rows.append({
                            "test": measured.test, "tokens": measured.tokens,
                            "threads": for_prompts if measured.test == "prefill" and for_prompts else
                            count or options.whole(facts.get("threads")),
                            "tokens_per_second": measured.tokens_per_second, "runs": list(measured.runs),
                            "depth": measured.depth, "sequences": measured.sequences, "model": str(path),
                            "type": main_type(loaded.held), "backend": loaded.backend.name,
                            "isa": facts.get("isa"), "batch": limits.batch, "cache_type_k": limits.cache_type_k,
                            "cache_type_v": limits.cache_type_v})

        if plot is None:
            for count in counts:
                measure(count, prompts, predicts)
        else:
            check_plot(plot)
            for option, given in (("-n", predicts), ("-d", depths)):
                if len(given) > 1:
                    raise BestiaryError(f"{option} {','.join(map(str, given))}: a plot shows one of them")
            if prompt is None:
                room = made_for(path, host, loader, architecture) - max(depths)
                prompts = [n for n in (32, 128, 512, 2048) if n <= room] or [max(1, room)]
            prompts = [n for n in dict.fromkeys(prompts) if n]
            if not prompts and not any(predicts):
                raise BestiaryError("-p 0 -n 0: there is nothing to plot")
            file = stack.enter_context(replacing(plot, force))  # before the work: it may not be writable
            swept = [swept_length(prompts)] if prompts else []
            for count in counts if threads else thread_counts(usable_cpus()):
                measure(count, swept, predicts)
            if more := [n for n in prompts if n not in swept]:
                measure(best(over_threads(timed, "prefill")), more, [])
            isa = f" ({rows[0]['isa']})" if rows[0]["isa"] else ""
            draw(timed, path, f"{rows[0]['type']}, {rows[0]['backend']}{isa}", plot.suffix.lower(), file)
    print(json.dumps(rows, indent=2) if as_json else table(rows))
    if plot is not None:
        print(f"\n{advice(timed)}; drawn in {plot}", file=sys.stderr if as_json else sys.stdout)


def table(rows: list[dict[str, Any]]) -> str:
    titles = ["test", "tokens", "depth", "sequences", "threads", "tokens/s", "least", "most"]
    cells = [[row["test"], str(row["tokens"]), str(row["depth"]), str(row["sequences"]), str(row["threads"] or "-"),
              f"{row['tokens_per_second']:.1f}", f"{min(row['runs']):.1f}", f"{max(row['runs']):.1f}"] for row in rows]
    if not rows:
        return "nothing to measure"
    isa = f" ({rows[0]['isa']})" if rows[0]["isa"] else ""
    cache = "/".join(dict.fromkeys((rows[0]["cache_type_k"], rows[0]["cache_type_v"])))
    head = f"{rows[0]['model']}: {rows[0]['type']}, {rows[0]['backend']}{isa}, cache {cache}"
    return f"{head}\n\n{terminal.table([titles, *cells])}"
