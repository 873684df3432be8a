"""A push that is refused for its numbers leaves no trace in the sum of the round."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb

JOB = {
    "task": {"use": "unknown to the server"},
    "data": {"source": "unknown to the server", "shards": 2},
    "train": {"steps": 1, "dtype": "float64", "reduce": "sum"},
    "optimizer": {"learning_rate": 1.0},
}


class Training:
    """A run in its first round, with one worker that holds both shards, without a network."""

    def __init__(self) -> None:
        self.session = Session(pb.Join(protocol=1, worker="w"))
        self.run = Run("job", Job.from_dict(JOB), {"w": self.session}, clock=lambda: 0.0, epoch=0)
        self.run.welcome(self.session)
        self.pull()
        for shard in range(2):
            survey = pb.Survey(shard=shard, epoch=self._epoch(shard), rows=1, features=1)
            self._take(pb.WorkerMessage(survey=survey))
        self.pull()
        initial = pb.Initial(shard=0, epoch=self._epoch(0), tensors=[pb.Tensor(name="t", shape=[1])])
        self._take(pb.WorkerMessage(initial=initial), 0.0)
        self.pull()
        assert self.run.engine.phase == "train"

    def pull(self) -> None:
        self._take(pb.WorkerMessage(pull=pb.PullWork()))

    def push(self, shard: int, value: float, **numbers: float) -> None:
        fields = {"version": 0, "samples": 1, "loss": 0.5, **numbers}
        push = pb.Push(shard=shard, epoch=self._epoch(shard), step=0, **fields)
        self._take(pb.WorkerMessage(push=push), value)

    def _epoch(self, shard: int) -> int:
        return self.run.engine.shards[shard].epoch

    def _take(self, message: pb.WorkerMessage, *values: float) -> None:
        self.run.take(self.session, message, memoryview(np.array(values, "<f8").tobytes()))


BAD = [{"samples": 0}, {"loss": float("nan")}, {"version": 1}]


@pytest.mark.parametrize("numbers", BAD, ids=str)
def test_the_right_push_afterwards_counts_alone(numbers: dict[str, float]) -> None:
    training = Training()
    training.push(0, 1000.0, **numbers)
    assert training.run.engine.workers["w"].rejected == {"numbers": 1}
    # What was refused is given up, and assigned anew.
    training.pull()
    training.push(0, 1.0)
    training.push(1, 2.0)
    assert training.run.engine.phase == "done"
    assert training.run.store is not None
    assert training.run.store.theta.tolist() == [-3.0]


@pytest.mark.parametrize("numbers", BAD, ids=str)
def test_who_keeps_sending_wrong_numbers_gets_no_more_work(numbers: dict[str, float]) -> None:
    training = Training()
    for _ in range(3):
        training.push(0, 1000.0, **numbers)
        training.pull()
    # The job has no other worker, so it ends, and says why.
    assert training.run.engine.phase == "failed"
    assert "3 bad pushes" in training.run.engine.reason
