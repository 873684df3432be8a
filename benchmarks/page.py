"""Writes the tables of docs/performance.md out of the results of a run."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.figures import NAMES, Figure, figures, number, within_turns
from benchmarks.machine import ROOT
from benchmarks.plan import PAIR, Cell
from benchmarks.results import Found, Record, Results

PAGE = ROOT / "docs/performance.md"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def machine(results: Results) -> list[str]:
    """Describe what measured, and what was measured."""
    about = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    quick = " A quick run: few rounds, and not all sizes." if about.get("quick") else ""
    return [
        f"{about['cores']} cores of {about['processor']}, {about['memory_gib']} GiB, {about['system']}, "
        f"Python {about['python']}, {packages}. Commit {about['commit']}, {about['started']}; "
        f"{len(results.records)} cells in {sum(r.took_s for r in results.records) / 60:.0f} minutes, "
        f"load average at the start {about['load']:.1f}.{quick}"
    ]


def promises(results: Results) -> list[str]:
    """The table of figures, and whatever failed."""
    promised = figures(results)
    body = [
        (
            figure.name,
            str(figure.must or "–"),
            str(figure.aim or "–"),
            figure.told if figure.value is not None else f"– ({figure.told})",
            figure.met(),
        )
        for figure in promised
    ]
    failed = [f"- `{Cell(record.kind, record.options)}`: {record.error}" for record in results.records if record.error]
    return [
        _count(promised),
        "",
        *table(("figure", "must", "aim", "measured", "met?"), body),
        *(["", "Cells without a result:", "", *failed] if failed else []),
    ]


def rounds(results: Results) -> list[str]:
    """Rounds over sizes, workers and transports."""

    def cells(found: Found) -> list[str]:
        return [
            NAMES[found["transport"]],
            f"{found['size']:,}",
            str(found["workers"]),
            *_beside_floor(found),
            *_unpaced(found),
            f"{found['peak_rss_mb']['server']:.0f}",
        ]

    head = (
        "transport",
        "D",
        "workers",
        "round, ms",
        "p10 to p90",
        "floor, ms",
        "ratio",
        *_CPU,
        *_UNPACED,
        "server MiB",
    )
    records = sorted(results.cells("rounds", wire="full"), key=lambda r: (r.options["transport"], r.options["size"]))
    return _rows(head, records, cells)


def codecs(results: Results) -> list[str]:
    """Rounds by codec."""

    def cells(found: Found) -> list[str]:
        moved = (f"{found[name] / 1e6:.0f} MB" for name in ("bytes_pushed", "bytes_pulled"))
        return [f"`{found['wire']}`", *moved, *_beside_floor(found), *_unpaced(found)]

    head = ("`wire`", "pushed", "pulled", "round, ms", "p10 to p90", "floor, ms", "ratio", *_CPU, *_UNPACED)
    size = max((r.options["size"] for r in results.cells("rounds", wire="bf16")), default=0)
    return _rows(head, results.cells("rounds", size=size, workers=PAIR, transport="stream"), cells)


def partitions(results: Results) -> list[str]:
    """One server and several."""

    def cells(found: Found) -> list[str]:
        each = (_spread(found[name]) for name in ("one_ms", "several_ms"))
        return [NAMES[found["transport"]], f"{found['size']:,}", *each, _spread(within_turns(found))]

    return _rows(("transport", "D", "one server, ms", "two, ms", "ratio in a turn"), results.cells("partitions"), cells)


def sizes(results: Results) -> list[str]:
    """Large θ: throughput, and all memory."""

    def speed(found: Found) -> list[str]:
        each = (
            f"{number(ms)} ms, {rate:.2f} GB/s" for ms, rate in zip(found["median_ms"], found["gb_per_s"], strict=True)
        )
        return [NAMES[found["transport"]], *each, f"{found['ratio']:.2f}"]

    def memory(found: Found) -> list[str]:
        peaks = found["peak_rss_mb"]
        return [
            NAMES[found["transport"]],
            f"{found['median_ms'] / 1e3:.1f} s",
            f"{found['together_mb'] / 1024:.1f} GiB",
            f"{found['less_available_mb'] / 1024:.1f} GiB",
            ", ".join(f"{name} {peak / 1024:.1f}" for name, peak in peaks.items()),
        ]

    lines: list[str] = []
    if there := results.cells("message_size"):
        before, after = there[0].options["sizes"]
        lines += _rows(("transport", f"D = {before:,}", f"D = {after:,}", "throughput, ratio"), there, speed)
    if there := results.cells("fits"):
        head = ("transport", "round", "all processes", "less available", "peak of each, GiB")
        lines += [*([""] if lines else []), f"D = {there[0].options['size']:,}:", "", *_rows(head, there, memory)]
    return lines


def peers(results: Results) -> list[str]:
    """Other programs beside this one."""
    body: list[list[str]] = []
    for record in results.cells("peer"):
        name, found, size = NAMES[record.options["peer"]], record.found, record.options["size"]
        if found is None:
            body.append([name, f"{size:,}", "–", f"({record.error})", "–", "–"])
            continue
        each = (f"{mb:.0f}" for mb in found["peak_rss_mb"].values())
        body.append(
            [
                f"{name} {found['version']}",
                f"{size:,}",
                number(found["median_ms"]),
                f"{number(found['p10_ms'])} to {number(found['p90_ms'])}",
                number(found["cpu_s_per_gb"]),
                ", ".join(each),
            ]
        )
    return table(("peer", "D", "round, ms", "p10 to p90", "CPU s/GB", "MiB of each process"), body)


def pulls(results: Results) -> list[str]:
    """Pulls over sizes and transports."""

    def cells(found: Found) -> list[str]:
        return [NAMES[found["transport"]], f"{found['size']:,}", *_beside_floor(found)]

    head = ("transport", "D", "pull, ms", "p10 to p90", "floor, ms", "ratio", *_CPU)
    return _rows(head, results.cells("pulls"), cells)


def updates(results: Results) -> list[str]:
    """Adding up and applying."""

    def cells(found: Found) -> list[str]:
        return [found["optimizer"], found["code"], str(found["threads"]), *_beside_floor(found)]

    head = ("optimizer", "passes", "threads", "update, ms", "p10 to p90", "floor, ms", "ratio", *_CPU)
    return _rows(head, results.cells("updates"), cells)


def rows(results: Results) -> list[str]:
    """A table of rows."""

    def cells(found: Found) -> list[str]:
        times = (number(found[name]) for name in ("pull_ms", "push_ms", "floor_ms", "ratio"))
        return [f"{found['rows']:,} × {found['dim']}", f"{found['batch']:,}", *times, f"{found['memory_ratio']:.2f}"]

    head = ("rows", "batch", "pull, ms", "push, ms", "floor of both, ms", "ratio", "memory ÷ bare rows")
    return _rows(head, results.cells("table"), cells)


def fashion(results: Results) -> list[str]:
    """Examples per second and accuracy of every way of training."""
    body: list[list[str]] = []
    epochs: Any = ""
    for record in results.cells("accuracy"):
        batch, runs, epochs = str(record.options["batch"]), record.found, record.options["epochs"]
        if runs is None:
            body.append([batch, f"({record.error})", *["–"] * 5])
            continue
        for name, found in runs.items():
            body.append(
                [
                    batch,
                    name,
                    _spread([run["samples_per_s"] for run in found]),
                    *(_spread(accuracy.ratios(runs, name, base)) for base in (accuracy.PLAIN, accuracy.ONE)),
                    f"{statistics.median(run['seconds'] for run in found):.2f}",
                    f"{statistics.median(run['accuracy'] for run in found):.3f}",
                ]
            )
    head = ("batch", f"way, {epochs} epochs", "examples/s", "× plain", "× one worker", "seconds", "test accuracy")
    return table(head, body)


#: By the name of the marks on the page.
SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    "machine": machine,
    "figures": promises,
    "rounds": rounds,
    "codecs": codecs,
    "partitions": partitions,
    "sizes": sizes,
    "peers": peers,
    "pulls": pulls,
    "updates": updates,
    "rows": rows,
    "accuracy": fashion,
}


def write(results: Results, page: Path = PAGE) -> None:
    """Put every section into the page."""
    text = page.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        text = replaced(text, name, section(results))
    page.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """Return the text with other lines between the marks `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: if there are no such marks, or several.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    new, count = re.subn(f"{start}.*?{end}", lambda _: "\n".join([start, *lines, end]), text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places marked {start} … {end}; one is expected")
    return new


def _count(promised: Sequence[Figure]) -> str:
    musts = [figure for figure in promised if figure.must is not None]
    aims = [figure for figure in promised if figure.aim is not None]
    reached = sum(figure.met() in ("yes", "must only") for figure in musts)
    aimed = sum(figure.met() == "yes" for figure in aims)
    unknown = sum(figure.value is None for figure in promised)
    return (
        f"{reached} of {len(musts)} musts and {aimed} of {len(aims)} aims are met; {unknown} figures were not measured."
    )


_CPU = ("CPU s/GB", "floor, s/GB")
_UNPACED = ("floor not paced, ms", "ratio")


def _beside_floor(found: Found) -> list[str]:
    return [
        number(found["median_ms"]),
        f"{number(found['p10_ms'])} to {number(found['p90_ms'])}",
        *(number(found[name]) for name in ("floor_ms", "ratio", "cpu_s_per_gb", "floor_cpu_s_per_gb")),
    ]


def _unpaced(found: Found) -> list[str]:
    values = [found.get(name) for name in ("unpaced_floor_ms", "unpaced_ratio")]
    return ["–" if value is None else number(value) for value in values]


def _spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the extremes of several."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def _rows(head: Sequence[str], records: Sequence[Record], cells: Callable[[Found], list[str]]) -> list[str]:
    """Return a table of what was found of each cell and its options; what was not is told beside the figures."""
    return table(head, [cells({**record.options, **record.found}) for record in records if record.found is not None])
