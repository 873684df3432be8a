"""How good parameters are on the job's test data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import NotReady
from paramserver.wire.job import Job
from paramserver.wire.moments import Moments
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker import shard
from paramserver.worker.batches import Batch
from paramserver.worker.moments import Standardizer
from paramserver.worker.tasks import load_task, loss_and_gradient, metrics, with_rows


def open_test(job: Job, status: pb.StatusReply, base: Path) -> Batch:
    """Return `data.test` as one batch, with the features, classes and standardisation that training has.

    Raises:
        RequestError: if the test data are missing or do not fit the training data.
        NotReady: if the training data are not surveyed yet.
    """
    if not status.HasField("census"):
        raise NotReady("the training data are not surveyed yet")
    census = status.census
    standardizer = None
    if job.data.standardize:
        flat = np.frombuffer(status.moments, "<f8").astype(np.float64)
        standardizer = Standardizer.from_moments(Moments.from_flat(census.rows, flat))
    return shard.open_test(job, census.features, census.classes, standardizer, base)


def evaluate(job: Job, theta: Mapping[str, NDArray[Any]], batch: Batch, base: Path) -> dict[str, float]:
    """Return the task's metrics on the batch, each named `test_…`; a task without any gives `test_loss`.

    Raises:
        TaskError: if the task cannot be loaded, or fails.
    """
    task = load_task(job.task.use, job.task.options, base)
    params = with_rows(task, theta, batch, job.train.seed)
    found = metrics(task, params, batch) or {"loss": loss_and_gradient(task, params, batch)[0]}
    return {f"test_{name}": value for name, value in found.items()}
