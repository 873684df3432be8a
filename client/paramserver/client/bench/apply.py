"""Times adding up and applying contributions as the server does it, beside what memory allows."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from paramserver.client.bench.memory import memory_mb
from paramserver.client.bench.running import check_least
from paramserver.server.events import Contribution
from paramserver.server.optimizers import fused
from paramserver.server.store import BLOCK_BYTES
from paramserver.server.update import BLOCKS_PER_THREAD, MAX_THREADS, Update
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout

#: Blocks of the floor, in elements: whichever is fastest is the floor.
_BLOCKS = (1 << 14, 1 << 16, 1 << 18)


@dataclass(frozen=True, slots=True)
class Applied:
    """Updates of one size by one optimizer; times in milliseconds."""

    size: int
    #: Contributions that make an update.
    workers: int
    optimizer: str
    #: `numba` or `numpy`: what the optimizer's passes are made of.
    code: str
    threads: int
    updates: int
    median_ms: float
    #: Tenth and ninetieth percentile.
    p10_ms: float
    p90_ms: float
    #: Every contribution read, θ and the optimizer's state read and written, with next to nothing computed.
    floor_ms: float
    #: median_ms / floor_ms.
    ratio: float
    #: Per 10⁹ bytes of what the floor reads and writes.
    cpu_s_per_gb: float
    floor_cpu_s_per_gb: float
    #: Peak resident memory; contributions and floor are in the same process.
    peak_rss_mb: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return asdict(self)


def measure_apply(
    size: int, workers: int, updates: int, optimizer: str = "sgd", momentum: float = 0.0, plain: bool = False
) -> Applied:
    """Make `updates` updates of `size` float32 parameters out of one contribution for each worker.

    `plain` keeps to numpy where numba is installed.

    Raises:
        RequestError: for sizes or counts that are too small.
        JobError: for an unknown optimizer, or momentum where it has none.
    """
    check_least(size=(size, 1), workers=(workers, 1), updates=(updates, 5))
    job = Job.from_dict(
        {
            "task": {"use": "none"},
            "data": {"source": "none", "shards": workers},
            "optimizer": {"name": optimizer, "learning_rate": 1e-6, "momentum": momentum},
        }
    )
    layout = Layout([("theta", (size,))], "float32")
    block = BLOCK_BYTES // 4
    fuse = fused.AVAILABLE and not plain
    update = Update(job, layout, block, updates, fuse)
    theta, *gradients = (np.full(size, 0.5, np.float32) for _ in range(workers + 1))
    cut = [[gradient[start : start + block] for gradient in gradients] for start in range(0, size, block)]
    contributions = [Contribution("worker", shard, 1, 0, 0, 1, 1.0) for shard in range(workers)]

    def one(number: int) -> None:
        update.apply(theta, [list(terms) for terms in cut], number + 1, number, contributions)

    threads = max(1, min(MAX_THREADS, len(cut) // BLOCKS_PER_THREAD))
    # Half of the floor before and half after, so that a machine that gets busier shows in both.
    before = _floor(theta, gradients, update.state, threads)
    times, cpu_s = _time(one, updates)
    after = _floor(theta, gradients, update.state, threads)
    floor_s, floor_cpu_s = min(before, after)
    gigabytes = 4e-9 * size * (workers + 2 + 2 * len(update.state))
    deciles = statistics.quantiles(times, n=10)
    return Applied(
        size=size,
        workers=workers,
        optimizer=f"{optimizer} + momentum" if momentum else optimizer,
        code="numba" if fuse and (momentum or optimizer in ("adam", "adamw")) else "numpy",
        threads=threads,
        updates=updates,
        median_ms=1e3 * statistics.median(times),
        p10_ms=1e3 * deciles[0],
        p90_ms=1e3 * deciles[-1],
        floor_ms=1e3 * floor_s,
        ratio=statistics.median(times) / floor_s,
        cpu_s_per_gb=cpu_s / gigabytes,
        floor_cpu_s_per_gb=floor_cpu_s / gigabytes,
        peak_rss_mb={"server": memory_mb(os.getpid(), "VmHWM")},
    )


def _time(work: Callable[[int], None], rounds: int) -> tuple[list[float], float]:
    """Return the times of rounds 1, 2, …, and the CPU seconds of each; round 0 touches memory for the first time."""
    work(0)
    cpu, times = time.process_time(), []
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - started)
    return times, (time.process_time() - cpu) / rounds


def _floor(theta: Array, gradients: list[Array], state: tuple[Array, ...], threads: int) -> tuple[float, float]:
    """Return the median time of moving the bytes of an update with the best block, and its CPU seconds."""
    bounds = [theta.size * part // threads // 1024 * 1024 for part in range(threads)] + [theta.size]
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for block in _BLOCKS:
            buffers = [np.empty(block, theta.dtype) for _ in range(threads)]

            def work(_: int, block: int = block, buffers: list[Array] = buffers) -> None:
                def share(cut: tuple[int, int], buffer: Array) -> None:
                    for a in range(*cut, block):
                        b = min(a + block, cut[1])
                        if len(gradients) == 1:
                            np.copyto(buffer[: b - a], gradients[0][a:b])
                        for first, second in pairwise(gradients):
                            np.add(first[a:b], second[a:b], out=buffer[: b - a])
                        np.negative(theta[a:b], out=theta[a:b])
                        for array in state:
                            np.negative(array[a:b], out=array[a:b])

                list(pool.map(share, pairwise(bounds), buffers))

            times, cpu_s = _time(work, 4)
            found.append((statistics.median(times), cpu_s))
    return min(found)
