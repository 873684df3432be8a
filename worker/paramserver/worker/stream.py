"""The worker's end of the training stream: messages out, messages in, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from paramserver.wire.connection import connect
from paramserver.wire.errors import ParamserverError
from paramserver.wire.framing import Data, Message, Placed, decode_server_message, find_payload, frame, whole
from paramserver.wire.layout import Array
from paramserver.wire.line import Line
from paramserver.wire.pipes import PipePair
from paramserver.wire.v1 import paramserver_pb2 as pb

log = logging.getLogger(__name__)

METHOD = f"/{pb.DESCRIPTOR.services_by_name['Training'].full_name}/Train"

OPTIONS = (
    # A server that vanished without a word is noticed by an unanswered ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Reconnecting is the trainer's business, with its own backoff; gRPC's would come on top.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


#: An answer that comes within this time is waited for by the whole process, which saves two turns of the event loop: a
#: twentieth of a small round. …
SOON_S = 0.003
#: … But as often as this the loop gets a turn, …
TURN_S = 0.02
#: … and where nothing came so soon, all turns for this time.
LATER_S = 0.1


class Stream:
    """An open stream to one server process; `async with` closes it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._call: Any = self._channel.stream_stream(METHOD)()
        #: Done once the stream is at its end or broken, whether anybody waits for a message or not.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call.add_done_callback(self._note_end)
        #: One write at a time: the heartbeat and the trainer share the stream.
        self._writing = asyncio.Lock()
        #: Loop time of the last message sent.
        self.last_sent = 0.0
        #: Where messages go in place of the stream.
        self._line: Line | None = None
        #: Says where parameters go that come now, by their offset and size in bytes, so that they need not be copied;
        #: None: not known, or somebody may be reading there.
        self.place: Callable[[int, int], memoryview | None] | None = None
        #: What has come and was not received yet, by the line or on the way to it.
        self._arrived: deque[Data] = deque()
        #: What `arrives` has begun to read; what was received and put back.
        self._reading: asyncio.Future[Any] | None = None
        self._put_back: deque[tuple[pb.ServerMessage, memoryview] | None] = deque()
        #: With a line: the end of the stream, …
        self._ending: asyncio.Future[Any] | None = None
        #: … what is wrong with what comes, …
        self._fault: ParamserverError | None = None
        #: … and what waits for a message, or for all to be sent.
        self._waiting: asyncio.Future[None] | None = None
        #: When the event loop had its last turn, and from when on it may be passed by again; on the monotonic clock.
        self._turned = self._not_before = 0.0
        self._drained = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()
        for reading in (self._ending, self._reading):
            if reading is not None:
                reading.cancel()
        self._call.cancel()
        await self._channel.close()

    @property
    def is_beside(self) -> bool:
        """Do messages go beside the stream?"""
        return self._line is not None

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        """Send a message with the tensor bytes that belong to it; waits while the server does not keep up.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        await self.send_all([frame(message, payload)])

    async def send_all(self, messages: Sequence[Message]) -> None:
        """Send messages one after the other; when this returns, nobody looks at their tensors any more.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        if self._line is not None:
            await self._send_by_line(self._line, messages)
        else:
            async with self._writing:
                try:
                    for message in messages:
                        await self._call.write(whole(message))
                except asyncio.InvalidStateError:
                    # What gRPC says of a stream that was found broken by somebody else.
                    raise await self._failure() from None
        self.last_sent = asyncio.get_running_loop().time()

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        """Wait for the next message; None when the server has ended the stream."""
        if self._put_back:
            return self._put_back.popleft()
        if self._reading is not None:
            reading, self._reading = self._reading, None
            data = await reading
        else:
            data = self._arrived.popleft() if self._arrived else await self._next()
        if data is grpc.aio.EOF:
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await self._failure()
            return None
        return decode_server_message(data)

    async def arrives(self, done: asyncio.Future[Any], soon: bool = False) -> bool:
        """Wait until there is something to receive, or something else is done; whether the former is so.

        If it is said to come `soon`, nothing else that this process has to do matters for a moment.
        """
        if self._put_back:
            return not done.done()
        if self._line is not None and self._reading is None:
            if soon and not done.done():
                self._look_out()
            return await self._arrives_by_line(done)
        self._reading = self._reading or asyncio.ensure_future(self._next())
        await asyncio.wait((self._reading, done), return_when=asyncio.FIRST_COMPLETED)
        return self._reading.done()

    async def _arrives_by_line(self, done: asyncio.Future[Any]) -> bool:
        assert self._ending is not None

        def wake(_done: asyncio.Future[Any]) -> None:
            self._wake()

        done.add_done_callback(wake)
        try:
            while not (self._arrived or self._ending.done() or self._fault or done.done()):
                await self._wait()
        finally:
            done.remove_done_callback(wake)
        return bool(self._arrived or self._ending.done() or self._fault)

    def has_arrived(self) -> bool:
        """Whether there is something to receive, once others who want the core have had their turn."""
        os.sched_yield()
        if self._line is not None and not self._arrived:
            self._line.read()
        return bool(self._put_back or self._arrived)

    def put_back(self, received: tuple[pb.ServerMessage, memoryview] | None) -> None:
        """Have `receive` return this next."""
        self._put_back.append(received)

    async def share(self, proof: bytes, takes_pipes: bool) -> None:
        """Prove that memory is shared, and go over to pipes with a server that takes them.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        await self.send(pb.WorkerMessage(share=pb.Share(proof=proof)))
        if not takes_pipes:
            return
        pair = PipePair()
        pipes = pb.Pipes(pid=os.getpid(), up=pair.up, down=pair.down)
        try:
            moved = await self._move(pb.Move(pipes=pipes))
        except BaseException:
            pair.close()
            raise
        if moved:
            self._go_on(*pair.take())
        else:
            pair.close()

    async def connect(self, port: int, ticket: bytes) -> None:
        """Go over to a connection to a port of the server's host; where none can be had, all stays as it is.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        host, colon, _ = self.address.rpartition(":")
        if not colon or self.address.startswith("unix:"):
            return
        try:
            connection = await connect(host.removeprefix("[").removesuffix("]"), port, ticket)
        except (OSError, TimeoutError) as error:
            why = str(error) or "nobody answers"
            log.info("port %d of %s cannot be reached (%s): messages go through gRPC", port, host, why)
            return
        with contextlib.closing(connection):
            if await self._move(pb.Move(connection=True)):
                descriptor = connection.detach()
                self._go_on(descriptor, descriptor)
                log.info("messages for %s go through port %d", self.address, port)

    async def _move(self, move: pb.Move) -> bool:
        """Ask the server to go another way, and return whether it does; what comes before the answer has arrived."""
        await self.send(pb.WorkerMessage(move=move))
        while (data := await self._call.read()) is not grpc.aio.EOF:
            message, _ = decode_server_message(data)
            if message.HasField("moved"):
                return bool(message.moved.done)
            self._arrived.append(data)
        raise await self._failure()

    def _go_on(self, reading: int, writing: int) -> None:
        """Have messages go through these descriptors; nothing else comes on the stream but its end."""
        ending = self._ending = asyncio.ensure_future(self._call.read())
        ending.add_done_callback(self._end)
        self._line = Line(reading, writing, self._take, self._drained.set, self._fail)
        self._line.place = self._place

    def _place(self, begun: memoryview, size: int) -> Placed | None:
        found = None if self.place is None else find_payload(begun, size)
        if found is None:
            return None
        start, stop = found
        header = bytes(begun[:start])
        message, _ = decode_server_message(header)
        assert self.place is not None
        room = self.place(message.work.offset, size - stop) if message.HasField("work") else None
        return None if room is None else Placed(header, room)

    def _take(self, data: Data) -> None:
        self._arrived.append(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _note_end(self, _call: Any = None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, error: ParamserverError) -> None:
        self._fault = error
        self._note_end()
        self._wake()
        self._drained.set()

    def _end(self, ending: asyncio.Future[Any]) -> None:
        if not ending.cancelled():
            ending.exception()
        self._wake()
        self._drained.set()

    async def _next(self) -> Any:
        """Wait for the next message, wherever it comes; EOF at the end of the stream."""
        if self._line is None or self._ending is None:
            return await self._call.read()
        self._look_out()
        while not self._arrived:
            if self._ending.done():
                # What was said before the end may still be on its way.
                self._line.read()
                if not self._arrived:
                    return self._ending.result()
            elif self._fault is not None:
                raise self._fault
            else:
                await self._wait()
        return self._arrived.popleft()

    async def _wait(self) -> None:
        """Wait until something has come, or nothing more will."""
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting
        self._turned = time.monotonic()

    def _look_out(self) -> None:
        """Wait for a message past the event loop, if one may come soon."""
        while self._line is not None and not self._arrived:
            now = time.monotonic()
            if not self._not_before <= now < self._turned + TURN_S:
                return
            if not self._line.wait(SOON_S):
                self._not_before = now + LATER_S

    async def _send_by_line(self, line: Line, messages: Sequence[Message]) -> None:
        assert self._ending is not None
        line.outbox.append(messages)
        line.flush()
        while not line.is_drained and not self._ending.done() and self._fault is None:
            self._drained.clear()
            await self._drained.wait()
        if self._ending.done():
            raise await self._failure()
        if self._fault is not None:
            raise self._fault

    async def _failure(self) -> grpc.aio.AioRpcError:
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNAVAILABLE, "the server ended the stream"
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
