"""Runs a job on processes of this machine and takes down what it took of time, processor and memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paramserver.client.bench.memory import MemoryWatch, memory_mb
from paramserver.client.connection.client import ENDED, Client, Point
from paramserver.client.launch import LocalCluster
from paramserver.wire.errors import JobFailed, RequestError
from paramserver.wire.job import Job


@dataclass(frozen=True, slots=True)
class Ran:
    """What a job took."""

    points: list[Point]
    #: Of server and workers together, for the whole job.
    cpu_s: float
    #: Resident memory by process, shared pages included: at most, and before the job began.
    peak_rss_mb: dict[str, float]
    idle_rss_mb: dict[str, float]
    #: Tensor bytes that the server received and sent.
    moved_bytes: tuple[int, int]

    def intervals_s(self) -> list[float]:
        """Return the seconds between one step of all shards and the next."""
        return [later.seconds - earlier.seconds for earlier, later in itertools.pairwise(self.points)]


def run(job: Job, workers: int, transport: str, watch: MemoryWatch | None = None) -> Ran:
    """Run a job to its end; a server that keeps something has its state directory beside the logs.

    `watch` looks at the memory of all processes from before the job to its end.

    Raises:
        JobFailed: if the job fails, or memory runs short for `watch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state" if job.server.durability != "none" else None
        with (
            LocalCluster(
                workers, Path(folder), Path.cwd(), state, transport=transport, servers=job.server.partitions
            ) as cluster,
            Client(cluster.address, timeout_s=60.0) as client,
        ):
            cluster.wait_for_workers(client)
            pids = cluster.pids()
            idle = {name: memory_mb(pid, "VmRSS") for name, pid in pids.items()}
            cpu_before, version_before, last = cpu_s(pids.values()), 0, 0
            points: list[Point] = []
            with contextlib.nullcontext() if watch is None else watch.over(pids):
                client.submit(job)
                for update in client.watch(cluster.check):
                    last = update.status.version
                    # What comes before the first step counts only for a job that has ended when it is first heard of.
                    if not version_before and last and update.status.state not in ENDED:
                        cpu_before, version_before = cpu_s(pids.values()), last
                    points += update.points
                    if update.status.state == "failed":
                        raise JobFailed(update.status.reason)
            spent_s = (cpu_s(pids.values()) - cpu_before) * last / max(1, last - version_before)
            peaks = {name: memory_mb(pid, "VmHWM") for name, pid in pids.items()}
    return Ran(points, spent_s, peaks, idle, (update.status.bytes_received, update.status.bytes_sent))


def check_least(**values: tuple[int, int]) -> None:
    """Refuse a number that is below what makes sense; by name, the number and the least that is allowed.

    Raises:
        RequestError: if there is one.
    """
    for name, (value, least) in values.items():
        if value < least:
            raise RequestError(f"{name} is {value}, allowed are {least} and more")


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes have taken so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
