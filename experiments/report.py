"""What every experiment does with its runs: a CSV of all of them, a table and a picture of their spread."""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from experiments.trials import Row

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs/experiments.md"

#: Fewer runs than this say nothing about their spread.
SEEDS = 5

#: Told apart without colours too, by the markers; the colours are those of Okabe and Ito, 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"


class Spread(NamedTuple):
    """The middle and the extremes of several runs; infinity stands for a run that did not get there."""

    median: float
    low: float
    high: float
    runs: int
    arrived: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the runs."""
        arrived = sum(map(math.isfinite, values))
        return cls(statistics.median_low(values), min(values), max(values), len(values), arrived)

    def text(self, digits: int = 3) -> str:
        """Return median and extremes, such as `0.951 (0.944 to 0.958)`."""
        if not self.arrived:
            return "never"
        if self.arrived < self.runs:
            return f"{_number(self.low, digits)} at best, {self.arrived} of {self.runs} runs"
        return f"{_number(self.median, digits)} ({_number(self.low, digits)} to {_number(self.high, digits)})"


def spread(rows: Sequence[Row], value: str, **where: str | int | float) -> Spread | None:
    """Return the spread of `value` over the rows that have these entries; None if there are none."""
    values = [float(row[value]) for row in rows if all(row[key] == entry for key, entry in where.items())]
    return Spread.of(values) if values else None


def distinct(rows: Sequence[Row], key: str) -> list[str | int | float]:
    """Return the entries of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def curve(axes: matplotlib.axes.Axes, number: int, label: str, points: Sequence[tuple[float, Spread]]) -> None:
    """Draw medians as a line and extremes as a band; points that no run reached are left out."""
    shown = [(x, s) for x, s in points if math.isfinite(s.median)]
    if not shown:
        axes.plot([], [], color=COLOURS[number], marker=MARKERS[number], label=f"{label} (never)")
        return
    xs = [x for x, _ in shown]
    colour = COLOURS[number]
    axes.plot(xs, [s.median for _, s in shown], color=colour, marker=MARKERS[number], markersize=5, label=label)
    highs = [s.high if math.isfinite(s.high) else s.median for _, s in shown]
    axes.fill_between(xs, [s.low for _, s in shown], highs, color=colour, alpha=0.15, linewidth=0)


def tidy(axes: matplotlib.axes.Axes, title: str, x: str, y: str) -> None:
    """Give axes the look of all figures."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


class Experiment(NamedTuple):
    """What is particular to one experiment."""

    name: str
    #: (seeds, tiny) to one row per run; `tiny` asks for the smallest that still passes through everything.
    measure: Callable[[Sequence[int], bool], list[Row]]
    #: Rows to Markdown.
    tell: Callable[[Sequence[Row]], list[str]]
    #: Draws the rows.
    draw: Callable[[Sequence[Row], Figure], None]


def command(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Carry the experiment out as its command line says."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{experiment.name}")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(SEEDS)), help="one run of every case for each"
    )
    parser.add_argument("--tiny", action="store_true", help="the smallest size: shows that everything works, no more")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="add to the rows of earlier runs with other seeds")
    parser.add_argument("--draw-only", action="store_true", help="measure nothing; table and picture of earlier runs")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / f"{experiment.name}.csv"
    rows: list[Row] = []
    if chosen.keep or chosen.draw_only:
        rows = [row for row in read(file) if chosen.draw_only or row["seed"] not in chosen.seeds]
    if not chosen.draw_only:
        rows += experiment.measure(chosen.seeds, chosen.tiny)
        _write_rows(file, rows)
    lines = experiment.tell(rows)
    print("\n".join(lines))
    figure = Figure(layout="constrained")
    experiment.draw(rows, figure)
    figure.savefig(chosen.out / f"{experiment.name}.png", dpi=110)
    if chosen.write:
        picture = f"![{experiment.name}](../experiments/results/{experiment.name}.png)"
        write_between(PAGE, experiment.name, [*lines, "", picture])


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a page.

    Raises:
        ValueError: if the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    new, count = re.subn(f"{start}.*?{end}", lambda _: "\n".join([start, *lines, end]), text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has {count} places marked {start} … {end}; one is expected")
    page.write_text(new, encoding="utf-8")


def read(file: Path) -> list[Row]:
    """Return the rows of a CSV file, numbers as numbers; none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(lines)]


def _write_rows(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _value(text: str) -> str | int | float:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d[\d.]*(e-?\d+)?|inf", text) else text


def _number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if digits == 0 else f"{value:.{digits}f}"
