"""Draws the pictures of docs/performance.md out of the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.figures import NAMES
from benchmarks.plan import PAIR, PEERS, SIZES, TRANSPORTS
from benchmarks.results import Results

#: Colour and marker by what is drawn; the colours are those of Okabe and Ito, 2008.
STYLES = {
    "shm": ("#0072B2", "o"),
    "stream": ("#D55E00", "s"),
    "grpc": ("#56B4E9", "v"),
    "gloo": ("#009E73", "^"),
    "ray": ("#CC79A7", "D"),
}
FLOORS = {"shm": "floor: copying in memory", "stream": "floor: bare sockets"}

Points = dict[int, float]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every picture that there is something for, and return the files."""
    files = []
    for name, picture in (("rounds", _rounds), ("scaling", _scaling), ("memory", _memory)):
        figure = Figure(layout="constrained", facecolor="white")
        if picture(results, figure):
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=110)
    return files


def _rounds(results: Results, figure: Figure) -> bool:
    """Draw what a round takes over the size of θ, beside floors and peers."""
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    for transport in TRANSPORTS:
        for line, value in ((NAMES[transport], "median_ms"), (FLOORS.get(transport), "floor_ms")):
            points = _points(results, value, "size", "rounds", transport=transport, workers=PAIR, wire="full")
            if line is not None:
                _line(axes, transport, line, points, value == "floor_ms")
    for peer in PEERS:
        _line(axes, peer, NAMES[peer], _points(results, "median_ms", "size", "peer", peer=peer, workers=PAIR))
    _tidy(axes, f"A synchronous round of {PAIR} workers", "parameters, float32", "milliseconds", SIZES)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9)
    return axes.has_data()


def _scaling(results: Results, figure: Figure) -> bool:
    """Draw what a round takes over the number of workers, a panel for each size."""
    figure.set_size_inches(11, 4)
    panels = figure.subplots(1, len(SIZES))
    for axes, size in zip(panels, SIZES, strict=True):
        numbers: set[int] = set()
        for transport in TRANSPORTS:
            for line, value in ((NAMES[transport], "median_ms"), (FLOORS.get(transport), "floor_ms")):
                points = _points(results, value, "workers", "rounds", transport=transport, size=size, wire="full")
                numbers |= set(points)
                if line is not None:
                    _line(axes, transport, line, points, value == "floor_ms")
        _tidy(axes, f"D = {size:,}", "workers", "milliseconds a round", sorted(numbers))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return any(axes.has_data() for axes in panels)


def _memory(results: Results, figure: Figure) -> bool:
    """Draw the server's memory over many rounds."""
    figure.set_size_inches(8, 4)
    axes = figure.subplots()
    for transport in TRANSPORTS:
        for record in results.cells("flat", transport=transport):
            if record.found is None:
                continue
            seconds, megabytes = zip(*record.found["samples"], strict=True)
            share = [100 * second / seconds[-1] for second in seconds]
            label = f"{NAMES[transport]}, {record.options['rounds']:,} rounds of D = {record.options['size']:,}"
            axes.plot(share, megabytes, color=STYLES[transport][0], label=label)
    axes.set(title="The server's resident memory", xlabel="percent of the run", ylabel="MiB", ylim=(0, None))
    _plain(axes)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return axes.has_data()


def _points(results: Results, value: str, key: str, kind: str, **options: Any) -> Points:
    cells = results.cells(kind, **options)
    return {record.options[key]: record.found[value] for record in cells if record.found is not None}


def _line(axes: matplotlib.axes.Axes, style: str, label: str, points: Points, floor: bool = False) -> None:
    if points:
        colour, marker = STYLES[style]
        xs = sorted(points)
        (line,) = axes.plot(xs, [points[x] for x in xs], color=colour, marker=marker, markersize=5, label=label)
        if floor:
            line.set(linestyle=":", markerfacecolor="white")


def _tidy(axes: matplotlib.axes.Axes, title: str, x: str, y: str, ticks: Any) -> None:
    """Give both axes powers, with numbers that people write."""
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.set_xticks(list(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _plain(axes)


def _plain(axes: matplotlib.axes.Axes) -> None:
    axes.title.set_fontsize(10)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
