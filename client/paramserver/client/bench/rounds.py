"""Times synchronous rounds of real processes beside the floor of the same run."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from paramserver.client.bench import floor
from paramserver.client.connection.client import Client
from paramserver.client.launch import LocalCluster
from paramserver.wire.errors import JobFailed, RequestError
from paramserver.wire.job import Job, WireSection

TRANSPORTS = ("auto", "stream")

#: The first rounds touch memory for the first time and are not counted.
WARM_UP = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of one size, and their floor; times in milliseconds."""

    size: int
    workers: int
    transport: str
    #: Codec of gradients and, if it can encode them, parameters.
    wire: str
    rounds: int
    median_ms: float
    #: Tenth and ninetieth percentile.
    p10_ms: float
    p90_ms: float
    floor_ms: float
    #: median_ms / floor_ms.
    ratio: float
    #: CPU seconds of server and workers per 10⁹ bytes of gradients and parameters that a round hands over.
    cpu_s_per_gb: float
    floor_cpu_s_per_gb: float
    #: Tensor bytes of one round in messages: from the workers, and to them; 0 in shared memory.
    bytes_pushed: float
    bytes_pulled: float
    #: Peak resident memory by process, shared pages included.
    peak_rss_mb: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return asdict(self)


def measure_rounds(size: int, workers: int, rounds: int, transport: str = "auto", wire: str = "full") -> Measured:
    """Run `rounds` rounds of `size` float32 parameters with one shard for each worker, and the floor around them.

    The floor moves float32 whatever `wire` is.

    Raises:
        RequestError: for sizes or counts below 1, or an unknown transport or codec.
        JobFailed: if the run fails.
    """
    for name, value, least in (("size", size, 1), ("workers", workers, 1), ("rounds", rounds, 5)):
        if value < least:
            raise RequestError(f"{name} is {value}, allowed are {least} and more")
    if transport not in TRANSPORTS:
        raise RequestError(f"transport is {transport!r}, allowed are {', '.join(TRANSPORTS)}")
    time_floor = floor.over_sockets if transport == "stream" else floor.through_memory
    # Half of the floor before and half after, so that a machine that gets busier shows in both.
    half = max(5, rounds // 2)
    before = time_floor(size, workers, half)
    rounds_s, cpu_s, peaks, moved = _run(size, workers, rounds, transport, wire)
    after = time_floor(size, workers, half)
    gigabytes = 2 * workers * size * 4 / 1e9
    counted = rounds_s[int(len(rounds_s) * WARM_UP) :]
    floor_s = statistics.median(before.rounds_s[1:] + after.rounds_s[1:])
    median = statistics.median(counted)
    deciles = statistics.quantiles(counted, n=10)
    return Measured(
        size=size,
        workers=workers,
        transport=transport,
        wire=wire,
        rounds=len(rounds_s),
        median_ms=1e3 * median,
        p10_ms=1e3 * deciles[0],
        p90_ms=1e3 * deciles[-1],
        floor_ms=1e3 * floor_s,
        ratio=median / floor_s,
        cpu_s_per_gb=cpu_s / len(rounds_s) / gigabytes,
        floor_cpu_s_per_gb=(before.cpu_s + after.cpu_s) / (2 * half) / gigabytes,
        bytes_pushed=moved[0] / rounds,
        bytes_pulled=moved[1] / rounds,
        peak_rss_mb=peaks,
    )


def _run(
    size: int, workers: int, rounds: int, transport: str, wire: str
) -> tuple[list[float], float, dict[str, float], tuple[int, int]]:
    job = Job.from_dict(
        {
            "task": {"use": f"{__package__}.task:Constant", "options": {"size": size}},
            "data": {"source": f"{__package__}.task:rows", "shards": workers, "batch_size": 1},
            "train": {"steps": rounds},
            "optimizer": {"learning_rate": 0.01},
            "server": {"durability": "none"},
            "wire": {
                "push": wire,
                "pull": wire if wire in get_args(WireSection.model_fields["pull"].annotation) else "full",
            },
        }
    )
    with (
        tempfile.TemporaryDirectory() as logs,
        LocalCluster(workers, Path(logs), Path.cwd(), transport=transport) as cluster,
        Client(cluster.address, timeout_s=60.0) as client,
    ):
        cluster.wait_for_workers(client)
        pids = cluster.pids()
        client.submit(job)
        cpu_before, seconds = math.nan, []
        for update in client.watch(cluster.check):
            if math.isnan(cpu_before) and update.status.version:
                cpu_before, version_before = _cpu_s(pids), update.status.version
            seconds += [point.seconds for point in update.points]
            if update.status.state == "failed":
                raise JobFailed(update.status.reason)
        cpu_s = (_cpu_s(pids) - cpu_before) * rounds / max(1, rounds - version_before)
        peaks = {name: _peak_rss_mb(pid) for name, pid in pids.items()}
    moved = update.status.bytes_received, update.status.bytes_sent
    return [later - earlier for earlier, later in itertools.pairwise(seconds)], cpu_s, peaks, moved


def _cpu_s(pids: dict[str, int]) -> float:
    ticks = 0
    for pid in pids.values():
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
