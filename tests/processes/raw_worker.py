"""A worker written from the .proto alone: plain stubs, no code of the worker or of our framing."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import DEADLINE_S, Array, Control

METHOD = "/paramserver.wire.v1.Training/Train"


class RawWorker:
    """One training stream, driven message by message."""

    def __init__(self, control: Control, name: str, join: pb.Join | None = None) -> None:
        self.name = name
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(control.address)
        self._call = self._channel.stream_stream(METHOD)(iter(self._outgoing.get, None), timeout=DEADLINE_S)
        self.theta: dict[int, bytes] = {}
        self.chunk_bytes = 0
        #: Of the job that the server told of last; the first pull for it has to name it.
        self.job_id = ""
        if join is None:
            self.send(join=pb.Join(protocol=1, worker=name))
            self.chunk_bytes = self.expect("welcome").welcome.chunk_bytes

    def send(self, payload: bytes = b"", **kind: Any) -> None:
        self.send_bytes(pb.WorkerMessage(payload=payload, **kind).SerializeToString())

    def send_bytes(self, data: bytes) -> None:
        self._outgoing.put(data)

    def messages(self) -> Iterator[pb.ServerMessage]:
        for data in self._call:
            yield self._read(data)

    def receive(self) -> pb.ServerMessage:
        return self._read(next(self._call))

    def _read(self, data: bytes) -> pb.ServerMessage:
        message = pb.ServerMessage.FromString(data)
        if message.HasField("job"):
            self.job_id = message.job.job_id
        return message

    def expect(self, kind: str) -> pb.ServerMessage:
        """Return the next message, which must be of this kind."""
        message = self.receive()
        assert message.WhichOneof("kind") == kind, message
        return message

    def until(self, kind: str) -> pb.ServerMessage:
        """Return the next message of this kind, passing over others."""
        return next(message for message in self.messages() if message.WhichOneof("kind") == kind)

    def status_code(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the stream and return how it ended."""
        with contextlib.suppress(grpc.RpcError):
            for _ in self._call:
                pass
        return self._call.code(), self._call.details()

    def pull(self, **held: int) -> None:
        self.send(pull=pb.PullWork(job_id=self.job_id, **held))

    def work(self) -> tuple[pb.Work, bytes]:
        """Return the next work, and the parameters that came with it."""
        parts: list[bytes] = []
        for message in self.messages():
            if message.WhichOneof("kind") == "work":
                assert message.work.offset * 8 == sum(map(len, parts)) or not message.payload
                parts.append(message.payload)
                if message.work.last:
                    return message.work, b"".join(parts)
            else:
                assert message.WhichOneof("kind") in ("census", "layout", "job"), message
        raise AssertionError("the stream ended")

    def begin(self, shards: int, theta: dict[str, Array]) -> tuple[pb.Work, bytes]:
        """Take a float64 job through survey and initialisation to the first gradients, as the only worker."""
        self.pull()
        work, _ = self.work()
        assert [a.kind for a in work.assignments] == [pb.Assignment.SURVEY] * shards
        for a in work.assignments:
            self.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=10, features=3))
        self.pull()
        work, _ = self.work()
        (initial,) = work.assignments
        assert initial.kind == pb.Assignment.INITIAL
        tensors = [pb.Tensor(name=name, shape=value.shape) for name, value in theta.items()]
        flat = np.concatenate([value.ravel() for value in theta.values()])
        count = self.chunk_bytes // 8
        for start in range(0, flat.size, count):
            self.send(
                flat[start : start + count].tobytes(),
                initial=pb.Initial(
                    shard=initial.shard, epoch=initial.epoch, tensors=tensors if start == 0 else [], offset=start
                ),
            )
        self.pull()
        return self.work()

    def push(self, work: pb.Work, which: int, gradient: Array, pull: bool = False, **change: Any) -> None:
        """Push a gradient, in chunks, for one of the assignments; `change` replaces fields."""
        a = work.assignments[which]
        count = (self.chunk_bytes or 1 << 20) // 8
        for start in range(0, gradient.size, count):
            last = start + count >= gradient.size
            fields = {
                "shard": a.shard,
                "epoch": a.epoch,
                "step": a.step,
                "version": work.version,
                "samples": 10,
                "loss": 1.0,
                "offset": start,
                "pull": pull and last,
            }
            self.send(gradient[start : start + count].tobytes(), push=pb.Push(**(fields | change)))

    def push_together(self, work: pb.Work, gradients: list[Array]) -> None:
        """Push gradients for all assignments in one message, and pull."""
        pushes = [
            pb.Push(shard=a.shard, epoch=a.epoch, step=a.step, version=work.version, samples=10, loss=1.0)
            for a in work.assignments
        ]
        pushes[-1].pull = True
        self.send(b"".join(gradient.tobytes() for gradient in gradients), pushes=pb.Pushes(pushes=pushes))

    def close(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()
