"""Times synchronous rounds over sizes, workers and transports, and writes the table of docs/performance.md.

python benchmarks/rounds.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path

from paramserver.client.bench.rounds import Measured, measure_rounds

PAGE = Path(__file__).parents[1] / "docs/performance.md"

#: Rounds by size: enough for a median, few enough for the whole table to take minutes.
ROUNDS = {1_000: 2_000, 1_000_000: 200, 25_000_000: 20}
WORKERS = (1, 2, 4, 8)
TRANSPORTS = ("shm", "stream")


def main() -> None:
    """Measure and print the table; with --write also put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two workers only")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {PAGE.name}")
    arguments = parser.parse_args()
    workers = (2,) if arguments.quick else WORKERS
    found = []
    for transport in TRANSPORTS:
        for size, rounds in ROUNDS.items():
            for count in workers:
                found.append(measure_rounds(size, count, rounds, transport))
                print(row(found[-1]), flush=True)
    if arguments.write:
        write(found)


def row(found: Measured) -> str:
    """Return one line of the table."""
    transport = "shared memory" if found.transport == "shm" else found.transport
    return (
        f"| {transport} | {found.size:,} | {found.workers} | {found.median_ms:.2f} "
        f"| {found.p10_ms:.2f} to {found.p90_ms:.2f} | {found.floor_ms:.2f} | {found.ratio:.2f} "
        f"| {found.cpu_s_per_gb:.2f} | {found.floor_cpu_s_per_gb:.2f} | {found.peak_rss_mb['server']:.0f} |"
    )


def write(found: list[Measured]) -> None:
    """Put the table into the page."""
    lines = [
        machine(),
        "",
        "| transport | D | workers | round, ms | p10 to p90 | floor, ms | ratio | CPU s/GB | floor | server MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(each) for each in found),
    ]
    replace("rounds", lines)


def replace(name: str, lines: list[str]) -> None:
    """Put lines between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page, in place of what is there."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = PAGE.read_text(encoding="utf-8")
    table = "\n".join([start, *lines, end])
    PAGE.write_text(re.sub(f"{start}.*?{end}", lambda _: table, page, flags=re.DOTALL), encoding="utf-8")


def machine() -> str:
    """Return a line on this machine."""
    return f"{_processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}."


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = re.findall(r"^model name\s*: (.*)$", info, re.MULTILINE)
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    main()
