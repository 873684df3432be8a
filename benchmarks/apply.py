"""Time the optimizers blockwise over one large vector, beside the floor that memory sets in the same run.

    python benchmarks/apply.py --size 25000000

Each block of the gradient is first copied to a buffer that stays in cache, as the reduce would leave it there.
The floor moves the same bytes and computes next to nothing: it reads the gradient, and reads and writes θ and
each array of the state once. `double` writes θ to a second buffer, whose lines memory must also deliver first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from paramserver.server.optimizers import Optimizer, StepInfo, fused, make_optimizer, norms, slice_state
from paramserver.wire.job import OptimizerSection

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "sgd+momentum": {"name": "sgd", "momentum": 0.9},
    "adam": {"name": "adam", "learning_rate": 0.001},
}
BLOCKS = [1 << exponent for exponent in (14, 15, 16, 17, 18, 20)]

Work = Callable[[int, int], None]


def seconds(work: Work, size: int, pool: ThreadPoolExecutor, threads: int, repeats: int) -> float:
    """Return the median time of `work` over `[0, size)`, cut evenly among threads."""
    bounds = [size * part // threads // 1024 * 1024 for part in range(threads)] + [size]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        list(pool.map(work, bounds[:-1], bounds[1:]))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def floor(theta: Any, gradient: Any, state: Any, new_theta: Any, block: int) -> Work:
    def work(low: int, high: int) -> None:
        buffer = np.empty(block, theta.dtype)
        for a in range(low, high, block):
            b = min(a + block, high)
            np.copyto(buffer[: b - a], gradient[a:b])
            np.negative(theta[a:b], out=new_theta[a:b])
            for array in state:
                np.negative(array[a:b], out=array[a:b])

    return work


def apply(optimizer: Optimizer, theta: Any, gradient: Any, state: Any, new_theta: Any, block: int) -> Work:
    def work(low: int, high: int) -> None:
        buffer = np.empty(block, theta.dtype)
        scratch = np.empty((optimizer.scratch_rows, block), theta.dtype)
        step = StepInfo(5, 1e-6)
        for a in range(low, high, block):
            b = min(a + block, high)
            part = slice_state(state, a, b)
            np.copyto(buffer[: b - a], gradient[a:b])
            optimizer.update(theta[a:b], buffer[: b - a], part, step, new_theta[a:b], part, scratch)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=25_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    size = options.size
    pool = ThreadPoolExecutor(max(options.threads))
    theta, gradient, second = (np.full(size, 0.5, np.float32) for _ in range(3))

    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)

    line("update", "code", "θ", "threads", "block", "ns/element", "GB/s", "× floor")
    line(*["---"] * 8)
    for case, section in CASES.items():
        for places, new_theta in (("in place", theta), ("double", second)):
            state = make_optimizer(OptimizerSection(**section)).init(size, np.float32)
            traffic = size * 4 * (3 + 2 * len(state))
            for threads in options.threads:

                def timed(work: Work, threads: int = threads) -> float:
                    return seconds(work, size, pool, threads, options.repeats)

                def row(code: str, block: int, took: float, least: float, threads: int = threads) -> None:
                    line(
                        case,  # noqa: B023 (called within the loop)
                        code,
                        places,  # noqa: B023
                        str(threads),
                        f"{block // 1024} Ki",
                        f"{took / size * 1e9:.2f}",
                        f"{traffic / took / 1e9:.1f}",  # noqa: B023
                        f"{took / least:.2f}",
                    )

                floors = {block: timed(floor(theta, gradient, state, new_theta, block)) for block in BLOCKS}
                best = min(floors, key=lambda block: floors[block])
                row("floor", best, floors[best], floors[best])
                for code in ("numpy", "numba") if fused.AVAILABLE else ("numpy",):
                    optimizer = make_optimizer(OptimizerSection(**section), fuse=code == "numba")
                    if code == "numba" and optimizer.scratch_rows:
                        continue
                    optimizer.init(0, np.float32)
                    for block in BLOCKS:
                        took = timed(apply(optimizer, theta, gradient, state, new_theta, block))
                        row(code, block, took, floors[best])
    took = seconds(lambda a, b: (norms.block_squares(gradient[a:b]), None)[1], size, pool, 1, options.repeats)
    print(f"norms.block_squares, 1 thread: {took / size * 1e9:.2f} ns/element")


if __name__ == "__main__":
    main()
