"""Pipes bring every message, whole and in order, and leave no descriptor behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from paramserver.wire import sharing
from paramserver.wire.errors import PeerGone, ProtocolError
from paramserver.wire.pipes import MAX_BYTES, PipePair, Pipes, open_pipes

pytestmark = pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no /proc to find pipes in")


class End:
    """One end of a pair: keeps what comes."""

    def __init__(self, reading: int, writing: int) -> None:
        self.came: list[bytes] = []
        self.errors: list[ProtocolError] = []
        self.news = asyncio.Event()
        self.pipes = Pipes(reading, writing, self._take, lambda: None, self._fail)

    def _take(self, data: bytes) -> None:
        self.came.append(data)
        self.news.set()

    def _fail(self, error: ProtocolError) -> None:
        self.errors.append(error)
        self.news.set()

    def send(self, *messages: bytes) -> None:
        self.pipes.outbox.append(messages)
        self.pipes.flush()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.came) < count and not self.errors:
                self.news.clear()
                await self.news.wait()


def ends() -> tuple[End, End]:
    """Return the worker's end and the server's."""
    pair = PipePair()
    theirs = open_pipes(os.getpid(), pair.up, pair.down)
    return End(*pair.take()), End(*theirs)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_of_any_size_come_whole_and_in_order_both_ways() -> None:
    up = [b"", b"a", os.urandom(100), os.urandom(3 << 20), b"z" * 5, os.urandom(70_000), b""]
    down = [os.urandom(n) for n in range(0, 3_000_000, 299_999)]

    async def talk() -> None:
        worker, server = ends()
        for message in up:
            worker.send(message)
        server.send(*down)
        assert not server.pipes.is_drained, "more than a pipe holds"
        await asyncio.gather(worker.until(len(down)), server.until(len(up)))
        assert (server.came, worker.came) == (up, down)
        assert worker.pipes.is_drained
        assert server.pipes.is_drained
        for end in (worker, server):
            end.pipes.close()
            end.pipes.close()

    before = descriptors()
    asyncio.run(talk())
    assert descriptors() == before


def test_what_is_no_message_is_told_once_and_nothing_comes_after_it() -> None:
    async def talk() -> None:
        worker, server = ends()
        worker.send(b"fine")
        os.write(worker.pipes._writing, (MAX_BYTES + 1).to_bytes(4, "little"))
        worker.send(b"not any more")
        await server.until(2)
        assert server.came == [b"fine"]
        assert [str(error) for error in server.errors] == [
            f"a message of {MAX_BYTES + 1} bytes is in a pipe, allowed are {MAX_BYTES}"
        ]
        worker.pipes.close()
        # Nobody reads, and nobody minds.
        server.send(b"x" * 10)
        assert server.pipes.is_drained
        server.pipes.close()

    asyncio.run(talk())


def test_only_pipes_that_are_there_are_opened(tmp_path: Path) -> None:
    before = descriptors()
    pair = PipePair()
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ProtocolError, match=r"descriptor \d+ .* is no pipe"):
        open_pipes(os.getpid(), pair.up, file.fileno())
    with pytest.raises(PeerGone, match="no pipe 7 of process 4194305"):
        open_pipes(2**22 + 1, 7, pair.down)
    pair.close()
    assert descriptors() == before
