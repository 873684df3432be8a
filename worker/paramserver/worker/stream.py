"""The worker's end of the training stream: messages out, messages in, nothing else."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from types import TracebackType
from typing import Any, Self

import grpc

from paramserver.wire.errors import ProtocolError
from paramserver.wire.framing import decode_server_message, encode
from paramserver.wire.layout import Array
from paramserver.wire.pipes import PipePair, Pipes
from paramserver.wire.v1 import paramserver_pb2 as pb

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


class Stream:
    """An open stream to one server process; `async with` closes it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._call: Any = self._channel.stream_stream(METHOD)()
        #: One write at a time: the heartbeat and the trainer share the stream.
        self._writing = asyncio.Lock()
        #: Loop time of the last message sent.
        self.last_sent = 0.0
        #: Where messages go in place of the stream.
        self._pipes: Pipes | None = None
        #: What has come and was not received yet, with pipes or on the way to them.
        self._arrived: deque[bytes] = deque()
        #: What `arrives` has begun to read; what was received and put back.
        self._reading: asyncio.Future[Any] | None = None
        self._put_back: deque[tuple[pb.ServerMessage, memoryview] | None] = deque()
        #: With pipes: the end of the stream, …
        self._ending: asyncio.Future[Any] | None = None
        #: … and what waits for a message, or for room in the pipe.
        self._waiting: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipes is not None:
            self._pipes.close()
        for reading in (self._ending, self._reading):
            if reading is not None:
                reading.cancel()
        self._call.cancel()
        await self._channel.close()

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        """Send a message with the tensor bytes that belong to it; waits while the server does not keep up.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        data = encode(message, payload)
        if self._pipes is not None:
            await self._send_by_pipe(self._pipes, data)
            return
        async with self._writing:
            try:
                await self._call.write(data)
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

    async def arrives(self, done: asyncio.Future[Any]) -> bool:
        """Wait until there is something to receive, or something else is done; whether the former is so."""
        if not self._put_back:
            self._reading = self._reading or asyncio.ensure_future(self._next())
            await asyncio.wait((self._reading, done), return_when=asyncio.FIRST_COMPLETED)
            return self._reading.done()
        return not done.done()

    def put_back(self, received: tuple[pb.ServerMessage, memoryview] | None) -> None:
        """Have `receive` return this next."""
        self._put_back.append(received)

    async def share(self, proof: bytes, takes_pipes: bool) -> None:
        """Prove that memory is shared, and go over to pipes with a server that takes them.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        share = pb.Share(proof=proof)
        if not takes_pipes:
            await self.send(pb.WorkerMessage(share=share))
            return
        pair = PipePair()
        share.pipes.pid, share.pipes.up, share.pipes.down = os.getpid(), pair.up, pair.down
        try:
            await self.send(pb.WorkerMessage(share=share))
            while (data := await self._call.read()) is not grpc.aio.EOF:
                message, _ = decode_server_message(data)
                if message.HasField("shared"):
                    break
                self._arrived.append(data)
            else:
                raise await self._failure()
        except BaseException:
            pair.close()
            raise
        if not message.shared.pipes:
            pair.close()
            return
        # Nothing else comes on the stream.
        ending = self._ending = asyncio.ensure_future(self._call.read())
        ending.add_done_callback(self._end)
        self._pipes = Pipes(*pair.take(), self._take, self._room.set, self._fail)

    def _take(self, data: bytes) -> None:
        self._arrived.append(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _fail(self, error: ProtocolError) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _end(self, ending: asyncio.Future[Any]) -> None:
        if not ending.cancelled():
            ending.exception()
        self._wake()
        self._room.set()

    async def _next(self) -> Any:
        """Wait for the next message, wherever it comes; EOF at the end of the stream."""
        if self._pipes is None or self._ending is None:
            return await self._call.read()
        while not self._arrived:
            if self._ending.done():
                # What was said before the end may still be in the pipe.
                self._pipes.read()
                if not self._arrived:
                    return self._ending.result()
            else:
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
        return self._arrived.popleft()

    async def _send_by_pipe(self, pipes: Pipes, data: bytes) -> None:
        assert self._ending is not None
        pipes.outbox.append((data,))
        pipes.flush()
        while not pipes.is_drained and not self._ending.done():
            self._room.clear()
            await self._room.wait()
        if self._ending.done():
            raise await self._failure()
        self.last_sent = asyncio.get_running_loop().time()

    async def _failure(self) -> grpc.aio.AioRpcError:
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNAVAILABLE, "the server ended the stream"
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
