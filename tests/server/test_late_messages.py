"""What a worker sent before it heard of a new job is about the old one."""

from __future__ import annotations

import pytest

from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb

JOB = Job.from_dict({"task": {"use": "t"}, "data": {"source": "d", "shards": 1}})


class TwoJobs:
    """A worker whose stream has just gone from one job to the next."""

    def __init__(self) -> None:
        self.session = Session(pb.Join(protocol=1, worker="w"))
        for number in (1, 2):
            self.run = Run(f"job {number}", JOB, {"w": self.session}, clock=lambda: 0.0, epoch=number)
            self.run.welcome(self.session)
        self.session._outbox.clear()

    def take(self, **kind: object) -> None:
        self.run.take(self.session, pb.WorkerMessage(**kind), memoryview(b""))

    @property
    def works(self) -> int:
        sent = [message for answer in self.session._outbox for message in answer]
        return sum(decode_server_message(data)[0].HasField("work") for data in sent)


LATE = {
    "a pull": {"pull": pb.PullWork()},
    "a pull by name": {"pull": pb.PullWork(job_id="job 1")},
    "a failure": {"failure": pb.Failure(reason="no data")},
    "a push that pulls": {"push": pb.Push(shard=0, epoch=2, pull=True)},
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_what_belongs_to_the_job_before_changes_nothing(late: dict[str, object]) -> None:
    jobs = TwoJobs()
    jobs.take(**late)
    assert jobs.works == 0
    assert jobs.run.engine.phase == "survey"
    jobs.take(pull=pb.PullWork(job_id="job 2"))
    assert jobs.works == 1


def test_the_first_job_of_a_stream_needs_no_name() -> None:
    session = Session(pb.Join(protocol=1, worker="w"))
    run = Run("job", JOB, {"w": session}, clock=lambda: 0.0, epoch=0)
    run.welcome(session)
    run.take(session, pb.WorkerMessage(pull=pb.PullWork()), memoryview(b""))
    assert run.engine.shards[0].busy
