"""Times Fashion-MNIST training by one worker, by two and by plain numpy, and writes the table of docs/performance.md.

    python benchmarks/accuracy.py [--batches 256 1024] [--epochs 2] [--repeats 3] [--write]

A perceptron (784-256-10, relu) in synchronous rounds of two shards, for each size of their batches. The plain loop has
no server and takes as many examples a step as a round has. Two such loops at once, which exchange nothing, are what
two cores give at best. Everything runs in turn, `repeats` times over, with one BLAS thread a process.

Needs Fashion-MNIST's idx files; Debian has them as dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from paramserver.client import Job, train
from paramserver.worker.data import open_source
from rounds import PAGE, machine, replace

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SHARDS, HIDDEN, RATE, MOMENTUM = 2, 256, 0.1, 0.9

Array = NDArray[Any]


class Ran(NamedTuple):
    """One run: examples per second in its median step, seconds of training, and accuracy on the test images."""

    samples_per_s: float
    seconds: float
    accuracy: float


def plain(folder: Path, batch: int, epochs: int, seed: int = 0) -> Ran:
    """Train in this process, in a loop such as one writes without a server."""
    (x, y), (test_x, test_y) = _read(folder, "train"), _read(folder, "t10k")
    rng = np.random.default_rng(seed)
    sizes = [(x.shape[1], HIDDEN), (HIDDEN, 10)]
    weights = [(rng.standard_normal(size) * (2 / size[0]) ** 0.5).astype(np.float32) for size in sizes]
    theta = [weights[0], np.zeros(HIDDEN, np.float32), weights[1], np.zeros(10, np.float32)]
    speed = [np.zeros_like(values) for values in theta]
    examples = SHARDS * batch
    ends = []
    with threadpool_limits(limits=1):
        started = time.perf_counter()
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), examples):
                rows = order[start : start + examples]
                for values, velocity, slope in zip(theta, speed, _gradient(theta, x[rows], y[rows]), strict=True):
                    velocity *= MOMENTUM
                    velocity += slope
                    values -= RATE * velocity
                ends.append(time.perf_counter())
        seconds = time.perf_counter() - started
    hits = np.argmax(_scores(theta, test_x)[1], axis=1) == test_y
    return Ran(examples / median_step(ends), seconds, float(hits.mean()))


def two_plain(folder: Path, batch: int, epochs: int) -> Ran:
    """Train twice at once, in two processes that know nothing of each other; examples per second of both."""
    with ProcessPoolExecutor(2) as pool:
        both = list(pool.map(plain, [folder] * 2, [batch] * 2, [epochs] * 2, range(2)))
    return Ran(sum(run.samples_per_s for run in both), both[0].seconds, both[0].accuracy)


def served(folder: Path, batch: int, epochs: int, workers: int) -> Ran:
    """Train with a server and workers, each a process of its own."""
    job = Job.from_dict(
        {
            "task": {"use": "mlp", "options": {"hidden": [HIDDEN]}},
            "data": {
                "source": str(folder / "train-images-idx3-ubyte.gz"),
                "test": str(folder / "t10k-images-idx3-ubyte.gz"),
                "shards": SHARDS,
                "batch_size": batch,
            },
            "train": {"epochs": epochs},
            "optimizer": {"learning_rate": RATE, "momentum": MOMENTUM},
        }
    )
    with tempfile.TemporaryDirectory() as run:
        result = train(job, workers=workers, run=Path(run) / "run")
    step_s = median_step([point.seconds for point in result.history])
    return Ran(SHARDS * batch / step_s, result.seconds, result.metrics["test_accuracy"])


def median_step(ends: list[float]) -> float:
    """Return the median seconds of a step, which what else runs on the machine for a moment does not change."""
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


def _gradient(theta: list[Array], x: Array, y: Array) -> list[Array]:
    w1 = theta[2]
    hidden, scores = _scores(theta, x)
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    scores[np.arange(len(y)), y] -= 1
    scores /= len(y)
    back = scores @ w1.T
    back *= hidden > 0
    return [x.T @ back, back.sum(axis=0), hidden.T @ scores, scores.sum(axis=0)]


def _scores(theta: list[Array], x: Array) -> tuple[Array, Array]:
    w0, b0, w1, b1 = theta
    hidden = x @ w0
    hidden += b0
    np.maximum(hidden, 0, out=hidden)
    return hidden, hidden @ w1 + b1


def _read(folder: Path, part: str) -> tuple[Array, Array]:
    source = open_source(str(folder / f"{part}-images-idx3-ubyte.gz"))
    return source.read(0, source.rows)


#: How to train, by name: (folder, batch, epochs) to what came out.
WAYS: dict[str, Callable[[Path, int, int], Ran]] = {
    "plain numpy, no server": plain,
    "one worker": partial(served, workers=1),
    "two workers": partial(served, workers=2),
    "two plain loops at once": two_plain,
}


def main() -> None:
    """Measure and print the table; with --write also put it into the page."""
    parser = argparse.ArgumentParser(description="Time Fashion-MNIST by one worker, by two and by plain numpy.")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024], help="examples of a shard in a round")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the idx files (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {PAGE.name}")
    arguments = parser.parse_args()
    folder, epochs = arguments.data, arguments.epochs
    if not folder.is_dir():
        print(f"passed over: {folder} does not exist; Debian's package dataset-fashion-mnist holds it")
        return
    lines = [
        f"| batch | {epochs} epochs | examples/s | × plain | × one worker | seconds | test accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for batch in arguments.batches:
        runs: dict[str, list[Ran]] = {name: [] for name in WAYS}
        for _ in range(arguments.repeats):
            for name, way in WAYS.items():
                runs[name].append(way(folder, batch, epochs))
        lines += rows(batch, runs)
        print("\n".join(lines[-len(WAYS) :]), flush=True)
    if arguments.write:
        replace("accuracy", [machine(), "", *lines])


def rows(batch: int, runs: dict[str, list[Ran]]) -> list[str]:
    """Return the lines of one batch size: medians with the extremes of the repeats, and ratios within each repeat."""
    lines = []
    for name, found in runs.items():
        rates = [run.samples_per_s for run in found]
        ratios = [
            [run.samples_per_s / other.samples_per_s for run, other in zip(found, runs[base], strict=True)]
            for base in ("plain numpy, no server", "one worker")
        ]
        lines.append(
            f"| {batch} | {name} | {spread(rates, ',.0f')} | {' | '.join(spread(ratio, '.2f') for ratio in ratios)} "
            f"| {statistics.median(run.seconds for run in found):.2f} "
            f"| {statistics.median(run.accuracy for run in found):.3f} |"
        )
    return lines


def spread(values: list[float], form: str) -> str:
    """Return the median and, in brackets, the extremes."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
