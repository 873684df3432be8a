"""When the server itself fails at an update, the job ends with the reason, and nobody is left waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.server import session
from paramserver.server.run import Run
from paramserver.server.session import MAX_PARAMETERS_WAITING, Session
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb

JOB: dict[str, Any] = {
    "task": {"use": "unknown to the server"},
    "data": {"source": "unknown to the server", "shards": 1},
    "train": {"steps": 5, "dtype": "float64"},
}


class Training:
    """A run in its first round with one worker, without a network."""

    def __init__(self) -> None:
        self.session = Session(pb.Join(protocol=1, worker="w"))
        self.now = 0.0
        self.run = Run("job", Job.from_dict(JOB), {"w": self.session}, clock=lambda: self.now, epoch=0)
        self.run.welcome(self.session)
        self.take(pb.WorkerMessage(pull=pb.PullWork()))
        self.take(pb.WorkerMessage(survey=pb.Survey(shard=0, epoch=1, rows=1, features=1)))
        self.take(pb.WorkerMessage(pull=pb.PullWork()))
        tensors = [pb.Tensor(name="t", shape=[2])]
        self.take(pb.WorkerMessage(initial=pb.Initial(shard=0, epoch=1, tensors=tensors)), 1.0, 2.0)
        self.read()
        self.take(pb.WorkerMessage(pull=pb.PullWork()))
        self.read()

    def push(self, step: int) -> None:
        push = pb.Push(shard=0, epoch=1, step=step, version=step, samples=1, loss=0.5, pull=True)
        self.take(pb.WorkerMessage(push=push), 1.0, 1.0)

    def take(self, message: pb.WorkerMessage, *values: float) -> None:
        self.run.take(self.session, message, memoryview(np.array(values, "<f8").tobytes()))

    def read(self) -> list[pb.ServerMessage]:
        """Return what the worker was told since the last time."""
        answers = [*self.session._outbox]
        self.session._outbox.clear()
        return [decode_server_message(data)[0] for answer in answers for data in answer]


def test_an_update_that_fails_ends_the_job_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training()
    training.push(0)
    training.read()
    store = training.run.store
    assert store is not None
    before = int(store._segment.sequence[0])
    assert store.is_whole

    def fail(*_: object) -> None:
        raise MemoryError("no room for the gradient")

    monkeypatch.setattr(store.update, "spread", fail)
    training.push(1)
    engine = training.run.engine
    assert engine.phase == "failed"
    assert engine.reason == "the server failed at version 2: MemoryError: no room for the gradient"
    ended = [message.ended for message in training.read() if message.HasField("ended")]
    assert [(e.status, e.reason) for e in ended] == [("failed", engine.reason)]
    assert "no room for the gradient" in caplog.text
    # A reader of the shared memory must not wait for the end of this update.
    assert int(store._segment.sequence[0]) == before + 2
    assert not store.is_whole, "θ may be changed in part"
    assert training.run.snapshot().parameters is None, "and must not be kept"
    # The server goes on: what still comes is refused, not a new failure.
    training.push(2)
    assert engine.phase == "failed"


def test_parameters_for_which_there_is_no_room_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paramserver.wire.sharing.os.pwrite", refuse)
    monkeypatch.setattr("paramserver.wire.sharing.AVAILABLE", True)
    training = Training()
    assert training.run.engine.phase == "failed"
    assert "there is no room for 2 parameters: [Errno 28] No space left on device" in training.run.engine.reason


def test_a_server_that_cannot_begin_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ImportError("Numba needs NumPy 2.1 or less")

    monkeypatch.setattr("paramserver.server.run.Store", refuse)
    training = Training()
    assert training.run.engine.phase == "failed"
    assert training.run.engine.reason.endswith("parameters: ImportError: Numba needs NumPy 2.1 or less")
    assert "the job cannot begin" in caplog.text


def test_parameters_that_make_no_sense_end_only_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("of a kind that nobody thought of")

    monkeypatch.setattr("paramserver.server.run.is_finite", refuse)
    runs: list[Run] = []
    welcome = Run.welcome

    def remembered(run: Run, joined: Session) -> None:
        runs.append(run)
        welcome(run, joined)

    monkeypatch.setattr(Run, "welcome", remembered)
    with pytest.raises(ValueError, match="nobody thought of"):
        Training()
    assert runs[0].engine.phase == "initialise"


def test_a_failure_between_two_updates_ends_the_job_too(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()

    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(training.run.history, "record", fail)
    training.push(0)
    assert training.run.engine.phase == "failed"
    assert "RuntimeError: a bug" in training.run.engine.reason
    assert training.run.store is not None
    assert training.run.store.is_whole


def test_parameters_do_not_pile_up_for_a_worker_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # θ is small here, and shall not be taken for a refusal.
    monkeypatch.setattr(session, "SMALL", 0)
    training = Training()
    cuts: list[int] = []
    training.session.cut = lambda: cuts.append(1)
    for number in range(20):
        training.take(pb.WorkerMessage(pull=pb.PullWork()))
        assert len(training.session._outbox) <= MAX_PARAMETERS_WAITING
        assert bool(cuts) == (number >= MAX_PARAMETERS_WAITING)
    assert training.session.closed
    assert training.read() == []
