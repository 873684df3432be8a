"""Orders of a coordinator are done in order, most of them as they come; reports leave in order too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from paramserver.server.doorway import Doorway
from paramserver.server.partition import Orders, PartitionService, Reports
from paramserver.wire.connection import connect
from paramserver.wire.errors import ProtocolError
from paramserver.wire.line import Line
from paramserver.wire.v1 import paramserver_pb2 as pb

MARK, SAVE = pb.Order(mark=pb.Mark()), pb.Order(save=pb.Save())
BEGIN = pb.Order(begin=pb.Begin())


class Follower:
    """Notes what it is told to do."""

    cluster = b"c"

    def __init__(self) -> None:
        self.done: list[pb.Order] = []

    def obey(self, order: pb.Order) -> None:
        if order == SAVE:
            raise ProtocolError("not this")
        self.done.append(order)


def test_an_order_is_done_as_it_comes_unless_one_before_it_is_under_way() -> None:
    async def talk() -> None:
        follower: Any = Follower()
        orders = Orders(follower, b"c")
        # Before anybody carries out what takes its time.
        orders.take(MARK)
        assert follower.done == []
        assert await orders.next() == MARK
        coming = asyncio.create_task(orders.next())
        await asyncio.sleep(0)
        orders.take(MARK)
        assert follower.done == [MARK]
        orders.take(BEGIN)
        # Queued, and not handed out yet; then handed out, and not done yet.
        orders.take(MARK)
        assert await coming == BEGIN
        orders.take(MARK)
        assert follower.done == [MARK]
        assert [await orders.next(), await orders.next()] == [MARK, MARK]

    asyncio.run(talk())


def test_what_is_wrong_with_an_order_is_heard_by_whoever_waits_for_orders() -> None:
    async def talk() -> None:
        follower: Any = Follower()
        orders = Orders(follower, b"c")
        coming = asyncio.create_task(orders.next())
        await asyncio.sleep(0)
        orders.take(SAVE)
        with pytest.raises(ProtocolError, match="not this"):
            await coming

    asyncio.run(talk())


def test_nothing_is_done_for_a_coordinator_that_leads_no_more() -> None:
    async def talk() -> None:
        follower: Any = Follower()
        orders = Orders(follower, b"c")
        coming = asyncio.create_task(orders.next())
        await asyncio.sleep(0)
        follower.cluster = b"d"
        orders.take(MARK)
        assert await coming is None
        assert follower.done == []

    asyncio.run(talk())


class Aside(Line):
    """A line that only notes what goes through it."""

    def __init__(self, said: list[tuple[str, int]]) -> None:
        self.outbox = deque()
        self._said = said

    def flush(self) -> None:
        for (data,) in self.outbox:
            assert isinstance(data, bytes)
            self._said.append(("line", pb.Report.FromString(data).beat.version))
        self.outbox.clear()


class Call:
    """The coordinator's call, which takes a moment."""

    def __init__(self, said: list[tuple[str, int]]) -> None:
        self._said = said

    async def write(self, report: pb.Report) -> None:
        await asyncio.sleep(0)
        self._said.append(("call", report.beat.version))


def test_reports_keep_their_order_when_they_go_another_way() -> None:
    said: list[tuple[str, int]] = []

    def beat(version: int) -> pb.Report:
        return pb.Report(beat=pb.Beat(version=version))

    async def talk() -> None:
        call: Any = Call(said)
        reports = Reports(call)
        reports.tell(beat(0))
        reports.go_over(Aside(said))
        reports.tell(beat(1))
        reports.end()
        await reports.write()
        reports.tell(beat(2))
        # One that has to wait for the writer still is sent before the next.
        reports._queue.put_nowait(beat(3))
        reports.tell(beat(4))
        reports.end()
        await reports.write()

    asyncio.run(talk())
    assert said == [("call", 0), ("line", 1), ("line", 2), ("line", 3), ("line", 4)]


class Stream:
    """The stream of a coordinator that reads the first report and no more."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[Any] = asyncio.Queue()
        self.reports: asyncio.Queue[pb.Report] = asyncio.Queue(1)

    async def read(self) -> Any:
        return await self.orders.get()

    async def write(self, report: pb.Report) -> None:
        await self.reports.put(report)


class Led(Follower):
    """Lets itself be led."""

    async def follow(self, _lead: pb.Lead, *_: object) -> pb.Following:
        return pb.Following()

    def leave_lead(self, _cluster: bytes) -> None:
        pass

    def beat(self) -> None:
        pass


def test_a_connection_is_closed_if_the_server_does_not_wait_for_the_last_word() -> None:
    async def talk() -> None:
        follower: Any = Led()
        stream: Any = Stream()
        doorway = Doorway.open("127.0.0.1", 0)
        stream.orders.put_nowait(pb.Order(lead=pb.Lead(protocol=1, cluster=b"c")))
        service = PartitionService(follower, doorway)
        following = asyncio.create_task(service.Follow(None, stream))
        told = (await stream.reports.get()).following
        connection = await connect("127.0.0.1", told.port, told.ticket)
        lines = Line.count
        # The answer to it is never read; the one before stands in its way.
        await stream.reports.put(pb.Report())
        stream.orders.put_nowait(pb.Order(move=pb.Move(connection=True)))
        async with asyncio.timeout(10):
            while Line.count == lines:
                await asyncio.sleep(0)
        for _ in range(2):
            following.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert following.cancelled()
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b"", "the other end is closed"
        connection.close()
        doorway.close()

    asyncio.run(talk())
