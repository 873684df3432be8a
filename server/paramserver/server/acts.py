"""What is done one after the other, where some of it has to wait for others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

#: Begins to do something.
Act = Callable[[], Coroutine[Any, Any, None]]


class Acts:
    """Carries out acts in the order in which they were added, none before the one before it is over.

    While nothing is left to do, an act is begun as it is added, by whoever adds it: one that need not wait is over
    then, and a turn of the event loop is saved. The rest of one that has to wait, and what comes behind it, is left to
    `work`, without which nothing is done. `after` is called after every act.
    """

    def __init__(self, after: Callable[[], None]) -> None:
        self._after = after
        self._left: deque[Act] = deque()
        #: What `work` waits for while there is nothing to do: the rest of an act that was begun.
        self._idle: asyncio.Future[_Rest] | None = None

    def add(self, act: Act) -> None:
        """Do this when all before it is done."""
        self._left.append(act)
        # What is added on the way comes behind it.
        idle, self._idle = self._idle, None
        if idle is None or idle.done():
            return
        try:
            rest = self._begin()
        except Exception as error:
            idle.set_exception(error)
            return
        if rest is None:
            self._idle = idle
        else:
            idle.set_result(rest)

    def _begin(self) -> _Rest | None:
        """Do what is left, up to where it has to wait."""
        while self._left:
            coroutine = self._left.popleft()()
            try:
                return _Rest(coroutine, coroutine.send(None))
            except StopIteration:
                self._after()
        return None

    async def work(self) -> None:
        """Go on with what is left until cancelled; when an act fails, no other is begun.

        Raises:
            Exception: that of the act.
        """
        while True:
            while self._left:
                await self._left.popleft()()
                self._after()
            self._idle = asyncio.get_running_loop().create_future()
            await (await self._idle)
            self._after()


class _Rest(Generator[Any, Any, None]):
    """What is left of a coroutine that waits for what it has yielded; to be awaited, once."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = [yielded]

    def __await__(self) -> _Rest:
        return self

    def send(self, value: Any) -> Any:
        """Pass on what it waits for, and from then on what becomes of that."""
        return self._yielded.pop() if self._yielded else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Have it deal with an error."""
        return self._coroutine.throw(*error)
