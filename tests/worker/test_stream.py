"""The worker's end of the stream with pipes beside it."""

from __future__ import annotations

import asyncio
import os

import pytest

from paramserver.wire import sharing
from paramserver.wire.pipes import PipePair, Pipes, open_pipes
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.stream import Stream


@pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no /proc to find pipes in")
def test_messages_that_come_at_once_are_received_in_their_order() -> None:
    async def received() -> list[str]:
        stream = Stream("127.0.0.1:1")
        stream._ending = asyncio.get_running_loop().create_future()
        pair = PipePair()
        reading, writing = open_pipes(os.getpid(), pair.up, pair.down)
        stream._pipes = Pipes(*pair.take(), stream._take, stream._room.set, stream._fail)
        first = asyncio.ensure_future(stream.receive())
        await asyncio.sleep(0)
        messages = [pb.ServerMessage(job=pb.JobStarted(job_id=job_id)).SerializeToString() for job_id in "abc"]
        os.write(writing, b"".join(len(data).to_bytes(4, "little") + data for data in messages))
        found = [await first, await stream.receive(), await stream.receive()]
        async with stream:
            os.close(reading)
            os.close(writing)
        return [message.job.job_id for answer in found if answer is not None for message in answer[:1]]

    assert asyncio.run(received()) == ["a", "b", "c"]
