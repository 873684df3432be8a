"""The workers' service: one bidirectional stream each."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc

from paramserver.server.following import Follower
from paramserver.server.session import Session
from paramserver.server.shell import Shell
from paramserver.server.store import CHUNK_BYTES
from paramserver.wire.errors import ParamserverError, ProtocolError, status_code
from paramserver.wire.framing import decode_worker_message, encode
from paramserver.wire.v1 import paramserver_pb2 as pb

PROTOCOL = 1

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["Training"].full_name


class TrainingService:
    """Joins workers and carries their messages to the shell and its answers back."""

    def __init__(self, shell: Shell | Follower) -> None:
        self._shell = shell

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register; messages stay bytes, see `wire.framing`."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Train": grpc.stream_stream_rpc_method_handler(self._train)}
        )

    async def _train(self, _requests: Any, context: Context) -> None:
        try:
            session = await self._join(context)
            if session is None:
                return
            await self._serve(session, context)
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))

    async def _join(self, context: Context) -> Session | None:
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
        session.send(encode(pb.ServerMessage(welcome=welcome)))
        return session

    async def _serve(self, session: Session, context: Context) -> None:
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
                if message.WhichOneof("kind") == "leave":
                    reason = f"it left: {message.leave.reason or 'no reason given'}"
                    break
                self._shell.take(session, message, payload)
        finally:
            self._shell.leave(session, reason)
            writer.cancel()
            session.end()


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
        await context.write(message)
    return True


def _retrieve(writer: asyncio.Task[None]) -> None:
    """Look at how the writer ended: if its stream broke or was aborted, the reading ends and tells."""
    if not writer.cancelled():
        writer.exception()
