"""A server that says what is on a list, for tests of what a worker does about it."""

from __future__ import annotations

import asyncio
import math
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


def followed(job: Job, *messages: pb.ServerMessage, step_s: float = math.inf) -> Script:
    """Return the stream of a worker that is told this of a job, and has gradients of ones as if in `step_s` seconds."""
    stream: Any = Script(
        [
            pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=1 << 20)),
            pb.ServerMessage(job=pb.JobStarted(job_id="j", job_json=job.to_json(), heartbeat_s=100.0)),
            pb.ServerMessage(layout=pb.Layout(tensors=[pb.Tensor(name="w", shape=[1])])),
            *messages,
        ]
    )

    async def compute(_learner: Learner, _theta: object, _shard: int, _step: int, _out: object) -> Gradient:
        return Gradient(1.0, {"w": np.ones(1)}, 1)

    trainer = Trainer(Identity("w"), Path(), compute)
    trainer._last_step_s = step_s
    asyncio.run(trainer.follow(stream))
    script: Script = stream
    return script
