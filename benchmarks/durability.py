"""Times what durability costs and how soon a death is noticed and made good: `python -m benchmarks.durability`.

Real processes and real `kill -9`, two workers in shared memory. With `--write` the table of docs/guarantees.md is
replaced.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import number
from benchmarks.machine import ROOT, describe
from benchmarks.page import replaced, table
from paramserver.client import Client, Job
from paramserver.client.bench.running import run
from paramserver.client.bench.updates import measure_updates
from paramserver.client.launch import LocalCluster
from paramserver.wire.errors import ParamserverError

PAGE = ROOT / "docs/guarantees.md"

LARGE, SMALL = 25_000_000, 10_000

#: How long a job has trained before something happens to it.
WARM_UP_S = 3.0
#: Pause between two looks at another process.
LOOK_S = 0.005
#: Whatever takes longer than this does not happen.
LIMIT_S = 60.0


class Measured(NamedTuple):
    """One figure: what it is, what it must not exceed, and the values of all repeats."""

    what: str
    most: float
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)


def main() -> int:
    """Measure and print all figures; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"replace the table of {PAGE.name}")
    arguments = parser.parse_args()
    found = []
    for figure in figures(arguments.repeats):
        found.append(figure)
        print("\t".join(row(figure)), flush=True)
    if arguments.write:
        about = describe()
        lines = table(
            ["figure", "must", "median", "from – to", "met"],
            [row(figure) for figure in found],
        )
        where = (
            f"{about['cores']} cores of {about['processor']}, {arguments.repeats} repeats, commit {about['commit']}."
        )
        text = replaced(PAGE.read_text(encoding="utf-8"), "durability", [*lines, "", where])
        PAGE.write_text(text, encoding="utf-8")
    return int(any(figure.median > figure.most for figure in found))


def figures(repeats: int) -> Iterator[Measured]:
    """Measure one after the other."""
    yield Measured("first new round after a restart, 25M", 3.0, " s", [recovery_s() for _ in range(repeats)])
    yield Measured(
        "snapshot every 30 s, 25M: share of a round", 0.02, "", [snapshot_s() / 30 for _ in range(min(3, repeats))]
    )
    for workers in (2, 4, 8):
        ratios = [log_ratio(workers) for _ in range(repeats)]
        yield Measured(f"log beside none, 10k async, {workers} workers", 1.5, " ×", ratios)
    yield Measured("killed worker is replaced", 1.0, " s", [replaced_s(signal.SIGKILL) for _ in range(repeats)])
    # Three heartbeats of 0.5 s, which is what they are where steps are short.
    yield Measured("stopped worker is replaced", 1.5, " s", [replaced_s(signal.SIGSTOP) for _ in range(repeats)])


def row(figure: Measured) -> list[str]:
    """Return the cells of the table."""
    span = f"{number(min(figure.values))} – {number(max(figure.values))}{figure.unit}"
    met = "yes" if figure.median <= figure.most else "no"
    return [figure.what, f"≤ {figure.most}{figure.unit}", f"{number(figure.median)}{figure.unit}", span, met]


def job(size: int, seconds: float, **server: object) -> Job:
    """Return a job of synchronous rounds that goes on for so long, and whose task computes nothing."""
    return Job.from_dict(
        {
            "task": {"use": "paramserver.client.bench.task:Constant", "options": {"size": size}},
            "data": {"source": "paramserver.client.bench.task:rows", "shards": 4, "batch_size": 1},
            "train": {"steps": 1_000_000},
            "optimizer": {"learning_rate": 0.01},
            "stop": {"max_seconds": seconds},
            "server": server,
        }
    )


def recovery_s() -> float:
    """Return how long after its start a server that was killed had made a round that it had not known of."""
    with training(job(LARGE, LIMIT_S, snapshot_every_s=3600)) as (cluster, client):
        client.checkpoint()
        killed = cluster.pids()["server"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: cluster.pids().get("server") not in (None, killed), cluster)
        started = time.monotonic()
        first: list[int] = []

        def goes_on() -> bool:
            try:
                version = client.status().version
            except ParamserverError:
                return False
            first.append(version)
            return version > first[0]

        until(goes_on, cluster)
        return time.monotonic() - started


def snapshot_s(seconds: float = 20.0, every_s: float = 2.0) -> float:
    """Return by how much a snapshot lengthens training: mean beside median rounds, with snapshots and without."""
    means, medians, snapshots = {}, {}, 0
    for durability in ("none", "snapshot"):
        ran = run(job(LARGE, seconds, durability=durability, snapshot_every_s=every_s), 2, "auto")
        rounds = ran.intervals_s()[len(ran.points) // 10 :]
        means[durability], medians[durability] = statistics.fmean(rounds), statistics.median(rounds)
        snapshots = max(1, int(sum(rounds) / every_s))
    usual = medians["snapshot"] * means["none"] / medians["none"]
    return (means["snapshot"] - usual) * len(rounds) / snapshots


def log_ratio(workers: int) -> float:
    """Return how long an asynchronous update takes that is logged, beside one that is not."""
    took = {how: measure_updates(SMALL, workers, 8_000, "auto", how).updates_per_s for how in ("none", "log")}
    return took["none"] / took["log"]


def replaced_s(by: signal.Signals) -> float:
    """Return how long after a signal to a worker another one holds its shards."""
    with training(job(SMALL, LIMIT_S, durability="none"), restarts=0) as (_, client):
        victim = next(worker for worker in client.status().workers if worker.name == "worker-0")
        os.kill(victim.pid, by)
        started = time.monotonic()
        until(lambda: all(shard.worker == "worker-1" for shard in client.status().shards))
        return time.monotonic() - started


@contextmanager
def training(what: Job, restarts: int = 5) -> Iterator[tuple[LocalCluster, Client]]:
    """Run a job on a server and two workers for a while; end it with the block."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state" if what.server.durability != "none" else None
        with (
            LocalCluster(2, Path(folder), ROOT, state, restarts) as cluster,
            Client(cluster.address) as client,
        ):
            cluster.wait_for_workers(client)
            client.submit(what)
            # By then deadlines fit the steps.
            until(lambda: client.status().seconds > WARM_UP_S, cluster)
            yield cluster, client


def until(condition: Callable[[], bool], cluster: LocalCluster | None = None) -> None:
    """Look again and again until a condition of other processes holds.

    Raises:
        TimeoutError: if it does not within `LIMIT_S`.
    """
    end = time.monotonic() + LIMIT_S
    for _ in itertools.takewhile(lambda _: not condition(), itertools.count()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {LIMIT_S:g} s")
        if cluster is not None:
            cluster.check()
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
