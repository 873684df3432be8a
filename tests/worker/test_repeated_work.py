"""Work that comes twice is computed once, unless the server has said that the first did not count."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.framing import Message, decode_server_message, decode_worker_message, encode, frame, whole
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import Gradient, Identity, Trainer

JOB = Job.from_dict(
    {
        "task": {"use": "linear_regression"},
        "data": {"source": "builtin:linear", "shards": 2},
        "train": {"dtype": "float64"},
    }
)


class Script:
    """A stream whose server says what is on a list; keeps what the worker says."""

    address = "script"
    is_beside = False

    def __init__(self, messages: list[pb.ServerMessage]) -> None:
        self._messages = messages
        self.said: list[pb.WorkerMessage] = []
        self.last_sent = 0.0

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        await self.send_all([frame(message, payload)])

    async def send_all(self, messages: Sequence[Message]) -> None:
        self.said += [decode_worker_message(whole(message))[0] for message in messages]

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        await asyncio.sleep(0)
        return decode_server_message(encode(self._messages.pop(0))) if self._messages else None

    def has_arrived(self) -> bool:
        return bool(self._messages)


def work(*names: tuple[int, int, int]) -> pb.ServerMessage:
    assignments = [pb.Assignment(shard=shard, epoch=epoch, step=step) for shard, epoch, step in names]
    return pb.ServerMessage(work=pb.Work(version=0, last=True, assignments=assignments))


def refusal(shard: int, step: int, code: pb.Refusal.Code.ValueType) -> pb.ServerMessage:
    return pb.ServerMessage(refusal=pb.Refusal(shard=shard, step=step, code=code, reason="as the script has it"))


def pushed(*messages: pb.ServerMessage) -> list[tuple[int, int, int]]:
    """Return the names of what a worker pushes when the server says this."""
    started = pb.JobStarted(job_id="j", job_json=JOB.to_json(), heartbeat_s=100.0)
    layout = pb.Layout(tensors=[pb.Tensor(name="w", shape=[1])])
    stream: Any = Script(
        [
            pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=1 << 20)),
            pb.ServerMessage(job=started),
            pb.ServerMessage(layout=layout),
            *messages,
        ]
    )

    async def compute(_learner: Learner, _theta: object, _shard: int, _step: int, _out: object) -> Gradient:
        return Gradient(1.0, {"w": np.ones(1)}, 1)

    asyncio.run(Trainer(Identity("w"), Path(), compute).follow(stream))
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
