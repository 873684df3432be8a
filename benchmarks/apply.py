"""Time the optimizers blockwise over one large vector, beside the floor that memory sets in the same run.

    python benchmarks/apply.py --size 25000000

Each block of the gradient is first copied to a buffer that stays in cache, where a reduce would leave it.
The floor moves the same bytes and computes next to nothing: it reads the gradient, and reads and writes θ
and each array of the state once. `double` writes θ to a second buffer, whose lines memory must deliver too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from threading import Thread
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


def seconds(work: Work, size: int, threads: int, repeats: int) -> float:
    """Return the median time of `work` over `[0, size)`, cut evenly among threads."""
    bounds = [size * part // threads // 1024 * 1024 for part in range(threads)] + [size]
    times = []
    for _ in range(repeats + 1):
        crew = [Thread(target=work, args=cut) for cut in pairwise(bounds)]
        start = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
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


def measure(case: str, double: bool, size: int, threads: int, repeats: int) -> Iterator[tuple[Any, ...]]:
    """Yield rows of (update, code, θ, threads, block, ns/element, GB/s, × floor)."""
    theta, gradient = np.full(size, 0.5, np.float32), np.full(size, 0.5, np.float32)
    new_theta = np.full(size, 0.5, np.float32) if double else theta
    section = OptimizerSection(**CASES[case])
    codes: dict[str, Optimizer] = {"numpy": make_optimizer(section, fuse=False)}
    compiled = fused.AVAILABLE and case != "sgd"
    if compiled:
        codes["numba"] = make_optimizer(section, fuse=True)
    state = codes["numpy"].init(size, np.float32)
    traffic = size * 4 * (3 + 2 * len(state))

    times = {}
    for block in BLOCKS:
        work = floor(theta, gradient, state, new_theta, block)
        times["floor", block] = seconds(work, size, threads, repeats)
    least = min(times.values())
    for code, optimizer in codes.items():
        optimizer.init(0, np.float32)
        for block in BLOCKS:
            work = apply(optimizer, theta, gradient, state, new_theta, block)
            times[code, block] = seconds(work, size, threads, repeats)
    for (code, block), took in times.items():
        speed = f"{took / size * 1e9:.2f}", f"{traffic / took / 1e9:.1f}", f"{took / least:.2f}"
        yield case, code, "double" if double else "in place", threads, f"{block // 1024} Ki", *speed


def main() -> None:
    """Print a table of all cases, and the time that norms take."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=25_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    print("| update | code | θ | threads | block | ns/element | GB/s | × floor |")
    print("| --- " * 8 + "|")
    for case, double, threads in product(CASES, (False, True), options.threads):
        for row in measure(case, double, options.size, threads, options.repeats):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)

    gradient = np.full(options.size, 0.5, np.float32)

    def squares(low: int, high: int) -> None:
        norms.block_squares(gradient[low:high])

    took = seconds(squares, options.size, 1, options.repeats)
    print(f"\nSquares for a norm, 1 thread: {took / options.size * 1e9:.2f} ns/element")


if __name__ == "__main__":
    main()
