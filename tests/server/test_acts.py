"""One act after the other, the first at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import pytest

from paramserver.server.acts import Act, Acts


class Book:
    """Writes down what is done, and does it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.acts = Acts(lambda: self.lines.append("after"))

    def act(self, name: str, *awaited: asyncio.Future[str], then: tuple[str, ...] = ()) -> Act:
        """Return an act that begins, adds others, and waits."""

        async def do() -> None:
            self.lines.append(name)
            for other in then:
                self.acts.add(self.act(other))
            for future in awaited:
                self.lines.append(f"{name} {await future}")

        return do


async def begun(book: Book) -> asyncio.Task[None]:
    working = asyncio.create_task(book.acts.work())
    await asyncio.sleep(0)
    return working


async def end(working: asyncio.Task[None]) -> None:
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


def test_what_need_not_wait_is_over_when_it_was_added() -> None:
    async def run() -> None:
        book = Book()
        book.acts.add(book.act("early"))
        assert book.lines == [], "nobody works yet"
        working = await begun(book)
        book.acts.add(book.act("a", then=("b", "c")))
        assert book.lines == ["early", "after", "a", "after", "b", "after", "c", "after"]
        await end(working)

    asyncio.run(run())


@pytest.mark.parametrize("waits", [1, 2])
def test_what_comes_behind_one_that_waits_is_done_when_that_is_over(waits: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        book, futures = Book(), [loop.create_future() for _ in range(waits)]
        working = await begun(book)
        book.acts.add(book.act("a", *futures, then=("b",)))
        book.acts.add(book.act("c"))
        assert book.lines == ["a"]
        for future in futures:
            await asyncio.sleep(0)
            future.set_result("heard")
        book.acts.add(book.act("d"))
        for _ in range(5):
            await asyncio.sleep(0)
        heard = ["a heard"] * waits
        assert book.lines == ["a", *heard, "after", "b", "after", "c", "after", "d", "after"]
        # Once more at once.
        book.acts.add(book.act("e"))
        assert book.lines[-2:] == ["e", "after"]
        await end(working)

    asyncio.run(run())


def test_what_an_act_waits_for_can_fail_and_it_can_wait_once_more() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        book, broken, other = Book(), loop.create_future(), loop.create_future()

        async def do() -> None:
            try:
                await broken
            except ValueError as error:
                book.lines.append(f"{error}, then {await other}")

        working = await begun(book)
        book.acts.add(do)
        await asyncio.sleep(0)
        broken.set_exception(ValueError("broken"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        other.set_result("heard")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert book.lines == ["broken, then heard", "after"]
        await end(working)

    asyncio.run(run())


@pytest.mark.parametrize("waits", [False, True])
def test_a_failure_ends_the_work_whoever_began_the_act(waits: bool) -> None:
    async def run() -> None:
        book = Book()

        async def fail(waits: bool) -> None:
            if waits:
                await asyncio.sleep(0)
            raise ValueError("no")

        working = await begun(book)
        book.acts.add(partial(fail, waits))
        book.acts.add(book.act("a"))
        with pytest.raises(ValueError, match="no"):
            await working
        book.acts.add(book.act("b"))
        assert book.lines == []

    asyncio.run(run())


def test_nothing_is_begun_once_the_work_is_cancelled() -> None:
    async def run() -> None:
        book = Book()
        working = await begun(book)
        working.cancel()
        # Before it has heard of it too.
        book.acts.add(book.act("a"))
        await end(working)
        book.acts.add(book.act("b"))
        assert book.lines == []

    asyncio.run(run())


def test_an_act_that_waits_hears_that_the_work_is_cancelled() -> None:
    async def run() -> None:
        book, lines = Book(), list[str]()

        async def do() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                lines.append("cancelled")

        working = await begun(book)
        book.acts.add(do)
        await asyncio.sleep(0)
        await end(working)
        assert lines == ["cancelled"]
        assert book.lines == []

    asyncio.run(run())
