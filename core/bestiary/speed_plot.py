"""What `bench` measured, as a picture and in words: tokens a second over threads and over the length of a prompt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bestiary.benchmark import Measurement
from bestiary.errors import BestiaryError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Timed = tuple[int, Measurement]
"""A number of threads, and what was measured with it."""

FORMATS = (".png", ".svg")
NEAR = 0.98
"""A speed that is this share of the best is as good: what is missing is noise."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read by a program
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
COLOURS = {"prefill": "#0072b2", "decode": "#d55e00"}  # told apart by all eyes
APART = 0.11
"""Share of an axis that a figure of four digits takes."""
LONGEST = 44
"""Characters of a file's name that have room in the title."""


def check_plot(path: Path) -> None:
    """Raises BestiaryError where no picture can come of it, before anything is measured."""
    if path.suffix.lower() not in FORMATS:
        raise BestiaryError(f"--plot {path}: a name that ends in {' or '.join(FORMATS)} is wanted")
    try:
        import matplotlib.figure  # noqa: F401 - to see whether it is there
    except ImportError as error:
        raise BestiaryError(f"--plot needs matplotlib ({error}); pip install 'bestiary[plot]' brings it") from None


def thread_counts(usable: int) -> list[int]:
    """1, 2, 4 and so on, and all."""
    return [*(1 << i for i in range((usable - 1).bit_length())), usable]


def swept_length(lengths: Sequence[int]) -> int:
    """The length of a prompt that stands for all where threads are compared."""
    return max((length for length in lengths if length <= 512), default=min(lengths))


def best(speeds: Mapping[int, Measurement]) -> int:
    """The least number whose speed is as good as any."""
    most = max(one.tokens_per_second for one in speeds.values())
    return min(number for number, one in speeds.items() if one.tokens_per_second >= NEAR * most)


def over_threads(timed: Sequence[Timed], test: str) -> dict[int, Measurement]:
    """Threads -> what was measured; of prompts those of the length that every number of threads ran."""
    found = [(threads, one) for threads, one in timed if one.test == test]
    swept = found[0][1].tokens if found else 0
    return {threads: one for threads, one in found if one.tokens == swept}


def over_lengths(timed: Sequence[Timed]) -> tuple[int, dict[int, Measurement]]:
    """The best number of threads for prompts, and length -> what was measured with it."""
    threads = best(over_threads(timed, "prefill"))
    return threads, {one.tokens: one for count, one in timed if one.test == "prefill" and count == threads}


def advice(timed: Sequence[Timed]) -> str:
    """ "fastest: -t 2 for generation, -tb 4 for prompts"."""
    parts = [f"{option} {best(speeds)} for {what}" for option, what, test in (
        ("-t", "generation", "decode"), ("-tb", "prompts", "prefill")) if (speeds := over_threads(timed, test))]
    return "fastest: " + ", ".join(parts)


def draw(timed: Sequence[Timed], model: Path, about: str, format: str, file: IO[bytes]) -> None:
    """Writes the picture, 800 x 400 points. about: what stands behind the model's name. format: one of FORMATS."""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: that would look for a display

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's own may need LaTeX
        matplotlib.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a file's name
        figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
        name = printable(model.name)
        name = name if len(name) <= LONGEST else f"{name[:LONGEST // 2]}...{name[-LONGEST // 2:]}"
        figure.suptitle(f"{name}: {about}", parse_math=False, fontweight="bold")
        panels = list(_panels(timed))
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
        figure.savefig(file, format=format.removeprefix("."))


def _panels(timed: Sequence[Timed]) -> Iterator[Callable[[Axes], None]]:
    yield lambda axes: _threads(axes, timed)
    if over_threads(timed, "prefill"):
        yield lambda axes: _lengths(axes, timed)


def _threads(axes: Axes, timed: Sequence[Timed]) -> None:
    from matplotlib.ticker import LogLocator

    lines = {test: found for test in COLOURS if (found := over_threads(timed, test))}
    tops = {test: max(one.tokens_per_second for one in speeds.values()) for test, speeds in lines.items()}
    _prepare(axes, "over threads", "threads", [threads for speeds in lines.values() for threads in speeds])
    axes.set_yscale("log")  # the one is many times the other; equal slopes are equal gains
    for test, speeds in lines.items():
        swept = next(iter(speeds.values())).tokens
        title = f"prompts of {swept} tokens (-tb)" if test == "prefill" else "generation (-t)"
        _line(axes, speeds, COLOURS[test], title, above=tops[test] == max(tops.values()))
    runs = [run for speeds in lines.values() for one in speeds.values() for run in one.runs]
    span = max(runs) / min(runs)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if span < 30 else (1, 2, 5)))
    margin = 1.3 * span ** 0.15  # room for the figures
    axes.set_ylim(min(runs) / margin, max(runs) * margin)
    _finish(axes)


def _lengths(axes: Axes, timed: Sequence[Timed]) -> None:
    threads, speeds = over_lengths(timed)
    _prepare(axes, "over the prompt's length", "tokens of the prompt", list(speeds))
    _line(axes, speeds, COLOURS["prefill"], f"prompts, {threads} thread{'s' * (threads > 1)}", above=True)
    axes.set_ylim(0, 1.2 * max(max(one.runs) for one in speeds.values()))
    _finish(axes)


def _prepare(axes: Axes, title: str, label: str, numbers: Sequence[int]) -> None:
    """The axis along the bottom, for these numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_title(title, loc="left", pad=20)
    axes.set_xlabel(label)
    axes.set_ylabel("tokens/s")
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(numbers) / 1.35, max(numbers) * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(_apart(axes, max(numbers), numbers)))
    axes.xaxis.set_minor_locator(NullLocator())


def _finish(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, borderaxespad=0,
                handlelength=1.5, columnspacing=1.2)


def _apart(axes: Axes, first: int, numbers: Sequence[int]) -> list[int]:
    """Of numbers along the bottom those that have room for a figure; `first` in any case."""
    low, high = axes.get_xlim()
    kept = [first]
    for number in sorted(numbers, reverse=True):
        if all(abs(math.log(number / other)) >= APART * math.log(high / low) for other in kept):
            kept.append(number)
    return kept


def _line(axes: Axes, speeds: Mapping[int, Measurement], colour: str, title: str, above: bool) -> None:
    """Medians, with bars from the least to the most; a star at the best."""
    numbers = sorted(speeds)
    medians = [speeds[number].tokens_per_second for number in numbers]
    lows, highs = ([limit(speeds[number].runs) for number in numbers] for limit in (min, max))
    spread = ([median - low for median, low in zip(medians, lows, strict=True)],
              [high - median for median, high in zip(medians, highs, strict=True)])
    axes.errorbar(numbers, medians, yerr=spread, color=colour, marker="o", markersize=4, capsize=3, label=title)
    chosen = best(speeds)
    axes.plot([chosen], [speeds[chosen].tokens_per_second], color=colour, marker="*", markersize=13)
    for number in _apart(axes, chosen, numbers):
        median, runs = speeds[number].tokens_per_second, speeds[number].runs
        axes.annotate(f"{median:.3g}" if median < 100 else f"{median:.0f}",
                      (number, max(runs) if above else min(runs)), (0, 7 if above else -7),
                      textcoords="offset points", ha="center", va="bottom" if above else "top", color=colour,
                      fontweight="bold" if number == chosen else "normal")
