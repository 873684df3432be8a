"""A step of a task that scales its gradient itself is a step by the mean gradient, as that of any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.wire.job import Job
from paramserver.worker.learner import Learner
from server.inprocess import Training, at_once

RATE = 0.5


@pytest.mark.parametrize("compute", [at_once, None], ids=["by the reference", "by the worker"])
@pytest.mark.parametrize("use", ["mlp", "softmax_regression"])
def test_a_step_is_one_by_the_mean_gradient(use: str, compute: Any) -> None:
    job = Job.from_dict(
        {
            "task": {"use": use, "options": {"hidden": [7]} if use == "mlp" else {}},
            "data": {"source": "builtin:digits", "shards": 2, "batch_size": 100},
            "train": {"steps": 1},
            "optimizer": {"learning_rate": RATE},
        }
    )
    theta = Training(job).finish(compute).theta
    learner = Learner(job)
    for shard in range(2):
        learner.survey(shard)
    learner.prepare(10, None)
    first = learner.initial(0)
    slopes = [learner.gradient(first, learner.batch(shard, 0), shard, 0)[1] for shard in range(2)]
    for name, value in theta.items():
        mean = sum(slope[name] for slope in slopes) / 2
        assert np.abs(mean).max() > 1e-4
        np.testing.assert_allclose(value, first[name] - RATE * mean, rtol=1e-5, atol=1e-6)
