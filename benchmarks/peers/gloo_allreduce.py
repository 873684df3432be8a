"""Times rounds of a gloo all-reduce (torch.distributed, CPU): `python gloo_allreduce.py SIZE WORKERS ROUNDS`.

A round as the parameter server's: every worker has a float32 gradient, afterwards everybody has the new θ. The
gradients are summed in place over TCP loopback, and every worker applies SGD to a θ of its own; no process checks
anything, and none may die. Prints one JSON object; exit status 3 without torch. Run by an interpreter of its own
(`make peers`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

try:
    import torch
    import torch.distributed as dist
except ImportError:
    sys.exit(3)

WARM_UP = 0.2
RATE = 0.01


def work(rank: int, workers: int, size: int, rounds: int, meeting: str, answers: Any) -> None:
    """Be one worker."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    gradient, theta = torch.full((size,), 0.5), torch.zeros(size)

    def one() -> None:
        dist.all_reduce(gradient)
        theta.add_(gradient, alpha=-RATE / workers)

    one()
    right = bool((theta == -RATE / workers * 0.5 * workers).all())
    # All-reduce leaves the sum where the gradient was. Of zeros it stays the same however often, and no round has to
    # pay for putting the gradient back.
    gradient.zero_()
    dist.barrier()
    rounds_s: list[float] = []
    cpu = time.process_time()
    for _ in range(rounds):
        started = time.perf_counter()
        one()
        rounds_s.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    dist.barrier()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put((rank, rounds_s, cpu, peak_mb, right))
    dist.destroy_process_group()


def main() -> None:
    """Run all workers and print the median round of the first."""
    size, workers, rounds = map(int, sys.argv[1:])
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, size, rounds, f"{folder}/meeting", answers)
        processes = [context.Process(target=work, args=(rank, *arguments), daemon=True) for rank in range(workers)]
        for process in processes:
            process.start()
        found = sorted(answers.get(timeout=600) for _ in processes)
        for process in processes:
            process.join()
    if not all(right for *_, right in found):
        sys.exit("a worker has another θ than it should have")
    counted = found[0][1][int(rounds * WARM_UP) :]
    deciles = statistics.quantiles(counted, n=10)
    print(
        json.dumps(
            {
                "version": torch.__version__,
                "median_ms": 1e3 * statistics.median(counted),
                "p10_ms": 1e3 * deciles[0],
                "p90_ms": 1e3 * deciles[-1],
                "cpu_s_per_gb": sum(cpu for _, _, cpu, *_ in found) / rounds / (2 * workers * size * 4e-9),
                "peak_rss_mb": {f"worker-{rank}": peak_mb for rank, _, _, peak_mb, _ in found},
            }
        )
    )


if __name__ == "__main__":
    main()
