"""The worker's end of the training stream: messages out, messages in, nothing else."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc

from paramserver.wire.framing import decode_server_message, encode
from paramserver.wire.layout import Array
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        await self._channel.close()

    async def send(self, message: pb.WorkerMessage, payload: Array | None = None) -> None:
        """Send a message with the tensor bytes that belong to it; waits while the server does not keep up.

        Raises:
            grpc.RpcError: if the stream is broken or at its end.
        """
        data = encode(message, payload)
        async with self._writing:
            try:
                await self._call.write(data)
            except asyncio.InvalidStateError:
                # What gRPC says of a stream that was found broken by somebody else.
                raise await self._failure() from None
        self.last_sent = asyncio.get_running_loop().time()

    async def receive(self) -> tuple[pb.ServerMessage, memoryview] | None:
        """Wait for the next message; None when the server has ended the stream."""
        data = await self._call.read()
        if data is grpc.aio.EOF:
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await self._failure()
            return None
        return decode_server_message(data)

    async def _failure(self) -> grpc.aio.AioRpcError:
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNAVAILABLE, "the server ended the stream"
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
