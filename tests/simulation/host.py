"""A simulated machine: a disk, and a server that is started there, dies and is started again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any, Protocol

from paramserver.server.control import ControlService
from paramserver.server.coordinator import Coordinator
from paramserver.server.following import Follower
from paramserver.server.partition import FollowerControl, PartitionService
from paramserver.server.place import Place
from paramserver.server.process import make_shell
from paramserver.server.shell import Shell
from paramserver.server.snapshots import StateDirectory
from paramserver.server.training import TrainingService
from paramserver.wire.errors import StateError
from simulation.disk import Disk, Path
from simulation.loop import Clock, Process
from simulation.network import ACKNOWLEDGED_TAG, WORK_TAG, Context, Listener, Network
from simulation.oracle import Violation

STATE = "/var/lib/state"


class Surroundings(Protocol):
    """What a machine stands in."""

    clock: Clock
    network: Network

    def tell(self, text: str) -> None:
        """Write a line of the trace."""

    def server_started(self, host: Host) -> None:
        """Look at a server that has just started."""

    def server_died(self, host: Host) -> None:
        """A server has just been killed."""

    def server_ended(self, host: Host) -> None:
        """A server has done all that it does before it exits."""

    def work_goes_out(self, message: bytes, context: Context) -> None:
        """Look at work that the server that decides sends to a worker."""

    def acknowledgement_goes_out(self, message: bytes) -> None:
        """Look at what the server that decides tells a worker for good."""


class Host:
    """The machine of server `number` of `count`; `delay` draws how long its disk takes for an operation."""

    def __init__(self, world: Surroundings, number: int, count: int, rng: Random, delay: Callable[[], float]) -> None:
        self._world, self._rng, self._delay = world, rng, delay
        self.number, self._count = number, count
        self.name = name_of(number, count)
        self.disk = Disk(delay, self._disk_fault)
        self.disk.watch = self._disk_moved
        self.disk_fails = False
        #: Something that was promised may not have reached it then; the server has said so.
        self.disk_failed_since_boot = False
        #: A bit of the newest snapshot flips when the server dies next.
        self.rots = False
        #: Kills the server at one of the next operations of its disk: (operations left, whether the power goes too).
        self.trap: tuple[int, bool] | None = None
        self.process: Process | None = None
        self.shell: Shell | Follower | None = None
        self._leading: asyncio.Task[None] | None = None
        #: It was told to end.
        self._is_ending = False
        self.graves: list[Process] = []

    @property
    def decides(self) -> Shell | None:
        """The shell of the server that has the engine which decides; None while it is not there."""
        return self.shell if isinstance(self.shell, Shell) else None

    def start(self) -> None:
        """Start the server."""
        process = Process(self.name, self._world.clock, self._delay)
        process.disk = self.disk
        self.process, self.shell, self._leading, self._is_ending = process, None, None, False
        self._world.clock.at(self._world.clock.now, process, lambda: self._boot(process))

    def start_in(self, seconds: float) -> None:
        """Start the server after a while, unless somebody else does."""

        def start() -> None:
            if self.process is None:
                self.start()

        self._world.clock.at(self._world.clock.now + seconds, None, start)

    def _boot(self, process: Process) -> None:
        peers = [name_of(number, self._count) for number in range(1, self._count)]
        try:
            directory = StateDirectory(Path(STATE))
            shell = make_shell(Place(self.number, self._count), [] if self.number else peers, directory)
        except StateError as error:
            if not self.disk_fails and not self.disk_failed_since_boot:
                raise Violation(f"{self.name} does not start: {error}") from None
            self._world.tell(f"{self.name} does not start: {error}")
            self.kill(power=False)
            self.start_in(0.5)
            return
        self.disk_failed_since_boot = False
        self.shell = shell
        self._world.network.listeners[self.name] = self._listener(process, shell)
        if isinstance(shell, Coordinator):
            self._leading = asyncio.create_task(shell.lead())
            self._leading.add_done_callback(_note_failure(process))
        self._world.server_started(self)

    def _listener(self, process: Process, shell: Shell | Follower) -> Listener:
        training = TrainingService(shell)
        services: list[Any] = (
            [ControlService(shell)]
            if isinstance(shell, Shell)
            else [
                FollowerControl(shell),
                PartitionService(shell),
            ]
        )

        async def train(context: Context) -> None:
            if isinstance(shell, Shell):
                original = context.write

                async def write(message: bytes) -> None:
                    if message[:1] == WORK_TAG:
                        self._world.work_goes_out(message, context)
                    elif message[:1] == ACKNOWLEDGED_TAG:
                        self._world.acknowledgement_goes_out(message)
                    await original(message)

                context.write = write  # type: ignore[method-assign]
            await training._train(None, context)  # type: ignore[arg-type]

        async def follow(context: Context) -> None:
            await services[-1].Follow(None, context)

        async def call(method: str, request: Any, context: Context) -> AsyncIterator[Any]:
            answer = getattr(next(s for s in services if hasattr(s, method)), method)(request, context)
            if isinstance(answer, AsyncIterator):
                async for reply in answer:
                    yield reply
            else:
                yield await answer

        return Listener(process, train, follow, call)

    def kill(self, power: bool) -> None:
        """Kill the server, and take the machine's power away for a moment, or not."""
        process = self.process
        if process is None:
            return
        self._world.tell(f"{self.name} is killed{', power is lost' if power else ''}")
        self.trap = None
        self.process = self.shell = None
        self._world.network.listeners.pop(self.name, None)
        process.kill()
        self.graves.append(process)
        now = self._world.clock.now
        if power:
            self.disk.power_lost(now, self._rng)
        else:
            self.disk.process_died(now)
        self._world.server_died(self)

    def flip_newest(self) -> bool:
        """Flip a bit of the newest snapshot, if there is one to fall back to; say whether."""
        entries = self.disk.content.directories.get(STATE, {})
        files = sorted(name for name in entries if name.endswith(".safetensors"))
        if len(files) < 2 or files[-1].split("-")[1] != files[-2].split("-")[1]:
            return False
        self.rots = False
        self._world.tell(f"{files[-1]} of {self.name} rots")
        self.disk.flip(entries[files[-1]], self._rng)
        return True

    def end(self) -> None:
        """Have the server end as on SIGTERM, and start it again."""
        if self.process is not None and self.shell is not None and not self.process.stopped and not self._is_ending:
            self._is_ending = True
            self.process.start(self._terminate(self.process, self.shell))

    async def _terminate(self, process: Process, shell: Shell | Follower) -> None:
        """What the server process does on SIGTERM, see `paramserver.server.process`."""
        network = self._world.network
        network.listeners.pop(self.name, None)
        shell.end_streams()
        await asyncio.sleep(0.5)
        for connection in list(network.connections):
            if process is connection.processes[1]:
                connection.close(connection.server)
        await shell.close()
        self._world.server_ended(self)
        if self._leading is not None:
            self._leading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._leading
        self._world.tell(f"{self.name} has ended")
        # It exits once it has nothing more to do.
        self._world.clock.at(self._world.clock.now, None, lambda: self._exit(process))

    def _exit(self, process: Process) -> None:
        if self.process is process:
            self.kill(power=False)
            self.start_in(0.3)

    def _disk_fault(self, kind: str) -> int:
        if not self.disk_fails or self._rng.random() < 0.6:
            return 0
        self.disk_failed_since_boot = True
        return errno.EIO if kind in ("fsync", "sync", "rename", "unlink") else errno.ENOSPC

    def _disk_moved(self, at: float, _kind: str) -> None:
        if self.trap is None:
            return
        left, power = self.trap
        self.trap = (left - 1, power) if left else None
        if not left:
            process = self.process

            def die() -> None:
                if self.process is process:
                    self.kill(power)
                    self.start_in(0.1)

            # Before the operation that follows.
            self._world.clock.at(at, None, die)


def name_of(number: int, count: int) -> str:
    """Return what a server of so many is called, and the address where it listens."""
    return "server" if count == 1 else f"server {number}"


def _note_failure(process: Process) -> Callable[[asyncio.Task[None]], None]:
    def look(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            process.errors.append(f"leads no more: {task.exception()!r}")

    return look
