"""Simulated processes: each runs real asyncio code on an event loop of its own, all of them in one thread and one time.

A process can be killed, stopped and continued between any two of its callbacks. What runs in an executor is run at
once and its result handed over when the simulated disk and the simulated computation would be done.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

Action = Callable[[], None]


class Clock:
    """The one time and the one queue of everything that is going to happen."""

    def __init__(self) -> None:
        #: Seconds. Not 0, so that a clock that was forgotten shows.
        self.now = 1000.0
        self._queue: list[tuple[float, int, Process | None, Action]] = []
        self._count = 0

    def at(self, when: float, process: Process | None, action: Action) -> None:
        """Have a process (None: the outside world) do something at a time; what is due together happens in order."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, process, action))

    def step(self) -> Process | None:
        """Do the next thing; return the process that did it, or None if none did.

        Raises:
            IndexError: if nothing is left to do.
        """
        when, count, process, action = heapq.heappop(self._queue)
        self.now = max(self.now, when)
        if process is None:
            action()
            return None
        if not process.alive:
            return None
        if process.stopped:
            process.backlog.append(action)
            return None
        if process.busy_until > self.now:
            # It waits for its disk; what came meanwhile is taken up in the same order.
            heapq.heappush(self._queue, (process.busy_until, count, process, action))
            return None
        process.run(action)
        return process


class Process:
    """A process of the simulation, on a host of its own."""

    #: The one whose code runs at the moment.
    current: Process | None = None

    def __init__(self, name: str, clock: Clock, delay: Callable[[], float]) -> None:
        self.name = name
        self.clock = clock
        self.alive = True
        #: As by SIGSTOP.
        self.stopped = False
        self.stopped_at = 0.0
        self.backlog: deque[Action] = deque()
        #: Its event loop stands still until then, since a callback waits for the disk.
        self.busy_until = 0.0
        #: How far the disk operations of the running code have come.
        self.io_time = 0.0
        self.loop = Loop(self)
        #: How long a computation beside the event loop takes.
        self.delay = delay
        self.on_death: list[Action] = []
        self.errors: list[str] = []
        self._threads: dict[Any, float] = {}
        self._is_in_thread = False
        #: That of its host, if it has one.
        self.disk: Any = None

    def run(self, action: Action) -> None:
        """Run code of this process and all that it puts into its event loop at once."""
        before, Process.current = Process.current, self
        loop_before = events._get_running_loop()
        events._set_running_loop(self.loop)
        self.io_time = self.clock.now
        try:
            action()
            ready = self.loop.ready
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle.run()
        finally:
            events._set_running_loop(loop_before)
            Process.current = before
        self.busy_until = max(self.busy_until, self.io_time)

    def kill(self) -> None:
        """End it between two callbacks, as `kill -9` does; nothing of its code runs any more."""
        self.alive = False
        self.loop.ready.clear()
        for action in self.on_death:
            action()

    def stop(self) -> None:
        """Stand still, as by SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """Go on with what has piled up."""
        self.stopped = False
        for action in self.backlog:
            self.clock.at(self.clock.now, self, action)
        self.backlog.clear()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task, to be called from outside of the process."""
        task = self.loop.create_task(coroutine)
        self.wake()
        return task

    def wake(self) -> None:
        """Have what lies ready in the event loop run soon."""
        self.clock.at(self.clock.now, self, lambda: None)

    def in_thread(self, executor: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Run a function as a thread would that takes its time."""
        future: asyncio.Future[Any] = self.loop.create_future()
        in_loop = self.io_time
        # A pool of one thread: one thing after the other.
        self.io_time = self.thread_time(executor) + self.delay()
        result, error = None, None
        self._is_in_thread = True
        try:
            result = function(*arguments)
        except Exception as raised:
            error = raised
        finally:
            self._is_in_thread = False
        end, self.io_time = self.io_time, in_loop
        self._threads[executor] = end

        def done() -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.clock.at(end, self, done)
        return future

    def thread_time(self, executor: Any) -> float:
        """Say when a pool has done all that it was given."""
        return max(self.clock.now, self._threads.get(executor, 0.0))

    @property
    def thread_now(self) -> float | None:
        """The time of what runs in a thread at the moment; None if nothing does."""
        return self.io_time if self._is_in_thread else None

    def bury(self) -> None:
        """Take apart what is left after the end of the simulation, quietly."""
        self.alive = False
        events._set_running_loop(self.loop)
        try:
            for task in self.loop.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    task.get_coro().close()  # type: ignore[union-attr]
        finally:
            events._set_running_loop(None)
        self.loop.tasks.clear()


class Handle:
    """A callback in an event loop, in the shape of `asyncio.TimerHandle`."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_loop")

    def __init__(self, loop: Loop, callback: Any, args: tuple[Any, ...], context: Context | None) -> None:
        self._loop, self._callback, self._args, self._context = loop, callback, args, context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def run(self) -> None:
        """Run it, as a loop does."""
        try:
            if self._context is None:
                self._callback(*self._args)
            else:
                self._context.run(self._callback, *self._args)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"in {self._callback!r}", "exception": error})


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as the code under test uses."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self._process.clock.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = Handle(self, callback, args, context)
        if self._process.alive:
            self.ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        now = self._process.thread_now
        if now is None:
            return self.call_soon(callback, *args, context=context)
        return self.call_at(now, callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self._process.clock.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = Handle(self, callback, args, context)

        def fire() -> None:
            if not handle._cancelled:
                self.ready.append(handle)

        self._process.clock.at(when, self._process, fire)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        return self._process.in_thread(executor, func, args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._process.alive:
            self._process.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
