"""Times how long a worker takes to have θ, beside the floor of the same run."""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramserver.client.bench import floor
from paramserver.client.bench.rounds import SHARED, WARM_UP
from paramserver.client.bench.running import check_least
from paramserver.client.connection.client import Client
from paramserver.client.launch import LocalCluster, check_transport
from paramserver.client.localprocess import LocalProcess
from paramserver.wire.errors import JobFailed
from paramserver.wire.job import Job


@dataclass(frozen=True, slots=True)
class Pulled:
    """Pulls of one size by one worker; times in milliseconds."""

    size: int
    transport: str
    pulls: int
    median_ms: float
    #: Tenth and ninetieth percentile.
    p10_ms: float
    p90_ms: float
    #: The same bytes over a bare socket; with shared memory their copying, since θ may move.
    floor_ms: float
    #: median_ms / floor_ms.
    ratio: float
    #: CPU seconds of server and worker per 10⁹ bytes of θ.
    cpu_s_per_gb: float
    floor_cpu_s_per_gb: float
    #: Peak resident memory by process, shared pages included.
    peak_rss_mb: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return asdict(self)


def measure_pulls(size: int, pulls: int, transport: str = "auto") -> Pulled:
    """Have one worker pull `size` float32 parameters `pulls` times in an asynchronous job.

    In `sync` a worker that shares memory reads θ where it is, and there is nothing to measure but a message.

    Raises:
        RequestError: for sizes or counts that are too small, or an unknown transport.
        JobFailed: if the worker fails.
    """
    check_least(size=(size, 1), pulls=(pulls, 5))
    check_transport(transport)
    time_floor = floor.pulls_through_memory if transport in SHARED else floor.pulls_over_sockets
    half = max(5, pulls // 2)
    before = time_floor(size, half)
    ran = _run(size, pulls, transport)
    after = time_floor(size, half)
    gigabytes = size * 4 / 1e9
    counted = ran["seconds"][int(pulls * WARM_UP) :]
    floor_s = statistics.median(before.rounds_s[1:] + after.rounds_s[1:])
    median, deciles = statistics.median(counted), statistics.quantiles(counted, n=10)
    return Pulled(
        size=size,
        transport=transport,
        pulls=pulls,
        median_ms=1e3 * median,
        p10_ms=1e3 * deciles[0],
        p90_ms=1e3 * deciles[-1],
        floor_ms=1e3 * floor_s,
        ratio=median / floor_s,
        cpu_s_per_gb=ran["cpu_s"] / pulls / gigabytes,
        floor_cpu_s_per_gb=(before.cpu_s + after.cpu_s) / (2 * half) / gigabytes,
        peak_rss_mb=ran["peak_rss_mb"],
    )


def _run(size: int, pulls: int, transport: str) -> dict[str, Any]:
    job = Job.from_dict(
        {
            "task": {"use": f"{__package__}.task:Constant"},
            "data": {"source": f"{__package__}.task:rows", "shards": 1},
            "train": {"mode": "async", "steps": 1},
            "server": {"durability": "none"},
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "result.json"
        with LocalCluster(0, folder, folder) as cluster, Client(cluster.address, timeout_s=60.0) as client:
            client.submit(job)
            arguments = (cluster.address, size, pulls, transport, cluster.pids()["server"], result)
            puller = LocalProcess("worker", folder, f"{__package__}.puller", *map(str, arguments))
            try:
                puller.process.wait()
            finally:
                puller.process.kill()
                puller.process.wait()
            if not result.exists():
                raise JobFailed(puller.epitaph())
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found
