"""The coordinator's connections to the other partitions: orders out, reports in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from paramserver.wire.connection import connect
from paramserver.wire.errors import ParamserverError, Unreachable, from_rpc_error
from paramserver.wire.framing import Data
from paramserver.wire.line import Line
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1.paramserver_pb2_grpc import PartitionStub

log = logging.getLogger(__name__)

PROTOCOL = 1

OPTIONS = (
    # A partition that vanished without a word is noticed by an unanswered ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)

#: Reports that answer an order, in the order of the orders; the others come by themselves.
_ANSWERS = ("following", "begun", "prepared", "sums", "saved", "gone_back", "moved")


class Link:
    """The connection to one partition, from `open` until it breaks or is closed."""

    def __init__(self, address: str, partition: int, partitions: int, on_report: Callable[[Link, pb.Report], None]):
        self.address = address
        self.partition = partition
        self._partitions = partitions
        self._on_report = on_report
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub: Any = PartitionStub(self._channel)  # type: ignore[no-untyped-call]
        self._call: Any = None
        self._writing = asyncio.Lock()
        #: Where orders and reports go in place of the call, if that can be had.
        self._line: Line | None = None
        #: Who waits for an answer, by kind.
        self._asked: dict[str, deque[asyncio.Future[pb.Report]]] = {kind: deque() for kind in _ANSWERS}
        self._reader: asyncio.Task[None] | None = None
        #: Ends with the error that broke the connection.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_following = False
        #: The partition sees the memory of this process.
        self.sees = False
        self.beat = pb.Beat()

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"partition {self.partition} at {self.address}"

    @property
    def state(self) -> str:
        """In words, whether it is there."""
        if self.broken.done() and (error := self.broken.exception()) is not None:
            return str(error)
        return "waiting for the others" if self.is_following else "not reached yet"

    async def open(self, cluster: bytes, probe: Segment | None = None) -> pb.Following:
        """Begin to lead the partition; by the probe it is found out whether memory can be shared.

        Raises:
            ParamserverError: if it does not answer, or is another one.
        """
        self._call = self._stub.Follow()
        self._reader = asyncio.create_task(self._read())
        lead = pb.Lead(protocol=PROTOCOL, partition=self.partition, partitions=self._partitions, cluster=cluster)
        if probe is not None:
            lead.probe.pid, lead.probe.descriptor = os.getpid(), probe.descriptor
        following = (await self.ask("following", pb.Order(lead=lead))).following
        self.sees = probe is not None and following.proof == probe.values.tobytes()
        if following.port and not self.address.startswith("unix:"):
            await self._go_over(following)
        self.is_following = True
        return following

    async def _go_over(self, following: pb.Following) -> None:
        """Have orders and reports go through a connection of their own, which takes a tenth of the time."""
        host = self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")
        try:
            connection = await connect(host, following.port, following.ticket)
        except (OSError, TimeoutError):
            return
        with contextlib.closing(connection):
            answer = await self.ask("moved", pb.Order(move=pb.Move(connection=True)))
            if answer.moved.done:
                descriptor = connection.detach()
                self._line = Line(descriptor, descriptor, self._take_data, lambda: None, self._break)
                log.info("orders to %s go through port %d", self.name, following.port)

    async def send(self, order: pb.Order) -> None:
        """Send an order.

        Raises:
            ParamserverError: if the connection is broken.
        """
        if self._line is not None:
            self._line.outbox.append((order.SerializeToString(),))
            self._line.flush()
            return
        async with self._writing:
            try:
                await self._call.write(order)
            except (grpc.RpcError, asyncio.InvalidStateError):
                # The reader finds out why.
                await asyncio.shield(self.broken)

    async def begin_to_ask(self, kind: str, order: pb.Order) -> asyncio.Future[pb.Report]:
        """Send an order, and return what its answer will come in.

        Raises:
            ParamserverError: if the connection is broken.
        """
        if self.broken.done():
            # Nobody would read the answer.
            self.broken.result()
        answer: asyncio.Future[pb.Report] = asyncio.get_running_loop().create_future()
        self._asked[kind].append(answer)
        await self.send(order)
        return answer

    async def ask(self, kind: str, order: pb.Order) -> pb.Report:
        """Send an order and wait for the report of this kind that answers it."""
        return await (await self.begin_to_ask(kind, order))

    def read(self, number: int, table: int | None = None) -> AsyncIterator[pb.ReadReply]:
        """Ask for the partition's flat vector, or for one of its tables, as it was at a capture, and stream it."""
        return self._replies(self._stub.Read(pb.ReadRequest(number=number, table=table)))

    async def _replies(self, call: AsyncIterator[pb.ReadReply]) -> AsyncIterator[pb.ReadReply]:
        try:
            async for reply in call:
                yield reply
        except grpc.RpcError as error:
            raise self._translated(error) from None

    async def close(self) -> None:
        """End the connection."""
        if self._reader is not None:
            self._reader.cancel()
        if self._line is not None:
            self._line.close()
        if self._call is not None:
            self._call.cancel()
        self._break(Unreachable(f"{self.name}: the connection was closed"))
        await self._channel.close()

    async def _read(self) -> None:
        error: ParamserverError = Unreachable(f"{self.name} has ended the connection")
        try:
            while (report := await self._call.read()) is not grpc.aio.EOF:
                self._take(report)
            if await self._call.code() is not grpc.StatusCode.OK:
                error = self._translated(
                    grpc.aio.AioRpcError(
                        await self._call.code(),
                        grpc.aio.Metadata(),
                        grpc.aio.Metadata(),
                        details=await self._call.details(),
                    )
                )
        except grpc.RpcError as failure:
            error = self._translated(failure)
        except ParamserverError as failure:
            error = failure
        finally:
            # Also where it was broken off from here.
            self._call.cancel()
            self._break(error)

    def _take_data(self, data: Data) -> None:
        assert not isinstance(data, tuple)
        try:
            self._take(pb.Report.FromString(bytes(data)))
        except ParamserverError as error:
            self._break(error)

    def _take(self, report: pb.Report) -> None:
        kind = report.WhichOneof("kind")
        if kind == "beat":
            self.beat = report.beat
        elif self._asked.get(kind):
            answer = self._asked[kind].popleft()
            if not answer.done():
                answer.set_result(report)
        else:
            self._on_report(self, report)

    def _translated(self, failure: grpc.RpcError) -> ParamserverError:
        error = from_rpc_error(failure, self.address)
        return error if isinstance(error, Unreachable) else type(error)(f"{self.name}: {error}")

    def _break(self, error: ParamserverError) -> None:
        """Tell all who wait that nothing more will come."""
        for answers in self._asked.values():
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
                    # Whoever asked may have gone.
                    answer.exception()
            answers.clear()
        if not self.broken.done():
            self.broken.set_exception(error)
            self.broken.exception()
