"""Several servers and their workers in one event loop: real shells and services, queues in place of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.server.coordinator import Coordinator
from paramserver.server.following import Follower
from paramserver.server.links import Link
from paramserver.server.partition import PartitionService
from paramserver.server.place import Place
from paramserver.server.session import Session
from paramserver.server.shell import Shell
from paramserver.server.snapshots import Saved, StateDirectory
from paramserver.server.store import CHUNK_BYTES
from paramserver.wire.errors import ParamserverError, ProtocolError, StateError, status_code
from paramserver.wire.framing import Message, decode_server_message, decode_worker_message, encode, frame, whole
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.tables import tensor_names
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.trainer import Compute, Identity, Trainer
from server.inprocess import at_once

#: Nothing in these tests takes this long unless it hangs.
DEADLINE_S = 30.0

#: Does something when θ has reached a version.
Deed = Callable[["Servers"], None]


def gone() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="in process: gone"
    )


class WatchedSession(Session):
    """A session that tells of its end."""

    on_close: Callable[[], None]

    def close(self) -> None:
        super().close()
        self.on_close()


class Pipe:
    """A worker's stream to one server; when that is killed, it breaks."""

    is_beside = False

    def __init__(self, shell: Shell | Follower, address: str, shares: bool) -> None:
        self._shell = shell
        self._shares = shares
        self._ready: list[tuple[pb.ServerMessage, memoryview]] = []
        self._reading: asyncio.Future[None] | None = None
        self.address = address
        self.session: WatchedSession | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_sent = 0.0

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        await self.send_all([frame(message, payload)])

    async def send_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._send(*decode_worker_message(whole(message)))

    async def _send(self, message: pb.WorkerMessage, view: memoryview) -> None:
        if message.WhichOneof("kind") == "join":
            self._shell.check(message.join)
            self.session = WatchedSession(message.join)
            self.session.on_close = self.note_end
            welcome = pb.Welcome(protocol=1, chunk_bytes=CHUNK_BYTES, cluster=self._shell.cluster)
            if self._shares and self._shell.probe is not None:
                welcome.probe.pid, welcome.probe.descriptor = os.getpid(), self._shell.probe.descriptor
            self.session.send(encode(pb.ServerMessage(welcome=welcome)))
            self._shell.join(self.session)
        else:
            assert self.session is not None
            if self.session.closed:
                raise gone()
            self._shell.take(self.session, message, view)
        await asyncio.sleep(0)

    async def share(self, proof: bytes, _takes_pipes: bool) -> None:
        await self.send(pb.WorkerMessage(share=pb.Share(proof=proof)))

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        if self._reading is not None:
            await self._reading
            self._reading = None
        else:
            await self._read()
        return self._ready.pop(0) if self._ready else None

    async def _read(self) -> None:
        assert self.session is not None
        while not self._ready:
            messages = await self.session.next_answer()
            if messages is None:
                return
            self._ready = [decode_server_message(whole(data)) for data in messages]

    def note_end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def arrives(self, done: asyncio.Future[Any], soon: bool = False) -> bool:  # noqa: ARG002
        self._reading = self._reading or asyncio.ensure_future(self._read())
        await asyncio.wait((self._reading, done), return_when=asyncio.FIRST_COMPLETED)
        return self._reading.done()

    def has_arrived(self) -> bool:
        return bool(self._ready)

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self.session is not None:
            self.session.close()
            self._shell.leave(self.session, "its connection broke")


class Call:
    """Both ends of the coordinator's stream to a partition."""

    def __init__(self, follower: Follower) -> None:
        self._orders: asyncio.Queue[bytes] = asyncio.Queue()
        self._reports: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._error: grpc.aio.AioRpcError | None = None
        self.serving = asyncio.create_task(self._serve(follower))

    async def _serve(self, follower: Follower) -> None:
        end = self

        class Context:
            async def read(self) -> pb.Order:
                return pb.Order.FromString(await end._orders.get())

            async def write(self, report: pb.Report) -> None:
                end._reports.put_nowait(report.SerializeToString())

            async def abort(self, code: grpc.StatusCode, details: str) -> None:
                end._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)

        context: Any = Context()
        try:
            await PartitionService(follower).Follow(None, context)
        finally:
            self._error = self._error or gone()
            self._reports.put_nowait(None)

    async def write(self, order: pb.Order) -> None:
        self._orders.put_nowait(order.SerializeToString())

    async def read(self) -> pb.Report:
        data = await self._reports.get()
        if data is None:
            assert self._error is not None
            raise self._error
        return pb.Report.FromString(data)

    def cancel(self) -> None:
        self.serving.cancel()


class Servers:
    """K servers that share θ, the coordinator first; with a folder each keeps its state there."""

    def __init__(
        self, count: int, folder: Path | None = None, shares: bool = False, strangers: Sequence[str] = ()
    ) -> None:
        self.count = count
        self._folder = folder
        self._shares = shares
        #: Workers that share memory with nobody.
        self._strangers = strangers
        self._shells: list[Any] = [None] * count
        self._directories: list[StateDirectory | None] = [None] * count
        self._calls: list[list[Call]] = [[] for _ in range(count)]
        self._leading: asyncio.Task[None] | None = None
        self._pipes: dict[str, list[Pipe]] = {}
        for number in reversed(range(count)):
            self.start(number)

    @property
    def coordinator(self) -> Coordinator:
        found: Coordinator = self._shells[0]
        return found

    def start(self, number: int) -> None:
        directory = None if self._folder is None else StateDirectory(self._folder / str(number))
        self._directories[number] = directory
        if number:
            self._shells[number] = Follower(Place(number, self.count), directory)
            return
        coordinator = self._shells[0] = Coordinator([str(n) for n in range(1, self.count)], directory)
        self._leading = asyncio.create_task(coordinator.lead())

    def kill(self, number: int) -> None:
        """Let go of all that a server has but its directory, and start it again."""
        directory, shell = self._directories[number], self._shells[number]
        if number == 0:
            assert self._leading is not None
            self._leading.cancel()
        for call in self._calls[number]:
            call.cancel()
        shell.end_streams()
        shell.sessions.clear()
        if directory is not None:
            # What it was about to write stays unwritten.
            directory.save = killed  # type: ignore[method-assign]
            with directory._writing:
                directory.close()
        self.start(number)

    def link(self, address: str, *arguments: Any) -> Link:
        """Return what takes the place of the coordinator's `Link`."""
        link, servers, number = Link(address, *arguments), self, int(address)

        class Stub:
            def Follow(self) -> Call:
                call = Call(servers._shells[number])
                servers._calls[number].append(call)
                servers._calls[0].append(call)
                return call

            async def Read(self, request: pb.ReadRequest) -> AsyncIterator[pb.ReadReply]:
                context: Any = None
                async for reply in PartitionService(servers._shells[number]).Read(request, context):
                    yield pb.ReadReply.FromString(reply.SerializeToString())

        link._stub = Stub()
        return link

    async def work(self, name: str, compute: Compute) -> None:
        """Be a worker that comes back whenever a server has sent it away."""
        shares = self._shares and name not in self._strangers
        trainer = Trainer(Identity(name), compute=compute, transport="auto" if shares else "stream")
        while True:
            pipes = [Pipe(shell, str(n), shares) for n, shell in enumerate(self._shells)]
            self._pipes[name] = pipes
            streams: list[Any] = list(pipes)
            try:
                await trainer.follow(streams[0], streams[1:])
            except grpc.RpcError:
                pass
            except ParamserverError as error:
                if status_code(error) is not grpc.StatusCode.UNAVAILABLE and not isinstance(error, ProtocolError):
                    raise
            finally:
                for pipe in pipes:
                    pipe.close()
            await asyncio.sleep(0.002)

    async def train(self, job: Job, computes: dict[str, Compute], deeds: dict[int, Deed]) -> None:
        """Train to the end; each deed is done once θ has reached its version."""
        while not self.coordinator._is_open:
            await asyncio.sleep(0.001)
        await self.coordinator.submit("job", job)
        self.workers = {name: asyncio.create_task(self.work(name, c)) for name, c in computes.items()}
        due = sorted(deeds)
        while due or not self._ended():
            run = self.coordinator.run
            if due and run is not None and run.engine.version >= due[0]:
                deeds[due.pop(0)](self)
            for worker in self.workers.values():
                if worker.done() and not worker.cancelled():
                    worker.result()
            await asyncio.sleep(0)
        assert self.coordinator.run is not None
        assert self.coordinator.run.engine.phase == "done", self.coordinator.run.engine.reason

    def _ended(self) -> bool:
        return self.coordinator._is_open and self.coordinator.run is not None and self.coordinator.run.engine.ended

    def kill_worker(self, name: str, compute: Compute = at_once) -> None:
        """Let a worker vanish, and start it again with nothing but its name."""
        self.workers[name].cancel()
        self.workers[name] = asyncio.create_task(self.work(name, compute))

    async def theta(self) -> dict[str, Array]:
        """Return all parameters, a table as its keys and rows."""
        run = self.coordinator.run
        assert run is not None
        assert run.store is not None
        captured = await run.capture()
        flat = np.frombuffer(b"".join([bytes(piece) async for piece in captured.theta]), run.store.layout.dtype)
        found = run.store.layout.whole.views(flat)
        for name, table in zip(run.tables.tables if run.tables else (), captured.tables, strict=True):
            pieces = [piece async for piece in table]
            assert sum(piece.keys.size for piece in pieces) == pieces[0].total
            keys, rows = tensor_names(name)
            found[keys] = np.concatenate([piece.keys for piece in pieces])
            found[rows] = np.concatenate([piece.rows for piece in pieces])
        return found

    async def close(self) -> None:
        workers = getattr(self, "workers", {}).values()
        tasks = [*workers, *([self._leading] if self._leading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        calls = [call for calls in self._calls for call in calls]
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.serving for call in calls), return_exceptions=True)
        for shell in self._shells:
            with contextlib.suppress(ParamserverError):
                await shell.close()
        for directory in self._directories:
            if directory is not None:
                directory.close()


def killed(*_: Any) -> Saved:
    """Stand in for the write of a server that is no more."""
    raise StateError("killed")


def train(
    monkeypatch: pytest.MonkeyPatch,
    job: Job | dict[str, Any],
    count: int,
    folder: Path | None = None,
    deeds: dict[int, Deed] | None = None,
    computes: dict[str, Compute] | None = None,
    shares: bool = False,
    strangers: Sequence[str] = (),
) -> dict[str, bytes]:
    """Train a job on so many servers and return the bits of θ."""
    tables = (job if isinstance(job, Job) else Job.from_dict(job)).model_dump()
    tables["server"]["partitions"] = count
    theta: dict[str, Array] = {}

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            servers = Servers(count, folder, shares, strangers)
            monkeypatch.setattr("paramserver.server.coordinator.Link", servers.link)
            try:
                await servers.train(Job.from_dict(tables), computes or {"a": at_once, "b": at_once}, deeds or {})
                theta.update(await servers.theta())
            finally:
                await servers.close()

    asyncio.run(run())
    return {name: values.tobytes() for name, values in theta.items()}


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the kinds of all messages that workers send to servers other than the coordinator; it fills up later."""
    kinds: list[str] = []
    send = Pipe._send

    async def listen(pipe: Pipe, message: pb.WorkerMessage, view: memoryview) -> None:
        if pipe.address != "0":
            kinds.append(str(message.WhichOneof("kind")))
        await send(pipe, message, view)

    monkeypatch.setattr(Pipe, "_send", listen)
    return kinds
