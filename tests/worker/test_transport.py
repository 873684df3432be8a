"""Whether memory is shared: `auto` falls back without a word, `shm` says why it cannot."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any

import numpy as np
import pytest

from paramserver.wire import sharing
from paramserver.wire.errors import ProtocolError
from paramserver.wire.framing import decode_server_message, encode
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.sharing import PROBE_BYTES, Segment
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.trainer import Identity, Trainer

pytestmark = pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no memory to share")

JOB = Job.from_dict({"task": {"use": "linear_regression"}, "data": {"source": "builtin:linear"}})
NOBODY = pb.SharedMemory(pid=2**22 + 1, descriptor=3)


class Script:
    """A stream whose server says what is on a list; keeps the proofs that the worker sends."""

    address = "there:50051"
    is_beside = False
    last_sent = 0.0

    def __init__(self, *messages: pb.ServerMessage) -> None:
        self._messages = deque(messages)
        self.proofs: list[bytes] = []

    async def send(self, message: pb.WorkerMessage, _payload: Array | None = None) -> None:
        assert not message.HasField("share")

    async def share(self, proof: bytes, _takes_pipes: bool) -> None:
        self.proofs.append(proof)

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        return decode_server_message(encode(self._messages.popleft())) if self._messages else None


def proofs(transport: str, *messages: pb.ServerMessage) -> list[bytes]:
    """Return the proofs that a worker sends to a server that says this."""
    stream: Any = Script(*messages)
    asyncio.run(Trainer(Identity("w"), transport=transport).follow(stream))
    return stream.proofs


def welcome(probe: pb.SharedMemory | None) -> pb.ServerMessage:
    return pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=1 << 20, probe=probe))


def test_memory_that_is_seen_is_proved_unless_it_shall_not_be() -> None:
    probe = Segment.create(PROBE_BYTES, np.dtype(np.uint8))
    probe.values[:] = np.arange(PROBE_BYTES)
    seen = welcome(pb.SharedMemory(pid=os.getpid(), descriptor=probe.descriptor))
    assert proofs("auto", seen) == [bytes(range(PROBE_BYTES))]
    assert proofs("shm", seen) == [bytes(range(PROBE_BYTES))]
    assert proofs("stream", seen) == []


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (None, r"the server at there:50051 offers no shared memory"),
        (NOBODY, r"the server at there:50051 is on another machine, in another container or another user's"),
    ],
)
def test_memory_that_is_not_seen_is_done_without_or_named(probe: pb.SharedMemory | None, reason: str) -> None:
    assert proofs("auto", welcome(probe)) == []
    with pytest.raises(ProtocolError, match=f"transport shm is impossible: {reason}"):
        proofs("shm", welcome(probe))


def test_a_server_that_sends_theta_all_the_same_is_named() -> None:
    started = pb.ServerMessage(job=pb.JobStarted(job_id="j", job_json=JOB.to_json(), heartbeat_s=100.0))
    layout = pb.ServerMessage(layout=pb.Layout(tensors=[pb.Tensor(name="w", shape=[1])]))
    assert proofs("auto", started, layout) == []
    with pytest.raises(ProtocolError, match=r"the server at there:50051 sends θ in messages"):
        proofs("shm", started, layout)
