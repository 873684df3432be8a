"""The worker's stream keeps the order of messages when it goes another way, while it does and at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from paramserver.wire import sharing
from paramserver.wire.framing import decode_worker_message, encode
from paramserver.wire.line import Line
from paramserver.wire.pipes import open_pipes
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker import stream as worker_stream
from paramserver.worker.stream import Stream

pytestmark = pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no memory to share")


def refusal(step: int, reason: str = "") -> bytes:
    return encode(pb.ServerMessage(refusal=pb.Refusal(step=step, reason=reason)))


class Server:
    """In place of a gRPC call: takes pipes, and keeps what comes through them."""

    def __init__(self, ahead: list[bytes], takes_pipes: bool) -> None:
        self.ahead = [*ahead, encode(pb.ServerMessage(moved=pb.Moved(done=takes_pipes)))]
        self.came: list[bytes | memoryview] = []
        self.on_stream: list[pb.WorkerMessage] = []
        self.ending: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.status = grpc.StatusCode.OK
        self.line: Line | None = None
        self._takes_pipes = takes_pipes

    async def write(self, data: bytes) -> None:
        message, _ = decode_worker_message(data)
        self.on_stream.append(message)
        if message.HasField("move") and self._takes_pipes:
            offered = message.move.pipes
            ends = open_pipes(offered.pid, offered.up, offered.down)
            self.line = Line(*ends, self.came.append, lambda: None, lambda _: None)

    async def read(self) -> Any:
        return self.ahead.pop(0) if self.ahead else await self.ending

    async def code(self) -> grpc.StatusCode:
        return self.status

    async def details(self) -> str:
        return "as the test has it"

    def cancel(self) -> None:
        if self.line is not None:
            self.line.close()

    def say(self, *messages: bytes) -> None:
        assert self.line is not None
        self.line.outbox.append(messages)
        self.line.flush()


def conversation(
    talk: Callable[[Stream, Server], Awaitable[None]], ahead: tuple[bytes, ...] = (), takes_pipes: bool = True
) -> None:
    async def run() -> None:
        async with Stream("unix:/nobody/listens") as stream:
            stream._call.cancel()
            server = Server([*ahead], takes_pipes)
            stream._call = server
            async with asyncio.timeout(10):
                await stream.share(b"proof", takes_pipes=True)
                await talk(stream, server)

    asyncio.run(run())


async def steps(stream: Stream, count: int) -> list[int]:
    received = [await stream.receive() for _ in range(count)]
    return [message.refusal.step for message, _ in filter(None, received)]


def test_messages_keep_their_order_from_before_the_pipes_to_the_end_of_the_stream() -> None:
    async def talk(stream: Stream, server: Server) -> None:
        server.say(refusal(2), refusal(3))
        server.say(refusal(4))
        assert await steps(stream, 5) == [0, 1, 2, 3, 4]
        for count in (1, 3_000_000):
            await stream.send(pb.WorkerMessage(failure=pb.Failure(reason="x" * count)))
        while len(server.came) < 2:
            await asyncio.sleep(0)
        assert [len(decode_worker_message(data)[0].failure.reason) for data in server.came] == [1, 3_000_000]
        assert [message.WhichOneof("kind") for message in server.on_stream] == ["share", "move"]
        # The stream ends while there is still something in the pipe.
        server.say(refusal(5), refusal(6))
        server.ending.set_result(grpc.aio.EOF)
        await asyncio.sleep(0)
        assert await steps(stream, 2) == [5, 6]
        assert await stream.receive() is None

    conversation(talk, ahead=(refusal(0), refusal(1)))


def test_whoever_waits_hears_of_the_end() -> None:
    async def talk(stream: Stream, server: Server) -> None:
        server.status = grpc.StatusCode.UNAVAILABLE
        receiving = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        # Nobody reads what is sent, so that it waits for room.
        assert server.line is not None
        asyncio.get_running_loop().remove_reader(server.line._reading)
        sending = asyncio.create_task(stream.send(pb.WorkerMessage(failure=pb.Failure(reason="x" * 3_000_000))))
        await asyncio.sleep(0)
        server.ending.set_result(grpc.aio.EOF)
        for task in (receiving, sending):
            with pytest.raises(grpc.RpcError) as caught:
                await task
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    conversation(talk)


def test_what_has_arrived_is_seen_without_a_turn_of_the_loop() -> None:
    async def talk(stream: Stream, server: Server) -> None:
        assert await steps(stream, 1) == [0]
        assert not stream.has_arrived()
        server.say(refusal(1))
        assert stream.has_arrived()
        assert stream.has_arrived()
        received = await stream.receive()
        assert not stream.has_arrived()
        stream.put_back(received)
        assert stream.has_arrived()
        assert await steps(stream, 1) == [1]

    conversation(talk, ahead=(refusal(0),))


def test_what_comes_while_others_have_their_turn_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(stream: Stream, server: Server) -> None:
        others = SimpleNamespace(sched_yield=lambda: server.say(refusal(1)))
        with monkeypatch.context() as patch:
            patch.setattr(worker_stream, "os", others)
            assert stream.has_arrived()
        assert await steps(stream, 1) == [1]

    conversation(talk)


def test_whoever_waits_for_two_things_hears_which_of_them_came() -> None:
    async def talk(stream: Stream, server: Server) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(stream.arrives(done))
        await asyncio.sleep(0)
        done.set_result(None)
        assert not await waiting
        server.say(refusal(7))
        other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert await stream.arrives(other)
        assert await steps(stream, 1) == [7]
        waiting = asyncio.create_task(stream.arrives(other))
        await asyncio.sleep(0)
        server.ending.set_result(grpc.aio.EOF)
        assert await waiting
        assert await stream.receive() is None

    conversation(talk)


def test_without_pipes_everything_stays_on_the_stream() -> None:
    async def talk(stream: Stream, server: Server) -> None:
        server.ahead = [refusal(2)]
        await stream.send(pb.WorkerMessage(heartbeat=pb.Heartbeat()))
        assert await steps(stream, 3) == [0, 1, 2]
        assert [message.WhichOneof("kind") for message in server.on_stream] == ["share", "move", "heartbeat"]

    conversation(talk, ahead=(refusal(0), refusal(1)), takes_pipes=False)


def test_what_comes_soon_is_had_without_a_turn_of_the_event_loop_but_the_loop_gets_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    waits: list[float] = []
    monkeypatch.setattr(worker_stream, "time", SimpleNamespace(monotonic=lambda: now))

    async def talk(stream: Stream, server: Server) -> None:
        nonlocal now
        turns, step, wait = 0, 0, Line.wait
        loop = asyncio.get_running_loop()

        def count() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(count)

        def answer(line: Line, seconds: float) -> bool:
            """Have the server answer while the process waits, if it is the worker's process that does."""
            nonlocal step
            assert line is stream._line
            waits.append(seconds)
            if is_soon:
                step += 1
                server.say(refusal(step))
            return wait(line, 0.0)

        async def receive() -> tuple[int, bool]:
            """Return the next message, and whether the loop had a turn before it."""
            before = turns
            (got,) = await steps(stream, 1)
            return got, turns > before

        monkeypatch.setattr(Line, "wait", answer)
        count()
        # Nobody knows yet whether anything comes soon.
        is_soon = True
        loop.call_later(0.001, server.say, refusal(0))
        assert await receive() == (0, True)
        assert waits == []
        assert [await receive() for _ in range(3)] == [(1, False), (2, False), (3, False)]
        assert len(waits) == 3
        # For a while the loop had none.
        now += worker_stream.TURN_S
        loop.call_later(0.001, server.say, refusal(4))
        assert await receive() == (4, True)
        assert len(waits) == 3
        # What does not come soon is not waited for in this way again, for a while.
        is_soon = False
        for expected in (4, 4, 5):
            loop.call_later(0.001, server.say, refusal(9))
            assert await receive() == (9, True)
            assert len(waits) == expected
            now += worker_stream.LATER_S / 2
            stream._turned = now

    conversation(talk)


@pytest.mark.parametrize("soon", [False, True])
def test_who_computes_meanwhile_is_not_held_up(monkeypatch: pytest.MonkeyPatch, soon: bool) -> None:
    waits: list[float] = []

    def wait(_line: Line, seconds: float) -> bool:
        waits.append(seconds)
        return False

    async def talk(stream: Stream, _server: Server) -> None:
        stream._turned = worker_stream.time.monotonic() + 60
        computed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(computed.set_result, None)
        assert not await stream.arrives(computed, soon)
        assert len(waits) == soon

    monkeypatch.setattr(Line, "wait", wait)
    conversation(talk)
