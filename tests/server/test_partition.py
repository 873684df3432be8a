"""Orders of a coordinator are done in order, most of them as they come; reports leave in order too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from paramserver.server.partition import Orders, Reports
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
