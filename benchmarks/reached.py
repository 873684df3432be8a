"""Trains known data by a server and two workers, in sync and in async, and says what accuracy is reached.

    python benchmarks/reached.py [--mushrooms DIR]

All jobs go to the same three processes, one after the other, which takes some minutes. Fashion-MNIST is Debian's
package dataset-fashion-mnist; DIR holds the mushroom data as agaricus.txt.train and agaricus.txt.test. What is not
there is left out. Exit status 1 if an accuracy is below what is expected.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from paramserver.client import Job, train
from paramserver.client.launch import LocalCluster

FASHION = Path("/usr/share/datasets/fashion-mnist")


class Known(NamedTuple):
    """A task on data of which it is known what can be reached; `sync` and `async_` are optimizer sections."""

    name: str
    expected: float
    use: str
    options: dict[str, Any]
    data: dict[str, Any]
    epochs: int
    sync: dict[str, Any]
    async_: dict[str, Any]

    def job(self, mode: str) -> Job:
        """Return the job."""
        return Job.from_dict(
            {
                "task": {"use": self.use, "options": self.options},
                "data": self.data,
                "train": {"mode": mode, "epochs": self.epochs},
                "optimizer": {"schedule": "cosine", **(self.sync if mode == "sync" else self.async_)},
            }
        )


def known(mushrooms: Path | None) -> list[Known]:
    """Return what can be trained here."""

    def builtin(name: str, **more: Any) -> dict[str, Any]:
        return {"source": f"builtin:{name}/train", "test": f"builtin:{name}/test", "batch_size": 32, **more}

    def slow(rate: float) -> dict[str, Any]:
        return {"learning_rate": rate}

    fast = {"learning_rate": 0.2, "momentum": 0.9}
    images = [str(FASHION / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")]
    found = [
        Known("digits", 0.95, "softmax_regression", {}, builtin("digits", batch_size=64), 80, slow(1.0), slow(1.0)),
        Known("digits", 0.97, "mlp", {"hidden": [128]}, builtin("digits", shards=8), 600, fast, slow(0.2)),
        Known(
            *("breast_cancer", 0.96, "logistic_regression", {}, builtin("breast_cancer", standardize=True)),
            *(40, slow(0.3), slow(0.1)),
        ),
    ]
    if FASHION.exists():
        data = {"source": images[0], "test": images[1]}
        found.append(Known("Fashion-MNIST", 0.83, "softmax_regression", {}, data, 15, slow(0.3), slow(0.1)))
    if mushrooms is not None:
        files = [str(mushrooms.resolve() / f"agaricus.txt.{part}") for part in ("train", "test")]
        data = {"source": files[0], "test": files[1]}
        found.append(Known("mushrooms", 0.99, "logistic_regression", {}, data, 30, slow(4.0), slow(1.0)))
    return found


def main() -> None:
    """Train all, one after the other."""
    parser = argparse.ArgumentParser(description="What accuracy two workers reach on known data.")
    parser.add_argument("--mushrooms", type=Path, help="folder of agaricus.txt.train and agaricus.txt.test")
    below = 0
    print("| data | task | mode | test accuracy | expected | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, LocalCluster(2, Path(folder), Path(folder)) as cluster:
        for number, task in enumerate(known(parser.parse_args().mushrooms)):
            for mode in ("sync", "async"):
                result = train(task.job(mode), server=cluster.address, run=Path(folder) / f"{number}-{mode}")
                accuracy = result.metrics["test_accuracy"]
                below += accuracy < task.expected
                row = (task.name, task.use, mode, f"{accuracy:.4f}", task.expected, f"{result.seconds:.1f}")
                print("|", " | ".join(map(str, row)), "|", flush=True)
    sys.exit(below > 0)


if __name__ == "__main__":
    main()
