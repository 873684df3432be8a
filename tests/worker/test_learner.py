"""What a learner computes is the same whether the task or the worker multiplies it by the examples of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paramserver.wire.errors import TaskError
from paramserver.wire.job import Job
from paramserver.worker.learner import Learner

MODEL = """
import numpy as np

class Model:
    def init(self, rng, batch):
        return {{"w": np.zeros(batch.x.shape[1], batch.x.dtype)}}

    def loss_and_grad(self, params, batch{more}):
        {first}
        return 0.5, {{"w": {value}}}
"""


def learner(folder: Path, more: str, value: str, first: str = "pass") -> Learner:
    (folder / "model.py").write_text(MODEL.format(more=more, value=value, first=first))
    task = {"use": "model.py:Model"}
    return Learner(Job.from_dict({"task": task, "data": {"source": "builtin:linear", "shards": 2}}), folder)


@pytest.mark.parametrize(
    ("more", "value", "left"),
    [
        ("", "np.ones_like(params['w'])", True),
        (", scale=3.0", "np.ones_like(params['w']) * np.float32(scale / 3)", True),
        (", gradient_scale=1.0", "np.ones_like(params['w']) * np.float32(gradient_scale)", False),
        (", out, gradient_scale", "np.multiply(out['w'], 0, out=out['w']) + np.float32(gradient_scale)", False),
    ],
    ids=["neither", "a parameter of its own", "scale", "both"],
)
def test_only_a_task_that_takes_the_scale_is_given_it(tmp_path: Path, more: str, value: str, left: bool) -> None:
    mine = learner(tmp_path, more, value)
    batch = mine.batch(1, 0)
    theta = {"w": np.zeros(batch.x.shape[1], np.float32)}
    out = {"w": np.ones_like(theta["w"])}
    loss, arrays, is_scaled = mine.contribution(theta, batch, 1, 0, out)
    assert loss == 0.5
    assert is_scaled is not left
    assert batch.n > 1
    np.testing.assert_array_equal(arrays["w"], np.full_like(theta["w"], batch.n if is_scaled else 1))


def test_a_task_that_fails_with_a_scale_is_named_with_shard_and_step(tmp_path: Path) -> None:
    mine = learner(tmp_path, ", gradient_scale", "None", "raise ValueError('no')")
    batch = mine.batch(1, 0)
    with pytest.raises(TaskError, match=r"shard 1, step 0: Model.loss_and_grad raised ValueError: no"):
        mine.contribution({"w": np.zeros(batch.x.shape[1], np.float32)}, batch, 1, 0)
