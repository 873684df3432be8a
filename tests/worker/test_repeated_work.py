"""Work that comes twice is computed once, unless the server has said that the first did not count."""

from __future__ import annotations

from paramserver.wire.job import Job
from paramserver.wire.v1 import paramserver_pb2 as pb
from worker.script import followed, work

JOB = Job.from_dict(
    {
        "task": {"use": "linear_regression"},
        "data": {"source": "builtin:linear", "shards": 2},
        "train": {"dtype": "float64"},
    }
)


def refusal(shard: int, step: int, code: pb.Refusal.Code.ValueType) -> pb.ServerMessage:
    return pb.ServerMessage(refusal=pb.Refusal(shard=shard, step=step, code=code, reason="as the script has it"))


def pushed(*messages: pb.ServerMessage) -> list[tuple[int, int, int]]:
    """Return the names of what a worker pushes when the server says this."""
    stream = followed(JOB, *messages)
    together = [push for message in stream.said for push in [message.push, *message.pushes.pushes] if push.samples]
    return [(push.shard, push.epoch, push.step) for push in together]


def test_work_that_comes_twice_is_done_once() -> None:
    both = (0, 1, 5), (1, 2, 5)
    assert pushed(work(*both), work(*both)) == [*both]
    assert pushed(work(*both), work((0, 1, 6), both[1])) == [*both, (0, 1, 6)], "only what is new is done"
    assert pushed(work(*both), refusal(0, 5, pb.Refusal.DUPLICATE), work(*both)) == [*both]


def test_what_did_not_count_or_is_under_a_new_lease_is_done_again() -> None:
    name = (0, 1, 5)
    for code in (pb.Refusal.STALE, pb.Refusal.INVALID, pb.Refusal.FENCED):
        assert pushed(work(name), refusal(0, 5, code), work(name)) == [name, name]
    assert pushed(work(name), work((0, 3, 5))) == [name, (0, 3, 5)]
