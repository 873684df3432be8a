"""The demonstration: a linear regression whose solution is known in closed form."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.client.connection.client import Client, Point
from paramserver.client.launch import LocalCluster, check_counts
from paramserver.client.training import Progress
from paramserver.wire.errors import JobFailed
from paramserver.wire.job import Job
from paramserver.worker.data import open_source

SOURCE = "builtin:linear"
SHARDS = 4

#: The loss is quadratic with curvatures of about 2.5 and 0.13, so that full gradient descent with rate 0.7 leaves
#: at most 0.91 of the error at every step: 400 steps leave 1e-16.
_SYNC = {"steps": 400, "optimizer": {"learning_rate": 0.7}}
#: Here shards pull θ towards solutions of their own, up to 0.04 apart, one after the other; a rate that falls to zero
#: ends in their mean. How close it comes to the whole data's solution depends on how evenly the workers progress: the
#: smaller the rates, the more updates θ is a mean of. These are as small as lets it forget where it began, to 4e-4.
_ONE_BY_ONE = {"steps": 800, "optimizer": {"learning_rate": 0.04, "schedule": "cosine"}}


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration has shown: slope (`w`) and intercept (`b`), learnt and computed."""

    theta: dict[str, float]
    #: The least-squares solution by `numpy.linalg.lstsq`.
    closed_form: dict[str, float]
    #: Mean squared error at the end.
    loss: float
    #: Median milliseconds of a step of all shards.
    round_ms: float

    def summary(self) -> dict[str, Any]:
        """Return what `paramserver demo --json` prints."""
        return asdict(self)


def demo_job(mode: str = "sync", servers: int = 1) -> Job:
    """Return the job: 1000 points of y = 2x + 1 with noise, four shards, whole shards as batches, float64.

    Raises:
        JobError: if there is no such mode.
    """
    length_and_rate = _SYNC if mode == "sync" else _ONE_BY_ONE
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": SOURCE, "shards": SHARDS, "batch_size": 0},
            "train": {"mode": mode, "steps": length_and_rate["steps"], "dtype": "float64"},
            "optimizer": length_and_rate["optimizer"],
            # It leaves no files, and is made again in a second.
            "server": {"durability": "none", "partitions": servers},
        },
        origin="demo",
    )


def demonstrate(
    mode: str = "sync", workers: int = 4, progress: Progress | None = None, servers: int = 1
) -> Demonstration:
    """Train the demonstration on processes of this machine and solve it in closed form; leaves no files.

    Raises:
        RequestError: if mode or number of workers are wrong.
        JobFailed: if training failed.
    """
    check_counts(workers, servers)
    job = demo_job(mode, servers)
    history: list[Point] = []
    with (
        tempfile.TemporaryDirectory(prefix="paramserver-demo-") as folder,
        LocalCluster(workers, Path(folder), Path(folder), servers=servers) as cluster,
        Client(cluster.address) as client,
    ):
        # Were some to begin alone, the last updates of an async job would come from the shards of the others only.
        cluster.wait_for_workers(client)
        client.submit(job)
        for update in client.watch(cluster.check):
            history += update.points
            if progress is not None:
                progress(update)
        if update.status.state != "done":
            raise JobFailed(update.status.reason)
        theta, _ = client.pull()
    source = open_source(SOURCE)
    x, y = source.read(0, source.rows)
    return Demonstration(
        theta={name: float(values.item()) for name, values in sorted(theta.items())},
        closed_form=closed_form(x, y),
        loss=history[-1].loss,
        round_ms=round_ms(history),
    )


def closed_form(x: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """Return slope and intercept of the least-squares line through the points; x is (n, 1), y is (n,)."""
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    return {"b": float(solution[1]), "w": float(solution[0])}


def round_ms(history: Sequence[Point]) -> float:
    """Return the median milliseconds between one step and the next."""
    pauses = [
        (later.seconds - earlier.seconds) / (later.step - earlier.step)
        for earlier, later in itertools.pairwise(history)
    ]
    return 1000 * statistics.median(pauses) if pauses else 0.0
