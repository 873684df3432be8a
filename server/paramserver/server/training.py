"""The workers' service: one bidirectional stream each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import grpc

from paramserver.server.doorway import Doorway
from paramserver.server.following import Follower
from paramserver.server.session import Session
from paramserver.server.shell import Shell
from paramserver.server.store import CHUNK_BYTES
from paramserver.wire.errors import ParamserverError, ProtocolError, status_code
from paramserver.wire.framing import Data, decode_worker_message, encode, whole
from paramserver.wire.lookout import Lookout
from paramserver.wire.pipes import open_pipes
from paramserver.wire.v1 import paramserver_pb2 as pb

PROTOCOL = 1

#: How long a worker that has left has to read what is being written to it.
WRITE_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["Training"].full_name


class TrainingService:
    """Joins workers and carries their messages to the shell and its answers back."""

    def __init__(self, shell: Shell | Follower, doorway: Doorway | None = None) -> None:
        self._shell = shell
        self._doorway = doorway
        #: One of several servers waits for the others too.
        self._lookout = Lookout() if shell.place.partitions == 1 else None

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register; messages stay bytes, see `wire.framing`."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Train": grpc.stream_stream_rpc_method_handler(self._train)}
        )

    async def _train(self, _requests: Any, context: Context) -> None:
        ticket = b"" if self._doorway is None else self._doorway.issue()
        try:
            session = await self._join(context, ticket)
            if session is None:
                return
            await self._serve(session, context, ticket)
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))
        finally:
            if self._doorway is not None:
                self._doorway.revoke(ticket)

    async def _join(self, context: Context, ticket: bytes) -> Session | None:
        data = await context.read()
        if data is grpc.aio.EOF:
            return None
        message, _ = decode_worker_message(data)
        if message.WhichOneof("kind") != "join":
            raise ProtocolError(f"the first message must be join, not {message.WhichOneof('kind') or 'empty'}")
        join = message.join
        if join.protocol != PROTOCOL:
            raise ProtocolError(f"the worker speaks protocol {join.protocol}, this server speaks {PROTOCOL}")
        if not 1 <= len(join.worker) <= 256:
            raise ProtocolError(f"a worker name has 1 to 256 characters, this one {len(join.worker)}")
        self._shell.check(join)
        session = Session(join)
        welcome = pb.Welcome(protocol=PROTOCOL, chunk_bytes=CHUNK_BYTES, cluster=self._shell.cluster)
        if self._shell.probe is not None:
            welcome.probe.pid, welcome.probe.descriptor = os.getpid(), self._shell.probe.descriptor
            welcome.takes_pipes = True
        if self._doorway is not None:
            welcome.port, welcome.ticket = self._doorway.port, ticket
        session.send(encode(pb.ServerMessage(welcome=welcome)))
        return session

    async def _serve(self, session: Session, context: Context, ticket: bytes) -> None:
        """Read until the worker goes; a second task writes, so that neither direction waits for the other."""
        writer = asyncio.create_task(_write(session, context))
        writer.add_done_callback(_retrieve)
        reason = "its connection broke"
        serving = asyncio.current_task()
        assert serving is not None
        session.cut = serving.cancel
        try:
            self._shell.join(session)
            while (data := await context.read()) is not grpc.aio.EOF:
                message, payload = decode_worker_message(data)
                kind = message.WhichOneof("kind")
                if kind == "leave":
                    reason = _why(message.leave)
                    break
                if kind == "move":
                    left = await self._move(session, message.move, ticket)
                    if left is not None:
                        reason = await _first(left, context) or reason
                        break
                    continue
                self._shell.take(session, message, payload)
            self._shell.leave(session, reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_S), session.writing:
                    writer.cancel()
        finally:
            self._shell.leave(session, reason)
            writer.cancel()
            session.end()

    async def _move(self, session: Session, move: pb.Move, ticket: bytes) -> asyncio.Future[str] | None:
        """Go on where the worker would, if that can be opened; the future is why it left, or what went wrong."""
        descriptors = None
        if move.HasField("pipes"):
            if session.shares_memory:
                with contextlib.suppress(ProtocolError):
                    descriptors = open_pipes(move.pipes.pid, move.pipes.up, move.pipes.down)
            session.shares_memory = descriptors is not None
        elif self._doorway is not None:
            connection = await self._doorway.admit(ticket)
            if connection is not None:
                descriptor = connection.detach()
                descriptors = descriptor, descriptor
        session.send(encode(pb.ServerMessage(moved=pb.Moved(done=descriptors is not None))))
        if descriptors is None:
            return None
        left: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(data: Data) -> None:
            if left.done():
                return
            try:
                message, payload = decode_worker_message(data)
                if message.HasField("leave"):
                    left.set_result(_why(message.leave))
                else:
                    self._shell.take(session, message, payload)
            except Exception as error:
                left.set_exception(error)

        def fail(error: ParamserverError) -> None:
            if not left.done():
                left.set_exception(error)

        session.move(*descriptors, take, fail, lambda: self._shell.hear(session), self._lookout)
        return left


def _why(leave: pb.Leave) -> str:
    return f"it left: {leave.reason or 'no reason given'}"


async def _first(left: asyncio.Future[str], context: Context) -> str | None:
    """Wait until the worker leaves, and return why; None if its stream ends first."""
    reading = asyncio.ensure_future(context.read())
    try:
        await asyncio.wait((left, reading), return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            return left.result()
        if reading.result() is not grpc.aio.EOF:
            raise ProtocolError("a message came on the stream after the worker had gone another way")
        return None
    finally:
        reading.cancel()


async def _write(session: Session, context: Context) -> None:
    """Send what the session has to say, until the stream is to end; then end it, which ends the reading too."""
    while await _write_answer(session, context):
        # Nothing is held on to here: an answer can be as large as θ, and the next one may be long in coming.
        pass
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has ended the stream")


async def _write_answer(session: Session, context: Context) -> bool:
    answer = await session.next_answer()
    if answer is None:
        return False
    for message in answer:
        async with session.writing:
            await context.write(whole(message))
    return True


def _retrieve(writer: asyncio.Task[None]) -> None:
    """Look at how the writer ended: if its stream broke or was aborted, the reading ends and tells."""
    if not writer.cancelled():
        writer.exception()
