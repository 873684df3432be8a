"""What the surveys of all shards come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paramserver.wire.job import Job
from server.inprocess import Training, at_once

#: A source whose rows are wider from the fifth on, as where shards come from files of different width.
UNLIKE = """
import numpy as np

def load(start, stop):
    x = np.arange(8.0 * 3).reshape(8, 3)[start:stop]
    return (x if start >= 4 else x[:, :2]), x[:, 0]

load.rows = 8
"""

TASK = """
import numpy as np

class Mean:
    def init(self, rng, batch):
        return {"m": np.zeros(1, batch.y.dtype)}

    def loss_and_grad(self, params, batch):
        error = params["m"] - batch.y
        return float(np.mean(error**2)), {"m": 2 * error.mean(keepdims=True)}
"""


def make_job(folder: Path, **data: Any) -> Job:
    (folder / "unlike_data.py").write_text(UNLIKE)
    (folder / "mean_task.py").write_text(TASK)
    return Job.from_dict(
        {
            "task": {"use": f"{folder}/mean_task.py:Mean"},
            "data": {"source": f"{folder}/unlike_data.py:load", "shards": 4, "batch_size": 0, **data},
            "train": {"steps": 2},
        }
    )


def test_shards_of_different_width_cannot_be_standardised(tmp_path: Path) -> None:
    engine = Training(make_job(tmp_path, standardize=True)).finish(at_once, at_once).run.engine
    assert engine.phase == "failed"
    # The name of the error is how a client knows that the request was wrong, and not the run.
    assert engine.reason == (
        "DataError: data.standardize needs the same features in every shard, but shard 0 has 2 and shard 2 has 3"
    )


def test_shards_of_different_width_train_without_it(tmp_path: Path) -> None:
    training = Training(make_job(tmp_path)).finish(at_once)
    assert training.run.engine.phase == "done"
    assert training.run.census is not None
    assert training.run.census.features == 3


@pytest.mark.parametrize("standardize", [False, True])
def test_moments_are_combined_if_the_job_asks_for_them(standardize: bool) -> None:
    data = {"source": "builtin:linear", "shards": 3, "standardize": standardize}
    job = Job.from_dict({"task": {"use": "linear_regression"}, "data": data, "train": {"steps": 1}})
    run = Training(job).finish(at_once).run
    assert (run.moments is not None) == standardize
    if run.moments is not None:
        assert run.moments.count == 1000
