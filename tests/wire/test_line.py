"""A line brings every message, whole and in order, through pipes and sockets, and leaves no descriptor behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest

from paramserver.wire.awake import Awake
from paramserver.wire.errors import ParamserverError, Unreachable
from paramserver.wire.framing import Apart, Message, decode_worker_message, frame
from paramserver.wire.line import GRACE_S, MAX_BYTES, Line
from paramserver.wire.v1 import paramserver_pb2 as pb


class End:
    """One end of a line: keeps what comes."""

    def __init__(self, reading: int, writing: int) -> None:
        self.came: list[bytes] = []
        self.errors: list[ParamserverError] = []
        self.news = asyncio.Event()
        self.line = Line(reading, writing, self._take, self.news.set, self._fail)

    def _take(self, data: bytes | memoryview) -> None:
        self.came.append(bytes(data))
        self.news.set()

    def _fail(self, error: ParamserverError) -> None:
        self.errors.append(error)
        self.news.set()

    def send(self, *messages: Message) -> None:
        self.line.outbox.append(messages)
        self.line.flush()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.came) < count and not self.errors:
                self.news.clear()
                await self.news.wait()

    async def drained(self) -> None:
        """Wait to be told that all is sent; the other end may have it before the thread that sends has come back."""
        async with asyncio.timeout(10):
            while not self.line.is_drained:
                self.news.clear()
                await self.news.wait()
            while self.line._is_aside:
                await asyncio.sleep(0)


def by_pipes() -> tuple[End, End]:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    (up, up_end), (down, down_end) = os.pipe2(flags), os.pipe2(flags)
    return End(down, up_end), End(up, down_end)


def by_socket() -> tuple[End, End]:
    pair = socket.socketpair()
    for each in pair:
        each.setblocking(False)
    worker, server = (each.detach() for each in pair)
    return End(worker, worker), End(server, server)


def by_tcp() -> tuple[End, End]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for each in (worker, server):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ends = [each.detach() for each in (worker, server)]
    return End(ends[0], ends[0]), End(ends[1], ends[1])


ways = pytest.mark.parametrize("ends", [by_pipes, by_socket, by_tcp])
Ends = Callable[[], tuple[End, End]]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@ways
def test_messages_of_any_size_come_whole_and_in_order_both_ways(ends: Ends) -> None:
    up = [b"", b"a", os.urandom(100), os.urandom(3 << 20), b"z" * 5, os.urandom(70_000), b""]
    up += [os.urandom(n) for n in (32_764, 32_765, 32_768, 32_769, 32_772, 1)] + [b"s" * 20] * 3_000
    down = [os.urandom(n) for n in range(0, 3_000_000, 299_999)]

    async def talk() -> None:
        worker, server = ends()
        for message in up:
            worker.send(message)
        server.send(*down)
        assert not server.line.is_drained, "more than is taken at once"
        await asyncio.gather(worker.until(len(down)), server.until(len(up)))
        assert (server.came, worker.came) == (up, down)
        for end in (worker, server):
            await end.drained()
            end.line.close()
            end.line.close()

    before = descriptors()
    asyncio.run(talk())
    assert descriptors() == before


@ways
@pytest.mark.parametrize("size", [1 << 18, 1 << 19], ids=["at once", "by a thread"])
def test_a_tensor_apart_is_sent_as_it_was_when_its_owner_had_it_kept(ends: Ends, size: int) -> None:
    async def talk() -> None:
        worker, server = ends()
        values = [np.full(size, n, np.float32) for n in range(6)]
        messages = [frame(pb.WorkerMessage(push=pb.Push(step=n)), v) for n, v in enumerate(values)]
        assert all(isinstance(message, Apart) for message in messages)
        worker.send(*messages)
        assert not worker.line.is_drained
        assert worker.line._is_aside == (size > 1 << 18)
        # Some are sent, one is in part; the owner changes all of them.
        for message, value in zip(messages, values, strict=True):
            assert isinstance(message, Apart)
            message.whole()
            value[:] = -1.0
        await server.until(6)
        for n, data in enumerate(server.came):
            header, payload = decode_worker_message(data)
            assert header.push.step == n
            assert (np.frombuffer(payload, np.float32) == n).all()
        for end in (worker, server):
            await end.drained()
            end.line.close()

    asyncio.run(talk())


@ways
def test_what_is_no_message_is_told_once_and_nothing_comes_after_it(ends: Ends) -> None:
    async def talk() -> None:
        worker, server = ends()
        worker.send(b"fine")
        os.write(worker.line._writing, (MAX_BYTES + 1).to_bytes(4, "little"))
        worker.send(b"not any more")
        await server.until(2)
        assert server.came == [b"fine"]
        assert [str(error) for error in server.errors] == [
            f"a message of {MAX_BYTES + 1} bytes came, allowed are {MAX_BYTES}"
        ]
        worker.line.close()
        # Nobody reads, and nobody minds.
        server.send(b"x" * 10)
        assert server.line.is_drained
        server.line.close()

    asyncio.run(talk())


def test_an_end_that_is_gone_is_told_if_nothing_else_tells_of_it() -> None:
    async def talk() -> None:
        worker, server = by_socket()
        worker.line.close()
        started = asyncio.get_running_loop().time()
        await server.until(1)
        assert asyncio.get_running_loop().time() - started >= GRACE_S - 0.1
        assert isinstance(server.errors[0], Unreachable)
        server.line.close()

    asyncio.run(talk())


def test_who_closes_in_time_hears_nothing_of_an_end_that_is_gone() -> None:
    async def talk() -> None:
        worker, server = by_socket()
        worker.line.close()
        # A process that is just being started elsewhere may hold the other end open for a moment more.
        async with asyncio.timeout(10):
            while server.line._breaking is None:
                server.line.read()
                await asyncio.sleep(0)
        server.line.close()
        assert server.line._breaking.cancelled()

    asyncio.run(talk())


@ways
def test_who_was_sent_little_waits_awake_and_who_was_sent_much_asleep(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    # As if nothing came however long he stayed awake.
    monkeypatch.setattr(Awake, "finds", lambda _awake, _look: bool(turns.append(1)))

    async def talk() -> None:
        worker, server = ends()
        awake = []
        for sent in (b"a", bytes(MAX_BYTES // 64), bytes(MAX_BYTES // 64), b"b", b"c"):
            turns.clear()
            assert not worker.line.wait(0.0)
            awake.append(bool(turns))
            server.send(sent)
            await worker.until(len(worker.came) + 1)
        # Nothing has come yet, little, much, much again, and little.
        assert awake == [True, True, False, False, True]
        await server.drained()
        worker.line.close()
        server.line.close()

    asyncio.run(talk())


@ways
def test_who_waits_past_the_event_loop_has_what_comes_and_nothing_once_the_other_end_is_gone(ends: Ends) -> None:
    async def talk() -> None:
        worker, server = ends()
        assert not worker.line.wait(0.0)
        server.send(b"a")
        server.send(b"b")
        while len(worker.came) < 2:
            assert worker.line.wait(5.0)
        assert worker.came == [b"a", b"b"]
        server.line.close()
        assert worker.line.wait(5.0), "its end comes too"
        assert not worker.line.wait(5.0)
        worker.line.close()
        assert not worker.line.wait(5.0)

    before = descriptors()
    asyncio.run(talk())
    assert descriptors() == before


def test_a_line_that_is_closed_while_it_sends_much_lets_its_descriptors_go() -> None:
    async def talk() -> None:
        before = descriptors()
        worker, server = by_socket()
        server.line._stop()
        worker.send(*(b"x" * (8 << 20) for _ in range(3)))
        assert worker.line._is_aside
        worker.line.close()
        async with asyncio.timeout(10):
            while worker.line._is_aside:
                await asyncio.sleep(0)
        server.line.close()
        assert descriptors() == before

    asyncio.run(talk())


def test_who_awaits_a_large_message_is_not_woken_for_every_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        reads = 0

        def count(line: Line) -> None:
            nonlocal reads
            reads += 1
            read(line)

        read = Line.read
        monkeypatch.setattr(Line, "read", count)
        worker, server = by_tcp()
        packets, size = 96, 1 << 15
        os.write(worker.line._writing, (packets * size).to_bytes(4, "little"))
        for _ in range(packets):
            os.write(worker.line._writing, b"p" * size)
            # The server would have its turn after every one of them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await server.until(1)
        assert len(server.came[0]) == packets * size
        assert reads < packets / 4
        # What comes next is news at once, however short.
        worker.send(b"!")
        await server.until(2)
        for end in (worker, server):
            end.line.close()

    asyncio.run(talk())


@pytest.mark.parametrize(("size", "awaited"), [(1 << 21, 1 << 20), (1 << 22, 1 << 20), (1 << 23, 1 << 21)])
def test_of_a_large_message_a_quarter_is_awaited_and_the_rest_at_the_end(size: int, awaited: int) -> None:
    async def talk() -> None:
        worker, server = by_tcp()
        assert server.line._socket is not None

        def mark() -> int:
            assert server.line._socket is not None
            return server.line._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

        os.write(worker.line._writing, size.to_bytes(4, "little") + bytes(1 << 16))
        async with asyncio.timeout(10):
            while mark() == 1:
                await asyncio.sleep(0)
        assert mark() == awaited
        left = memoryview(bytes(size - (1 << 16)))
        while left:
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(worker.line._writing, left) :]
            await asyncio.sleep(0)
        await server.until(1)
        assert mark() == 1
        for end in (worker, server):
            end.line.close()

    asyncio.run(talk())


@ways
def test_who_takes_messages_is_told_now_and_then_that_a_large_one_is_coming(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, size = 4, 3 << 20
    told: list[int] = []

    async def talk() -> None:
        worker, server = ends()
        server.line.coming = lambda: told.append(len(server.came))
        worker.send(b"small", b"z" * 40_000)
        await server.until(2)
        message = (parts * size).to_bytes(4, "little") + bytes(parts * size)
        for part in range(parts):
            left = memoryview(message)[part * size :][: size if part < parts - 1 else size + 4]
            # What is below the mark of the kernel nobody is woken for.
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(worker.line._writing, left) :]
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
        await server.until(3)
        assert len(server.came[2]) == parts * size
        for end in (worker, server):
            end.line.close()

    monkeypatch.setattr("paramserver.wire.line._TOLD_S", 0.02)
    asyncio.run(talk())
    assert set(told) == {2}
    assert parts - 1 <= len(told)


def test_who_takes_messages_is_told_no_more_often_than_need_be() -> None:
    told: list[float] = []

    async def talk() -> None:
        worker, server = by_tcp()
        server.line.coming = lambda: told.append(1.0)
        worker.send(*[bytes(15 << 20)] * 8)
        await server.until(8)
        await worker.drained()
        for end in (worker, server):
            end.line.close()

    before = time.monotonic()
    asyncio.run(talk())
    assert 1 <= len(told) <= 1 + (time.monotonic() - before) / 0.1


@pytest.mark.parametrize(("pairs", "size", "aside"), [(1, 3 << 20, False), (5, 3 << 20, True), (60, 1 << 18, False)])
def test_one_message_goes_by_a_thread_where_many_lines_may_have_such_a_one(pairs: int, size: int, aside: bool) -> None:
    async def talk() -> None:
        ends = [by_tcp() for _ in range(pairs)]
        message = os.urandom(size)
        for worker, _ in ends:
            worker.send(message)
            assert worker.line._is_aside == aside
        for worker, server in ends:
            await server.until(1)
            assert server.came == [message]
            await worker.drained()
        for end in (end for pair in ends for end in pair):
            end.line.close()

    before = Line.count
    asyncio.run(talk())
    assert Line.count == before
