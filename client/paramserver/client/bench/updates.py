"""Times asynchronous updates of real processes: what they cost, and what it costs to keep each of them."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from paramserver.client.bench.rounds import WARM_UP
from paramserver.client.bench.running import check_least, run
from paramserver.client.launch import check_transport
from paramserver.wire.errors import RequestError
from paramserver.wire.job import Job

DURABILITIES = ("none", "snapshot", "log")


@dataclass(frozen=True, slots=True)
class Updates:
    """Updates of one size under one durability; times in milliseconds."""

    size: int
    workers: int
    transport: str
    durability: str
    updates: int
    updates_per_s: float
    #: Of one update, all workers together.
    median_ms: float
    #: Tenth and ninetieth percentile.
    p10_ms: float
    p90_ms: float
    #: CPU seconds of server and workers per 10⁹ bytes of gradients and parameters handed over.
    cpu_s_per_gb: float
    #: Peak resident memory by process, shared pages included.
    peak_rss_mb: dict[str, float]
    #: What it could not be below: the process before the job, with θ, and in a worker its gradient too.
    floor_rss_mb: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return asdict(self)


def measure_updates(size: int, workers: int, updates: int, transport: str, durability: str) -> Updates:
    """Make `updates` asynchronous updates of `size` float32 parameters, with one shard for each worker.

    Raises:
        RequestError: for sizes or counts that are too small, or an unknown transport or durability.
        JobFailed: if the run fails.
    """
    check_least(size=(size, 1), workers=(workers, 1), updates=(updates, 10 * workers))
    check_transport(transport)
    if durability not in DURABILITIES:
        raise RequestError(f"durability is {durability!r}, allowed are {', '.join(DURABILITIES)}")
    job = Job.from_dict(
        {
            "task": {"use": f"{__package__}.task:Constant", "options": {"size": size}},
            "data": {"source": f"{__package__}.task:rows", "shards": workers, "batch_size": 1},
            "train": {"mode": "async", "steps": updates // workers},
            "optimizer": {"learning_rate": 0.01},
            "server": {"durability": durability},
        }
    )
    ran = run(job, workers, transport)
    counted = ran.points[int(len(ran.points) * WARM_UP) :]
    each_s = [
        (later.seconds - earlier.seconds) / (later.version - earlier.version)
        for earlier, later in itertools.pairwise(counted)
        if later.version > earlier.version
    ]
    deciles = statistics.quantiles(each_s, n=10)
    first, last = counted[0], counted[-1]
    megabytes = size * 4 / 2**20
    return Updates(
        size=size,
        workers=workers,
        transport=transport,
        durability=durability,
        updates=last.version,
        updates_per_s=(last.version - first.version) / (last.seconds - first.seconds),
        median_ms=1e3 * statistics.median(each_s),
        p10_ms=1e3 * deciles[0],
        p90_ms=1e3 * deciles[-1],
        cpu_s_per_gb=ran.cpu_s / last.version / (2 * size * 4 / 1e9),
        peak_rss_mb=ran.peak_rss_mb,
        floor_rss_mb={
            name: idle + megabytes * (1 if name == "server" else 2) for name, idle in ran.idle_rss_mb.items()
        },
    )
