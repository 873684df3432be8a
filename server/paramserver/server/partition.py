"""The services of a partition that is led: for its coordinator, and the little that clients can ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from paramserver.server.doorway import Doorway
from paramserver.server.following import Follower
from paramserver.server.links import PROTOCOL
from paramserver.server.reading import in_chunks, stream
from paramserver.wire.errors import NotReady, ParamserverError, ProtocolError, RequestError, status_code
from paramserver.wire.framing import Data
from paramserver.wire.line import Line
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

#: How often the coordinator hears how far this partition is.
BEAT_EVERY_S = 0.3

SERVICE = pb.DESCRIPTOR.services_by_name["Partition"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class Orders:
    """What a coordinator wants done, one after the other; most is done as it comes, without waking anybody."""

    def __init__(self, follower: Follower, cluster: bytes) -> None:
        self._follower = follower
        self._cluster = cluster
        self._queue: asyncio.Queue[pb.Order | Exception | None] = asyncio.Queue()
        #: Everything is done that was handed out by `next`.
        self._is_idle = False

    def take(self, order: pb.Order) -> None:
        """Do what is ordered, unless it takes its time or something before it does."""
        takes_time = order.WhichOneof("kind") in ("begin", "move")
        if takes_time or not self._is_idle or not self._queue.empty() or self._follower.cluster != self._cluster:
            self._queue.put_nowait(order)
            return
        try:
            self._follower.obey(order)
        except Exception as error:
            # For whoever waits for orders, which ends the connection.
            self._queue.put_nowait(error)

    def end(self) -> None:
        """Nothing more will come, or nothing more of it counts."""
        self._queue.put_nowait(None)

    async def next(self) -> pb.Order | None:
        """Wait for an order that was not done as it came; None at the end, or when somebody else leads.

        Raises:
            ParamserverError: if an order broke the contract.
        """
        self._is_idle = True
        order = await self._queue.get()
        self._is_idle = False
        if isinstance(order, Exception):
            raise order
        return order if self._follower.cluster == self._cluster else None


class Reports:
    """What the coordinator is told, in order: through gRPC, and from some point on through a line."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue: asyncio.Queue[pb.Report | Line | None] = asyncio.Queue()
        self._line: Line | None = None

    def tell(self, report: pb.Report) -> None:
        """Send a report when those before it are sent; never waits."""
        if self._line is None or not self._queue.empty():
            self._queue.put_nowait(report)
        else:
            self._send(self._line, report)

    def go_over(self, line: Line) -> None:
        """Send what is told from now on through a line."""
        self._queue.put_nowait(line)

    def end(self) -> None:
        """Tell nothing more."""
        self._queue.put_nowait(None)

    async def write(self) -> None:
        """Send what has to wait, until the end; when the stream breaks, the reading tells."""
        with contextlib.suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            while (report := await self._queue.get()) is not None:
                if isinstance(report, Line):
                    self._line = report
                elif self._line is None:
                    await self._context.write(report)
                else:
                    self._send(self._line, report)

    @staticmethod
    def _send(line: Line, report: pb.Report) -> None:
        line.outbox.append((report.SerializeToString(),))
        line.flush()


class PartitionService(rpc.PartitionServicer):
    """Carries the coordinator's orders to the follower and its reports back."""

    def __init__(self, follower: Follower, doorway: Doorway | None = None) -> None:
        self._follower = follower
        self._doorway = doorway

    async def Follow(self, _requests: Any, context: Context) -> None:
        """Follow a coordinator until its stream ends."""
        try:
            first = await context.read()
            if first is grpc.aio.EOF:
                return
            if first.WhichOneof("kind") != "lead" or first.lead.protocol != PROTOCOL:
                raise ProtocolError(f"the first order must be lead, with protocol {PROTOCOL}")
            await self._follow(first.lead, context)
        except ParamserverError as error:
            await context.abort(status_code(error), str(error))

    async def _follow(self, lead: pb.Lead, context: Context) -> None:
        # Whoever leads at the same time is told apart by this, even if it gave itself no name.
        lead.cluster = cluster = lead.cluster or os.urandom(8)
        reports, orders = Reports(context), Orders(self._follower, cluster)
        following = await self._follower.follow(lead, reports.tell, orders.end)
        line: Line | None = None
        if self._doorway is not None:
            following.port, following.ticket = self._doorway.port, self._doorway.issue()
        reports.tell(pb.Report(following=following))
        tasks = [asyncio.create_task(_read(context, orders)), asyncio.create_task(self._beat())]
        writer = asyncio.create_task(reports.write())
        try:
            while (order := await orders.next()) is not None:
                if order.HasField("move"):
                    line = await self._go_over(following.ticket, orders, reports)
                elif order.HasField("begin"):
                    await self._follower.begin(order.begin)
                else:
                    self._follower.obey(order)
        finally:
            self._follower.leave_lead(cluster)
            for task in tasks:
                task.cancel()
            try:
                # A stream must not end in the middle of a write.
                reports.end()
                await writer
            finally:
                # Also if the server stops and does not wait for that.
                if line is not None:
                    line.close()
                if self._doorway is not None:
                    self._doorway.revoke(following.ticket)

    async def _go_over(self, ticket: bytes, orders: Orders, reports: Reports) -> Line | None:
        """Go on through the coordinator's own connection, if it is there."""
        connection = None if self._doorway is None else await self._doorway.admit(ticket)
        reports.tell(pb.Report(moved=pb.Moved(done=connection is not None)))
        if connection is None:
            return None

        def take(data: Data) -> None:
            assert not isinstance(data, tuple)
            orders.take(pb.Order.FromString(bytes(data)))

        descriptor = connection.detach()
        line = Line(descriptor, descriptor, take, lambda: None, lambda _: orders.end())
        reports.go_over(line)
        return line

    async def Read(self, request: pb.ReadRequest, context: Context) -> AsyncIterator[pb.ReadReply]:
        """Stream the flat vector or a table as it was at a capture."""
        run = self._follower.run
        copied = None if run is None else await run.captured(request.number)
        table = request.table if request.HasField("table") else -1
        if copied is None or table >= len(copied.tables):
            error = NotReady(f"there is no capture {request.number} of θ here (any more)")
            await context.abort(status_code(error), str(error))
            return
        if table < 0:
            async for piece in in_chunks(copied.theta):
                yield pb.ReadReply(payload=bytes(piece))
            return
        async for rows in stream(copied.tables[table]):
            chunk, payload = rows.to_proto(table)
            yield pb.ReadReply(rows=chunk, payload=payload)

    async def _beat(self) -> None:
        while True:
            self._follower.beat()
            await asyncio.sleep(BEAT_EVERY_S)


class FollowerControl(rpc.ControlServicer):
    """Sends clients to the coordinator."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: ARG002
        """Say what this server is."""
        run = self._follower.run
        return pb.StatusReply(
            state="following" if self._follower.cluster else "idle",
            reason=f"this is {self._follower.place}; ask the coordinator, partition 0, for the job",
            version=0 if run is None else run.engine.version,
        )

    async def _refuse(self, _request: Any, context: Context) -> Any:
        error = RequestError(f"this is {self._follower.place}: name the coordinator, partition 0, instead")
        await context.abort(status_code(error), str(error))

    async def _refuse_stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        await self._refuse(request, context)
        yield

    Submit = Stop = SetPolicy = Snapshot = _refuse
    Watch = Pull = _refuse_stream


async def _read(context: Context, orders: Orders) -> None:
    """Take the coordinator's orders until its stream has ended."""
    try:
        while (order := await context.read()) is not grpc.aio.EOF:
            orders.take(order)
    finally:
        orders.end()
