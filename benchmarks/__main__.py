"""Measures every cell of docs/performance.md in one run: `python -m benchmarks [--quick] [--write]`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import page, plots, results
from benchmarks.machine import ROOT, describe
from benchmarks.measuring import KINDS, measure
from benchmarks.plan import FULL, IN_TURNS, QUICK, Cell, cells

RESULTS = ROOT / "benchmarks/results"
#: Above this load the machine is busy with something else.
IDLE_LOAD = 0.5


def main() -> int:
    """Measure and tell; exit status 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and fewer sizes; for a look, not for the page")
    parser.add_argument("--only", nargs="+", choices=sorted(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, help="file of the results (default: bench or quick.jsonl in results/)")
    parser.add_argument("--write", action="store_true", help=f"put tables and pictures into {page.PAGE.name}")
    parser.add_argument("--write-only", action="store_true", help="the same of an earlier run, and measure nothing")
    parser.add_argument("--list", action="store_true", help="print the cells, and measure nothing")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    chosen = [cell for cell in cells(effort) if arguments.only is None or cell.kind in arguments.only]
    if arguments.list:
        print("\n".join(map(str, chosen)))
        return 0
    turns = [(turn, cell) for turn in range(effort.turns) for cell in chosen if turn == 0 or cell.kind in IN_TURNS]
    file = arguments.out or RESULTS / ("quick.jsonl" if arguments.quick else "bench.jsonl")
    if not arguments.write_only:
        _measure(turns, file, arguments.quick)
    found = results.read(file)
    if arguments.write or arguments.write_only:
        page.write(found)
        for picture in plots.draw(found, RESULTS):
            print(f"drawn: {picture.relative_to(ROOT)}")
    print("\n".join([*page.machine(found), "", *page.promises(found)]))
    return 1 if any(record.error and not record.missing for record in found.records) else 0


def _measure(turns: list[tuple[int, Cell]], file: Path, quick: bool) -> None:
    about = {**describe(), "quick": quick}
    if about["load"] > IDLE_LOAD:
        print(f"warning: load average {about['load']}: what else runs here will show", file=sys.stderr)
    results.begin(file, about)
    began = time.monotonic()
    for number, (turn, cell) in enumerate(turns, start=1):
        record = measure(cell)._replace(turn=turn)
        results.add(file, record)
        told = record.error or _told(record.found or {})
        seconds = time.monotonic() - began
        print(f"{seconds:6.0f} s  {number}/{len(turns)}  {cell}: {told} ({record.took_s:.1f} s)", flush=True)


def _told(found: results.Found) -> str:
    """Return in a few words what was found."""
    names = [name for name in ("median_ms", "ratio", "together_mb") if isinstance(found.get(name), float)]
    return ", ".join(f"{name} {found[name]:.3g}" for name in names) or "done"


if __name__ == "__main__":
    sys.exit(main())
