"""A worker that only pulls, as a process of its own; for `paramserver bench pull`.

`python -m paramserver.client.bench.puller ADDRESS SIZE PULLS TRANSPORT SERVER_PID RESULT`. It takes an asynchronous job
through survey and initialisation, asks for θ over and over, and writes what that took to RESULT as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from paramserver.client.bench.memory import memory_mb
from paramserver.client.bench.running import cpu_s
from paramserver.wire.errors import ProtocolError
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.wire.memory import keep_freed_memory
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.partitions import Partitions, in_chunks, prove
from paramserver.worker.replica import Replica
from paramserver.worker.stream import Stream
from paramserver.worker.trainer import Identity


class Puller:
    """The worker's side of the stream, as far as pulls need it."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._job: Job | None = None
        self._chunk_bytes = 0
        self._replica: Replica | None = None

    async def join(self, transport: str) -> None:
        """Join, and pull for the first time once there is a job."""
        await self._stream.send(pb.WorkerMessage(join=Identity("puller").join()))
        welcome = (await self._next())[0].welcome
        self._chunk_bytes = welcome.chunk_bytes
        if transport != "stream":
            await self._stream.share(prove(welcome, self._stream.address), welcome.takes_pipes)
        started = (await self._next())[0].job
        self._job = Job.from_json(started.job_json)
        await self._stream.send(pb.WorkerMessage(pull=pb.PullWork(job_id=started.job_id)))

    async def answer(self) -> pb.Work:
        """Take in messages until the work that ends an answer; θ, if it was asked for, is whole then."""
        while True:
            message, payload = await self._next()
            if message.HasField("layout"):
                assert self._job is not None
                self._replica = Replica(message.layout, self._job, Partitions())
            elif message.HasField("work"):
                if payload.nbytes and self._replica is not None:
                    self._replica.take(message.work.offset, payload)
                if message.work.last:
                    if self._replica is not None:
                        self._replica.settle(message.work.version)
                    return message.work

    async def begin(self) -> None:
        """Do what there is to do before the first gradient."""
        while (assignment := (await self.answer()).assignments[0]).kind != pb.Assignment.GRADIENT:
            shard, epoch = assignment.shard, assignment.epoch
            if assignment.kind == pb.Assignment.SURVEY:
                survey = pb.Survey(shard=shard, epoch=epoch, rows=1, features=1)
                await self._stream.send(pb.WorkerMessage(survey=survey))
            else:
                theta = np.random.default_rng(0).random(self._size, dtype=np.float32)
                tensors = Layout([("theta", (self._size,))], "float32").to_proto()
                for start, chunk in in_chunks(theta, self._chunk_bytes):
                    initial = pb.Initial(shard=shard, epoch=epoch, offset=start, tensors=[] if start else tensors)
                    await self._stream.send(pb.WorkerMessage(initial=initial), chunk)
            await self.ask()

    async def ask(self) -> None:
        """Ask for θ once more, without having it."""
        await self._stream.send(pb.WorkerMessage(pull=pb.PullWork()))

    async def _next(self) -> tuple[pb.ServerMessage, memoryview]:
        received = await self._stream.receive()
        if received is None or received[0].HasField("ended"):
            raise ProtocolError("the server ended the job")
        return received


async def _pull(address: str, size: int, pulls: int, transport: str, server: int) -> dict[str, object]:
    async with Stream(address) as stream:
        puller = Puller(stream, size)
        await puller.join(transport)
        await puller.begin()
        pids = [server, os.getpid()]
        seconds: list[float] = []
        cpu_before = cpu_s(pids)
        for _ in range(pulls):
            started = time.perf_counter()
            await puller.ask()
            await puller.answer()
            seconds.append(time.perf_counter() - started)
        cpu = cpu_s(pids) - cpu_before
        peaks = {"server": memory_mb(server, "VmHWM"), "worker": memory_mb(os.getpid(), "VmHWM")}
    return {"seconds": seconds, "cpu_s": cpu, "peak_rss_mb": peaks}


def main() -> None:
    """Run to the end, and then say what was found."""
    address, size, pulls, transport, server, result = sys.argv[1:]
    keep_freed_memory()
    found = asyncio.run(_pull(address, int(size), int(pulls), transport, int(server)))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
