"""Times synchronous rounds of real processes beside the floor of the same run."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any, get_args

from paramserver.client.bench import floor
from paramserver.client.bench.memory import MemoryWatch
from paramserver.client.bench.running import Ran, check_least, run
from paramserver.client.launch import check_transport
from paramserver.wire.job import Job, WireSection

#: The first rounds touch memory for the first time and are not counted.
WARM_UP = 0.2
#: Transports whose floor is memory; that of all others is sockets.
SHARED = ("auto", "shm")


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of one size, and their floor; times in milliseconds."""

    size: int
    workers: int
    servers: int
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
    #: The same beside sockets that are not paced, as ours are, whatever the system has chosen; None in shared memory.
    unpaced_floor_ms: float | None
    unpaced_ratio: float | None
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


def measure_rounds(
    size: int, workers: int, rounds: int, transport: str = "auto", wire: str = "full", servers: int = 1
) -> Measured:
    """Run `rounds` rounds of `size` float32 parameters with one shard for each worker, and the floor around them.

    The floor is that of a single server, and moves float32 whatever `wire` is.

    Raises:
        RequestError: for sizes or counts below 1, or an unknown transport or codec.
        JobFailed: if the run fails.
    """
    check_least(size=(size, 1), workers=(workers, 1), rounds=(rounds, 5), servers=(servers, 1))
    check_transport(transport)
    shares = transport in SHARED
    time_floor = floor.through_memory if shares else floor.over_sockets
    # Half of the floor before and half after, so that a machine that gets busier shows in both.
    half = max(5, rounds // 2)
    before = time_floor(size, workers, half)
    unpaced = [] if shares else _unpaced_s(size, workers, half)
    ran = run_rounds(size, workers, rounds, transport, wire, servers)
    unpaced += [] if shares else _unpaced_s(size, workers, half)
    after = time_floor(size, workers, half)
    gigabytes = 2 * workers * size * 4 / 1e9
    counted = counted_s(ran)
    floor_s = statistics.median(before.rounds_s[1:] + after.rounds_s[1:])
    median = statistics.median(counted)
    unpaced_s = statistics.median(unpaced) if unpaced else None
    deciles = statistics.quantiles(counted, n=10)
    return Measured(
        size=size,
        workers=workers,
        servers=servers,
        transport=transport,
        wire=wire,
        rounds=rounds,
        median_ms=1e3 * median,
        p10_ms=1e3 * deciles[0],
        p90_ms=1e3 * deciles[-1],
        floor_ms=1e3 * floor_s,
        ratio=median / floor_s,
        unpaced_floor_ms=None if unpaced_s is None else 1e3 * unpaced_s,
        unpaced_ratio=None if unpaced_s is None else median / unpaced_s,
        cpu_s_per_gb=ran.cpu_s / rounds / gigabytes,
        floor_cpu_s_per_gb=(before.cpu_s + after.cpu_s) / (2 * half) / gigabytes,
        bytes_pushed=ran.moved_bytes[0] / rounds,
        bytes_pulled=ran.moved_bytes[1] / rounds,
        peak_rss_mb=ran.peak_rss_mb,
    )


def _unpaced_s(size: int, workers: int, rounds: int) -> list[float]:
    return floor.over_sockets(size, workers, rounds, unpaced=True).rounds_s[1:]


def run_rounds(
    size: int,
    workers: int,
    rounds: int,
    transport: str,
    wire: str = "full",
    servers: int = 1,
    watch: MemoryWatch | None = None,
) -> Ran:
    """Run `rounds` rounds of `size` float32 parameters with one shard for each worker, and nothing beside them.

    Raises:
        RequestError: for an unknown transport.
        JobFailed: if the run fails, or memory runs short for `watch`.
    """
    job = Job.from_dict(
        {
            "task": {"use": f"{__package__}.task:Constant", "options": {"size": size}},
            "data": {"source": f"{__package__}.task:rows", "shards": workers, "batch_size": 1},
            "train": {"steps": rounds},
            "optimizer": {"learning_rate": 0.01},
            "server": {"durability": "none", "partitions": servers},
            "wire": {
                "push": wire,
                "pull": wire if wire in get_args(WireSection.model_fields["pull"].annotation) else "full",
            },
        }
    )
    return run(job, workers, transport, watch)


def counted_s(ran: Ran) -> list[float]:
    """Return the seconds of every round but the first of them."""
    rounds_s = ran.intervals_s()
    return rounds_s[int(len(rounds_s) * WARM_UP) :]
