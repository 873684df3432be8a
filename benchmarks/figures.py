"""What is promised of speed and memory, beside what a run found: no number here but the promises.

Two workers and float32 unless a figure says otherwise. A figure that was not measured is not met.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from benchmarks import accuracy, growth
from benchmarks.plan import BATCHES, HUGE, LARGE, MIDDLE, PAIR, PEERS, SIZES, SMALL, THREE_GB, TRANSPORTS
from benchmarks.results import Found, Results, ratio

#: Names of transports and peers for readers.
NAMES = {
    "shm": "shared memory",
    "stream": "stream",
    "grpc": "gRPC messages",
    "gloo": "gloo all-reduce",
    "ray": "Ray actors",
}


class Limit(NamedTuple):
    """A bound, and what it is counted in."""

    sign: str
    value: float
    unit: str = ""

    def holds(self, value: float) -> bool:
        """Return whether a value keeps to it."""
        return {"≤": value <= self.value, "<": value < self.value, "≥": value >= self.value}[self.sign]

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}{self.unit}"


class Figure(NamedTuple):
    """One promise."""

    name: str
    must: Limit | None
    aim: Limit | None
    #: None if it was not measured.
    value: float | None
    #: The value in words and units, or why there is none.
    told: str

    def met(self) -> str:
        """Return `yes`, `must only`, `aim missed` (where there is only an aim), `no` or `not measured`."""
        if self.value is None:
            return "not measured"
        if self.must is not None and not self.must.holds(self.value):
            return "no"
        if self.aim is not None and not self.aim.holds(self.value):
            return "aim missed" if self.must is None else "must only"
        return "yes"


def number(value: float) -> str:
    """Return three significant digits, and no power of ten."""
    if value and abs(value) < 100:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 6)}f}"
    return f"{value:,.0f}"


def figures(results: Results) -> list[Figure]:
    """Return every figure in the order of the page."""
    parts = (_rounds, _peers, _codecs, _sizes, _memory, _cpu, _scaling, _partitions, _accuracy)
    return [figure for part in parts for figure in part(results)]


def _rounds(results: Results) -> Iterator[Figure]:
    def cell(transport: str, size: int) -> dict[str, Any]:
        return {"transport": transport, "size": size, "workers": PAIR, "wire": "full"}

    def ms(found: Found) -> tuple[float, str]:
        return found["median_ms"], f"{number(found['median_ms'])} ms"

    for size, must, aim in ((SMALL, 0.4, 0.22), (MIDDLE, 2.0, 1.9), (LARGE, 40.0, 34.0)):
        name = f"shared memory, round, D = {size:,}"
        yield _figure(results, name, Limit("≤", must, " ms"), Limit("≤", aim, " ms"), ms, "rounds", **cell("shm", size))
    name = "stream, round, D ="
    at_small, at_middle, at_large = (cell("stream", size) for size in SIZES)
    yield _figure(results, f"{name} {SMALL:,}", Limit("≤", 0.4, " ms"), None, ms, "rounds", **at_small)
    yield _figure(results, f"{name} {MIDDLE:,}", Limit("≤", 6.5, " ms"), None, ms, "rounds", **at_middle)
    near = Limit("≤", 1.25, " × floor")
    yield _figure(results, f"{name} {MIDDLE:,}, beside bare sockets", None, near, _beside_floor, "rounds", **at_middle)
    far = Limit("≤", 1.6, " × floor")
    yield _figure(results, f"{name} {LARGE:,}, beside bare sockets", far, near, _beside_floor, "rounds", **at_large)


def _peers(results: Results) -> Iterator[Figure]:
    for size in SIZES:
        name = f"shared memory, round, D = {size:,}, beside the fastest peer of this run"
        half = Limit("≤", 0.5, " ×")
        peers = {peer: results.found("peer", peer=peer, size=size, workers=PAIR) for peer in PEERS}
        there = {peer: found for peer, found in peers.items() if found is not None}
        if not there:
            yield Figure(name, None, half, None, results.why_not("peer", size=size))
            continue

        def beside(found: Found, there: dict[str, Found] = there) -> tuple[float, str]:
            told = ", ".join(f"{NAMES[peer]} {number(other['median_ms'])} ms" for peer, other in there.items())
            # The fastest is the one beside which this looks slowest.
            times = max((ratio(found, other) or math.inf) for other in there.values())
            return times, f"{times:.2f} × ({number(found['median_ms'])} ms; {told})"

        options = {"transport": "shm", "size": size, "workers": PAIR, "wire": "full"}
        yield _figure(results, name, None, half, beside, "rounds", **options)


def _codecs(results: Results) -> Iterator[Figure]:
    name = f"stream, bf16 both ways, D = {LARGE:,}, beside bare sockets with float32"
    options = {"transport": "stream", "size": LARGE, "workers": PAIR, "wire": "bf16"}
    yield _figure(
        results, name, Limit("<", 1.0, " × floor"), Limit("≤", 0.7, " × floor"), _beside_floor, "rounds", **options
    )


def _sizes(results: Results) -> Iterator[Figure]:
    def throughput(found: Found) -> tuple[float, str]:
        small, large = found["gb_per_s"]
        return found["ratio"], f"{found['ratio']:.2f} × ({large:.2f} and {small:.2f} GB/s)"

    def together(found: Found) -> tuple[float, str]:
        gib = found["together_mb"] / 1024
        return gib, f"{gib:.1f} GiB"

    for transport in TRANSPORTS:
        name = f"{NAMES[transport]}, throughput at D = {HUGE:,} beside D = {LARGE:,}"
        yield _figure(results, name, Limit("≥", 0.9, " ×"), None, throughput, "message_size", transport=transport)
    for transport in TRANSPORTS:
        name = f"{NAMES[transport]}, θ of {4e-9 * THREE_GB:.0f} GB trains: all processes together"
        yield _figure(results, name, Limit("≤", 24, " GiB"), None, together, "fits", transport=transport, size=THREE_GB)


def _memory(results: Results) -> Iterator[Figure]:
    def peak(found: Found) -> tuple[float, str]:
        megabytes = found["peak_rss_mb"]["server"]
        times = megabytes * 2**20 / (4 * LARGE)
        return times, f"{times:.2f} × θ ({megabytes:.0f} MiB)"

    for transport, most in (("shm", 4), ("stream", 6)):
        name = f"{NAMES[transport]}, the server's peak memory, D = {LARGE:,}"
        options = {"transport": transport, "size": LARGE, "workers": PAIR, "wire": "full"}
        yield _figure(results, name, Limit("≤", most, " × θ"), None, peak, "rounds", **options)
    for transport in TRANSPORTS:
        found = results.found("flat", transport=transport)
        name = f"{NAMES[transport]}, growth of the server's memory"
        if found is None:
            yield Figure(name, None, None, None, results.why_not("flat", transport=transport))
            continue
        options = results.cells("flat", transport=transport)[0].options
        seconds, megabytes = np.array(growth.settled(found["samples"])).T
        grown = growth.slope(seconds, megabytes) * (seconds[-1] - seconds[0])
        told = f"{grown:+.1f} MiB at {np.median(megabytes):.0f} MiB in three quarters of {options['rounds']:,} rounds"
        flat = Limit("≤", round(growth.allowed_mb(megabytes), 1), " MiB: flat")
        yield Figure(f"{name}, D = {options['size']:,}", None, flat, float(grown), told)


def _cpu(results: Results) -> Iterator[Figure]:
    def beside_sockets(found: Found) -> tuple[float, str]:
        ours, floor = found["cpu_s_per_gb"], found["floor_cpu_s_per_gb"]
        return ours / floor, f"{ours / floor:.2f} × ({ours:.2f} s/GB, floor {floor:.2f})"

    for size in (MIDDLE, LARGE):
        name = f"stream, CPU per byte, D = {size:,}, beside bare sockets"
        options = {"transport": "stream", "size": size, "workers": PAIR, "wire": "full"}
        yield _figure(results, name, Limit("≤", 2.0, " × floor"), None, beside_sockets, "rounds", **options)


def _scaling(results: Results) -> Iterator[Figure]:
    """Two readings of *linear*: none costs more than an only one does, and twice the workers no more than twice."""
    # A tenth for noise.
    by_worker, by_doubling = Limit("≤", 1.1, " × that of one"), Limit("≤", 2.2, " × the round")
    for transport in TRANSPORTS:
        found: list[tuple[float, str]] = []
        doubled: list[tuple[float, str]] = []
        for size in SIZES:
            cells = results.cells("rounds", transport=transport, size=size, wire="full")
            by_workers = {record.options["workers"]: record.found for record in cells if record.found}
            for few, many in pairwise(sorted(by_workers)):
                doubling = ratio(by_workers[many], by_workers[few])
                if many == 2 * few and doubling is not None:
                    doubled.append((doubling, f"D = {size:,}, {few} to {many} workers"))
                times = ratio(by_workers[many], by_workers[1]) if 1 in by_workers else None
                if times is not None:
                    found.append((times / many, f"D = {size:,}, {many} workers"))
        for name, must, aim, ratios in (
            ("a round for each worker, at worst", by_worker, None, found),
            ("twice the workers, at worst", None, by_doubling, doubled),
        ):
            name = f"{NAMES[transport]}, {name}"
            if ratios:
                worst, told = max(ratios)
                yield Figure(name, must, aim, worst, f"{worst:.2f} × ({told})")
            else:
                yield Figure(name, must, aim, None, results.why_not("rounds", transport=transport))


def _partitions(results: Results) -> Iterator[Figure]:
    def beside_one(found: Found) -> tuple[float, str]:
        ratios = within_turns(found)
        median = statistics.median(ratios)
        return median, f"{median:.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"

    for transport in TRANSPORTS:
        for size in (MIDDLE, LARGE):
            name = f"{NAMES[transport]}, two servers beside one, D = {size:,}"
            options = {"transport": transport, "size": size}
            yield _figure(results, name, Limit("≤", 1.15, " ×"), None, beside_one, "partitions", **options)


def within_turns(found: Found) -> list[float]:
    """Return how much longer several servers take than one, in each turn."""
    return [several / one for one, several in zip(found["one_ms"], found["several_ms"], strict=True)]


def _accuracy(results: Results) -> Iterator[Figure]:
    for batch in BATCHES:
        for name, base, least in (
            (accuracy.TWO, accuracy.ONE, 1.7),
            (accuracy.ONE, accuracy.PLAIN, 0.85),
        ):

            def faster(found: Found, name: str = name, base: str = base) -> tuple[float, str]:
                ratios = accuracy.ratios(found, name, base)
                median = statistics.median(ratios)
                return median, f"{median:.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"

            told = f"Fashion-MNIST, batch {batch}, examples/s of {name} beside {base}"
            yield _figure(results, told, Limit("≥", least, " ×"), None, faster, "accuracy", batch=batch)


def _beside_floor(found: Found) -> tuple[float, str]:
    told = f"{number(found['median_ms'])} ms, floor {number(found['floor_ms'])}"
    if found.get("unpaced_ratio") is not None:
        told += f"; not paced {number(found['unpaced_floor_ms'])}: {found['unpaced_ratio']:.2f} ×"
    return found["ratio"], f"{found['ratio']:.2f} × ({told})"


def _figure(
    results: Results,
    name: str,
    must: Limit | None,
    aim: Limit | None,
    value: Callable[[Found], tuple[float, str]],
    kind: str,
    **options: Any,
) -> Figure:
    found = results.found(kind, **options)
    if found is None:
        return Figure(name, must, aim, None, results.why_not(kind, **options))
    return Figure(name, must, aim, *value(found))
