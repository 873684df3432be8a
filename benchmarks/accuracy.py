"""Times Fashion-MNIST training by one worker, by two and by plain numpy.

    python -m benchmarks.accuracy [--batches 256 1024] [--epochs 2] [--repeats 3]

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


PLAIN, ONE, TWO = "plain numpy, no server", "one worker", "two workers"

#: How to train, by name: (folder, batch, epochs) to what came out.
WAYS: dict[str, Callable[[Path, int, int], Ran]] = {
    PLAIN: plain,
    ONE: partial(served, workers=1),
    TWO: partial(served, workers=2),
    "two plain loops at once": two_plain,
}


def measure(folder: Path, batch: int, epochs: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return the runs of every way of training, one for each repeat."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            runs[name].append(way(folder, batch, epochs)._asdict())
    return runs


def ratios(runs: dict[str, list[dict[str, float]]], name: str, base: str) -> list[float]:
    """Return how much faster one way is than another, within each repeat."""
    pairs = zip(runs[name], runs[base], strict=True)
    return [run["samples_per_s"] / other["samples_per_s"] for run, other in pairs]


def main() -> None:
    """Measure and print the median of each way."""
    parser = argparse.ArgumentParser(description="Time Fashion-MNIST by one worker, by two and by plain numpy.")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024], help="examples of a shard in a round")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the idx files (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"passed over: {arguments.data} does not exist; Debian's package dataset-fashion-mnist holds it")
        return
    for batch in arguments.batches:
        runs = measure(arguments.data, batch, arguments.epochs, arguments.repeats)
        for name, found in runs.items():
            rate = statistics.median(run["samples_per_s"] for run in found)
            print(
                f"batch {batch}, {name}: {rate:,.0f} examples/s, "
                f"{statistics.median(ratios(runs, name, PLAIN)):.2f} × plain, "
                f"accuracy {statistics.median(run['accuracy'] for run in found):.3f}"
            )


if __name__ == "__main__":
    main()
