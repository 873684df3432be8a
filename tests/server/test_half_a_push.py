"""A push of which a part has come in when the job goes on otherwise."""

from __future__ import annotations

import numpy as np

from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.store import CHUNK_BYTES
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.wire.v1 import paramserver_pb2 as pb

SIZE = CHUNK_BYTES // 4 + 1


class HalfAPush:
    """A worker that has sent the first of the two chunks of a push."""

    def __init__(self) -> None:
        job = Job.from_dict({"task": {"use": "t"}, "data": {"source": "d", "shards": 1}, "train": {"steps": 9}})
        self.session = Session(pb.Join(protocol=1, worker="w"))
        self.run = Run("job", job, {"w": self.session}, clock=lambda: 0.0, epoch=0)
        self.run.welcome(self.session)
        self.values = np.zeros(SIZE, np.float32)
        self.take(pull=pb.PullWork())
        self.take(survey=pb.Survey(shard=0, epoch=1, rows=1, features=1))
        self.take(pull=pb.PullWork())
        tensors = Layout([("t", (SIZE,))], "float32").to_proto()
        for chunk in (0, 1):
            self.send(chunk, initial=pb.Initial(shard=0, epoch=1, tensors=tensors, offset=chunk * (SIZE - 1)))
        self.take(pull=pb.PullWork())
        self.session._outbox.clear()
        self.push(0)

    def take(self, payload: memoryview | None = None, **kind: object) -> None:
        self.run.take(self.session, pb.WorkerMessage(**kind), memoryview(b"") if payload is None else payload)

    def send(self, chunk: int, **kind: object) -> None:
        values = self.values[: SIZE - 1] if chunk == 0 else self.values[SIZE - 1 :]
        self.take(memoryview(values.tobytes()), **kind)

    def push(self, chunk: int) -> None:
        self.send(chunk, push=pb.Push(shard=0, epoch=1, samples=1, offset=chunk * (SIZE - 1), pull=chunk == 1))

    @property
    def answers(self) -> list[str]:
        sent = [decode_server_message(data)[0] for answer in self.session._outbox for data in answer]
        return [
            pb.Refusal.Code.Name(message.refusal.code) if message.HasField("refusal") else "work"
            for message in sent
            if message.HasField("refusal") or message.work.last
        ]


def test_its_worker_is_told_that_a_switch_has_made_it_worthless() -> None:
    half = HalfAPush()
    half.run.set_policy({"mode": "async"})
    half.push(1)
    assert half.run.engine.version == 0
    # Without the refusal it would take the work for a repetition of what it has done.
    assert half.answers == ["STALE", "work"]
    half.push(0)
    half.push(1)
    assert half.run.engine.version == 1
