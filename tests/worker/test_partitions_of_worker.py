"""The streams to the servers beside the coordinator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paramserver.wire import mosaic, sharing
from paramserver.wire.errors import PeerGone, ProtocolError
from paramserver.wire.framing import Message, whole
from paramserver.wire.layout import Array, Layout
from paramserver.wire.mosaic import Mosaic
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.partitions import Partition, Partitions


class Refusing:
    """A stream to a server that takes nobody, so many turns of the event loop after it was asked."""

    def __init__(self, address: str, turns: int, asked: list[pb.Join]) -> None:
        self.address = address
        self._turns = turns
        self._asked = asked

    async def send(self, message: pb.WorkerMessage, _payload: Array | None = None) -> None:
        self._asked.append(message.join)

    async def receive(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        raise ProtocolError(f"{self.address} refuses")


@pytest.mark.parametrize("turns", [(0, 5, 2), (5, 0, 2), (9, 3, 0)])
def test_of_several_servers_that_refuse_a_worker_the_first_in_the_list_is_heard(turns: tuple[int, ...]) -> None:
    asked: list[pb.Join] = []
    streams: list[Any] = [Refusing(f"server {n}", t, asked) for n, t in enumerate(turns, start=1)]
    with pytest.raises(ProtocolError, match="server 1 refuses"):
        asyncio.run(Partitions(streams).join(pb.Join(worker="w")))
    assert [(join.partition, join.partitions) for join in asked] == [(1, 4), (2, 4), (3, 4)]


class Answering:
    """A stream that gives the answers of a list, (number, version, value); those without a value are empty."""

    address = "server 1"

    def __init__(self, *answers: tuple[int, int, float | None]) -> None:
        self._answers = list(answers)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.place: Any = None
        #: Pulls that were sent, and pushes.
        self.pulls: list[pb.PullWork] = []
        self.pushes: list[pb.Push] = []

    async def send(self, message: pb.WorkerMessage, _payload: Array | None = None) -> None:
        self.pulls.append(message.pull)

    async def send_all(self, messages: Sequence[Message]) -> None:
        self.pushes += [pb.WorkerMessage.FromString(whole(message)).push for message in messages]

    async def receive(self) -> tuple[pb.ServerMessage, memoryview]:
        number, version, value = self._answers.pop(0)
        payload = np.array([] if value is None else [value])
        return pb.ServerMessage(work=pb.Work(version=version, number=number, last=True)), payload.data.cast("B")


@pytest.mark.parametrize(
    ("answers", "wanted", "found"),
    [
        ([(1, 3, 3.0), (1, 3, 3.0), (2, 4, 4.0)], [3, 4], 4.0),
        # Of a job before, in which versions were higher.
        ([(1, 3, 3.0), (1, 4, 4.0), (2, 1, 1.0)], [3, 0], 1.0),
        # It holds version 5 already, of which the server then sends nothing.
        ([(1, 5, 5.0), (1, 5, 9.0), (2, 5, None)], [4, 4], 5.0),
    ],
)
def test_an_answer_that_comes_twice_is_not_taken_for_the_next_one(
    answers: list[tuple[int, int, float | None]], wanted: list[int], found: float
) -> None:
    part = Layout([("a", (1,))], "float64")
    theta = np.zeros(1)

    async def fetch() -> None:
        partition = Partition(Answering(*answers))  # type: ignore[arg-type]
        for version in wanted:
            await partition.fetch(pb.PullWork(version=version), part, theta, None, {}, None, in_step=False)

    asyncio.run(fetch())
    assert theta[0] == found


def asked_ahead(
    answers: list[tuple[int, int, float | None]], wanted: pb.PullWork, in_step: bool = True
) -> tuple[Answering, float]:
    """Fetch version 3, push what was computed with it in two pieces and ask for the next one, and fetch."""
    part = Layout([("a", (1,))], "float64")
    theta = np.zeros(1)

    async def fetch() -> Answering:
        stream = Answering(*answers)
        partition = Partition(stream)  # type: ignore[arg-type]
        await partition.fetch(pb.PullWork(version=3), part, theta, None, {}, None, in_step=True)
        assert stream.place is None
        await partition.push(pb.Push(version=3), [(0, np.ones(1)), (1, np.ones(1))], 0, asks=True)
        assert stream.place(0, 8).tobytes() == theta.tobytes()
        await partition.fetch(wanted, part, theta, None, {}, None, in_step=in_step)
        return stream

    return asyncio.run(fetch()), theta[0]


def test_what_was_asked_for_with_a_push_is_not_asked_for_again() -> None:
    stream, found = asked_ahead([(1, 3, 3.0), (2, 4, 4.0)], pb.PullWork(version=4))
    assert [pull.number for pull in stream.pulls] == [1]
    # With the last chunk alone.
    assert [push.number for push in stream.pushes] == [0, 2]
    assert found == 4.0


@pytest.mark.parametrize(
    ("wanted", "in_step"),
    [(pb.PullWork(version=3), True), (pb.PullWork(version=4, era=1), True), (pb.PullWork(version=4), False)],
    ids=["another shard of the round", "θ went back", "under another policy"],
)
@pytest.mark.parametrize("answers", [[(1, 3, 3.0), (3, 5, 5.0)], [(1, 3, 3.0), (2, 4, 4.0), (3, 5, 5.0)]])
def test_what_is_wanted_after_all_is_asked_for(
    wanted: pb.PullWork, in_step: bool, answers: list[tuple[int, int, float | None]]
) -> None:
    stream, found = asked_ahead(answers, wanted, in_step)
    assert [pull.number for pull in stream.pulls] == [1, 3]
    # What came ahead, or has begun to, may lie where the version was that it held.
    assert not stream.pulls[-1].HasField("held")
    assert found == 5.0


def test_what_was_asked_for_in_the_job_before_is_passed_over() -> None:
    """It may have come in several chunks of which none fits the new parameters, and before these are described."""
    chunk = pb.ServerMessage(work=pb.Work(version=9, offset=2)), np.full(2, 9.0).data.cast("B")
    last = pb.ServerMessage(work=pb.Work(version=9, offset=4, number=1, last=True)), np.full(2, 9.0).data.cast("B")
    layout = pb.ServerMessage(layout=pb.Layout()), memoryview(b"")
    answer = pb.ServerMessage(work=pb.Work(version=0, number=1, last=True)), np.ones(1).data.cast("B")
    theta = np.zeros(1)

    async def fetch() -> None:
        stream = Answering()
        received = [chunk, last, layout, answer]

        async def receive() -> tuple[pb.ServerMessage, memoryview]:
            return received.pop(0)

        stream.receive = receive  # type: ignore[method-assign]
        partition = Partition(stream)  # type: ignore[arg-type]
        partition.start_job("next")
        await partition.fetch(pb.PullWork(), Layout([("a", (1,))], "float64"), theta, None, {}, None, in_step=True)
        assert not received

    asyncio.run(fetch())
    assert theta[0] == 1.0


def test_memory_that_a_server_shows_no_more_is_not_looked_at() -> None:
    async def look() -> list[bool]:
        partition, found = Partition(Answering()), []  # type: ignore[arg-type]
        for layout in (pb.Layout(theta=pb.SharedMemory(pid=1, descriptor=2)), pb.Layout()):
            await partition.aside(pb.ServerMessage(layout=layout), memoryview(b""))
            found.append(partition.is_mapped)
        return found

    assert asyncio.run(look()) == [True, False]


@pytest.mark.skipif(not sharing.AVAILABLE or not mosaic.AVAILABLE, reason="this system has no such memory")
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.02])
def test_theta_of_another_server_is_shown_when_that_has_made_the_update(copies: bool, pause_s: float) -> None:
    whole = Layout([("a", (4096,))], "float64")
    part = whole.cut(2)[1]
    theta = Segment.create(part.size, part.dtype, True, part.start)

    async def look(stays: bool) -> list[tuple[int, float]]:
        shown = Mosaic(whole.size, whole.dtype)
        partition = Partition(Answering())  # type: ignore[arg-type]
        memory = pb.SharedMemory(pid=os.getpid(), descriptor=theta.descriptor)
        await partition.aside(pb.ServerMessage(layout=pb.Layout(theta=memory)), memoryview(b""))
        out = np.zeros(part.size) if copies else part.part_of(shown.values)
        found: list[tuple[int, float]] = []

        async def update() -> None:
            theta.sequence[0] = 1
            await asyncio.sleep(pause_s)
            theta.values[:] = 1.0
            await asyncio.sleep(pause_s)
            theta.sequence[0] = 2

        async def show(version: int) -> None:
            await partition.show(version, part, out, None if copies else shown)
            found.append((int(theta.sequence[0]), float(out[-1])))

        theta.sequence[0] = 0
        theta.values[:] = 0.0
        await show(0)
        waiting = asyncio.create_task(show(1))
        await asyncio.sleep(2 * pause_s)
        assert not waiting.done(), "the update has not begun"
        if stays:
            await update()
        else:
            partition.stream.ended.set_result(None)
        await waiting
        return found

    assert asyncio.run(look(stays=True)) == [(0, 0.0), (2, 1.0)]
    with pytest.raises(PeerGone, match="server 1 ended the stream"):
        asyncio.run(look(stays=False))
