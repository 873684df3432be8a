"""Times rounds of a parameter server made of Ray actors: `python ray_actors.py SIZE WORKERS ROUNDS`.

A round as the parameter server's: every worker pushes a float32 gradient, one actor averages them and applies SGD,
every worker has the new θ. Arrays travel through Ray's object store in shared memory, from which actors read without
copying; small ones travel in messages. The next round is submitted before the last has ended, so that no actor waits
for the driver. Prints one JSON object; exit status 3 without Ray. Run by an interpreter of its own (`make peers`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

# Before Ray is imported: nothing is to be told to anybody.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

try:
    import numpy as np
    import ray
except ImportError:
    sys.exit(3)

WARM_UP = 0.2
RATE = 0.01
#: Rounds that the driver is ahead of the server.
AHEAD = 2


class Server:
    """Holds θ, and takes down when it had applied every round."""

    def __init__(self, size: int, workers: int) -> None:
        self._theta = np.zeros(size, np.float32)
        self._total = np.empty_like(self._theta)
        self._rate = np.float32(RATE / workers)
        self._ends: list[float] = []
        self._cpu = 0.0

    def apply(self, *gradients: Any) -> Any:
        """Apply the mean of the gradients and return θ."""
        np.copyto(self._total, gradients[0])
        for gradient in gradients[1:]:
            np.add(self._total, gradient, out=self._total)
        np.multiply(self._total, self._rate, out=self._total)
        np.subtract(self._theta, self._total, out=self._theta)
        self._cpu = self._cpu or time.process_time()
        self._ends.append(time.perf_counter())
        return self._theta

    def told(self) -> tuple[list[float], float, float]:
        """Return the ends of all rounds, CPU seconds since the first and peak memory in MB."""
        return self._ends, time.process_time() - self._cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """Has a gradient, and pushes it once it has θ."""

    def __init__(self, size: int) -> None:
        self._gradient = np.full(size, 0.5, np.float32)
        self._cpu = 0.0

    def push(self, theta: Any) -> Any:
        """Return the gradient at θ, which is here as a view of shared memory."""
        assert theta.size == self._gradient.size
        self._cpu = self._cpu or time.process_time()
        return self._gradient

    def told(self) -> tuple[float, float]:
        """Return CPU seconds since the first round and peak memory in MB."""
        return time.process_time() - self._cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the rounds and print the median."""
    size, workers, rounds = map(int, sys.argv[1:])
    folder = tempfile.mkdtemp(prefix="ray")
    # Room for the objects of the rounds in flight.
    store = max(256 << 20, 4 * size * (workers + 1) * (AHEAD + 2))
    try:
        ray.init(
            address="local",
            num_cpus=workers + 1,
            object_store_memory=store,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        server = ray.remote(Server).remote(size, workers)
        crew = [ray.remote(Worker).remote(size) for _ in range(workers)]
        theta = ray.put(np.zeros(size, np.float32))
        flight = []
        for _ in range(rounds):
            theta = server.apply.remote(*[worker.push.remote(theta) for worker in crew])
            flight.append(theta)
            if len(flight) > AHEAD:
                ray.wait([flight.pop(0)], fetch_local=False)
        last = ray.get(theta)
        ends, cpu, peak = ray.get(server.told.remote())
        told = ray.get([worker.told.remote() for worker in crew])
        np.testing.assert_allclose(last[[0, -1]], -RATE * 0.5 * rounds, rtol=1e-3)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    between = [later - earlier for earlier, later in pairwise(ends)]
    counted = between[int(len(between) * WARM_UP) :]
    deciles = statistics.quantiles(counted, n=10)
    print(
        json.dumps(
            {
                "version": ray.__version__,
                "median_ms": 1e3 * statistics.median(counted),
                "p10_ms": 1e3 * deciles[0],
                "p90_ms": 1e3 * deciles[-1],
                # Of the actors alone; Ray's own processes come on top.
                "cpu_s_per_gb": (cpu + sum(each for each, _ in told)) / rounds / (2 * workers * size * 4e-9),
                "peak_rss_mb": {"server": peak, **{f"worker-{n}": mb for n, (_, mb) in enumerate(told)}},
            }
        )
    )


if __name__ == "__main__":
    main()
