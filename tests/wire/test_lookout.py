"""Who gathers what several say waits awake for the others, while messages are small and nothing is answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from paramserver.wire import awake
from paramserver.wire.line import Line
from paramserver.wire.lookout import NEXT_S, Lookout

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
LARGE = b"x" * 40_000


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "little") + message


class Gathering:
    """Lines of one look-out, and the descriptors that lead to them."""

    def __init__(self, count: int) -> None:
        self.came: list[tuple[int, bytes]] = []
        self.on_message: Callable[[int], None] = lambda _number: None
        self.lookout = Lookout()
        self.ends: list[int] = []
        self.lines: list[Line] = []
        for number in range(count):
            reading, end = os.pipe2(FLAGS)
            answers, writing = os.pipe2(FLAGS)
            self.ends += [end, answers]

            def take(data: bytes | memoryview, number: int = number) -> None:
                self.came.append((number, bytes(data)))
                self.on_message(number)

            line = Line(reading, writing, take, lambda: None, lambda _: None, self.lookout)
            self.lines.append(line)

    def say(self, number: int, message: bytes) -> None:
        os.write(self.ends[2 * number], framed(message))

    def answer(self, number: int) -> None:
        self.lines[number].outbox.append([b"answer"])
        self.lines[number].flush()

    def close(self) -> None:
        for line in self.lines:
            line.close()
        for end in self.ends:
            os.close(end)


@contextlib.contextmanager
def gathering(count: int) -> Iterator[Gathering]:
    made = Gathering(count)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What others do, one after the other, when they are given the core."""
    acts: list[Callable[[], None]] = []

    now = 100.0

    def give_way() -> None:
        nonlocal now
        if acts:
            # However slow this machine is, nobody else wants the core, and it is soon.
            acts.pop(0)()
        else:
            now += NEXT_S

    monkeypatch.setattr(awake, "os", SimpleNamespace(sched_yield=give_way))
    monkeypatch.setattr(awake, "time", SimpleNamespace(monotonic=lambda: now))
    return acts


def test_what_others_say_soon_is_read_in_the_same_turn(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(3) as here:
            others.extend([lambda: None, lambda: here.say(2, b"two"), lambda: here.say(1, b"one")])
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero"), (2, b"two"), (1, b"one")]

    asyncio.run(main())


def test_who_has_answered_waits_for_nobody(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(3) as here:
            here.on_message = lambda number: here.answer(0) if number == 1 else None
            others.extend([lambda: here.say(1, b"one"), lambda: here.say(2, b"two")])
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero"), (1, b"one")]
            assert len(others) == 1, "others were given the core once more"

    asyncio.run(main())


@pytest.mark.parametrize("is_whole", [True, False])
def test_behind_a_large_message_nothing_is_waited_for(others: list[Callable[[], None]], is_whole: bool) -> None:
    async def main() -> None:
        with gathering(2) as here:
            others.append(lambda: here.say(1, b"one"))
            os.write(here.ends[0], framed(LARGE)[: None if is_whole else -1])
            here.lookout.listen(here.lines[0])
            assert here.came == ([(0, LARGE)] if is_whole else [])
            assert len(others) == 1

    asyncio.run(main())


def test_a_single_line_is_not_waited_for(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(1) as here:
            others.append(lambda: here.say(0, b"again"))
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero")]

    asyncio.run(main())


def test_each_line_is_waited_for_once(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(2) as here:
            others.extend([lambda: here.say(1, b"one"), lambda: here.say(1, b"once more")])
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero"), (1, b"one")], "everything else has its turn"

    asyncio.run(main())


def test_a_line_that_ends_meanwhile_is_forgotten(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(3) as here:
            others.extend([here.lines[1].close, lambda: here.say(2, b"two")])
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero"), (2, b"two")]

    asyncio.run(main())


def test_nothing_stays_open_behind_the_last_line() -> None:
    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        with gathering(2):
            pass
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_the_loop_has_a_line_listened_to(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(2) as here:
            others.append(lambda: here.say(1, b"one"))
            here.say(0, b"zero")
            async with asyncio.timeout(10):
                while not here.came:
                    await asyncio.sleep(0)
            assert here.came == [(0, b"zero"), (1, b"one")]

    asyncio.run(main())


def test_after_an_answer_others_are_waited_for_anew(others: list[Callable[[], None]]) -> None:
    async def main() -> None:
        with gathering(2) as here:
            here.answer(0)
            others.append(lambda: here.say(1, b"one"))
            here.say(0, b"zero")
            here.lookout.listen(here.lines[0])
            assert here.came == [(0, b"zero"), (1, b"one")]

    asyncio.run(main())
