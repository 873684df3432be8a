"""Servers and workers of one training in one event loop, on real sockets, real shared memory and real files.

What is killed is killed by name: before the gradient of a given (shard, step) is computed. A server that is killed
answers nobody any more, and what it still does to its files is not seen: another one starts at its address from a copy
of its state directory. A worker that is killed drops its streams without a word, and another one starts in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc

from paramserver.client import Client
from paramserver.server.coordinator import Coordinator
from paramserver.server.doorway import Doorway
from paramserver.server.engine import Engine
from paramserver.server.following import Follower
from paramserver.server.place import ALONE, Place
from paramserver.server.process import OPTIONS, add_services, make_shell
from paramserver.server.shell import Shell
from paramserver.server.snapshots import StateDirectory
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.worker.learner import Learner
from paramserver.worker.process import work
from paramserver.worker.trainer import Gradient, Identity, Trainer

#: Nothing in these tests takes this long unless it hangs.
DEADLINE_S = 60.0

#: Whatever is to happen before the gradient of a shard and step is computed.
Before = Callable[["OneLoop", int, int], Awaitable[None]]


class Killed(Exception):
    """A worker that computes no more."""


class Outcome(NamedTuple):
    """How a training ended, as a client sees it."""

    state: str
    reason: str
    version: int
    clock: tuple[int, ...]
    samples: int
    loss: float
    #: Contributions by staleness: (versions, how many).
    staleness: tuple[tuple[int, int], ...]
    #: Empty if there never was one.
    theta_sha256: str


class Server:
    """One server, over any number of lives."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self._folder = folder
        self._lives = 0
        self._port = 0
        self._peers: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def _state(self) -> Path:
        return self._folder / f"state-{self.place.partition}-{self._lives}"

    async def start(self, peers: list[str]) -> None:
        self._peers = peers
        self._directory = StateDirectory(self._state)
        self.shell: Shell | Follower = make_shell(self.place, peers, self._directory)
        self._server = grpc.aio.server(options=OPTIONS)
        self._doorway = Doorway.open("127.0.0.1", 0)
        add_services(self._server, self.shell, self._doorway)
        self._port = self._server.add_insecure_port(self.address)
        await self._server.start()
        self._leading = asyncio.create_task(self.shell.lead()) if isinstance(self.shell, Coordinator) else None

    async def kill(self) -> None:
        """End without a word, and start again from what is on the disk at that moment."""
        await self._server.stop(None)
        await self._written()
        before = self._state
        self._lives += 1
        shutil.copytree(before, self._state)
        await self.end()
        await self.start(self._peers)

    async def _written(self) -> None:
        """Wait for what is being written: files must not move while they are copied."""
        if isinstance(self.shell, Follower):
            await asyncio.get_running_loop().run_in_executor(self.shell._thread, lambda: None)
            if self.shell._log is not None:
                await self.shell._log.written()
            return
        await self.shell.caught_up()
        await self.shell.settled()
        if self.shell._saver is not None:
            await self.shell._saver.noted()

    async def end(self) -> None:
        self.shell.end_streams()
        await self._server.stop(None)
        self._doorway.close()
        if self._leading is not None:
            self._leading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._leading
        await self.shell.close()
        self._directory.close()
        if isinstance(self.shell, Shell) and self.shell._timer is not None:
            self.shell._timer.cancel()


class OneLoop:
    """`partitions` servers that share θ, and workers that come back when they are killed."""

    def __init__(self, folder: Path, transport: str, partitions: int, before: Before) -> None:
        self.servers = [Server(Place(n, partitions) if partitions > 1 else ALONE, folder) for n in range(partitions)]
        #: What the job does not allow to share, travels.
        self._transport = "auto" if transport == "shm" else transport
        self._before = before
        self._workers: dict[str, asyncio.Task[None]] = {}
        #: Whether each worker's tensors travelled in shared memory, as seen when it computed.
        self.shared: set[bool] = set()
        #: Which shards each worker computed, by its name.
        self.computed: dict[str, set[int]] = {}
        self.deaths = 0

    @property
    def shell(self) -> Shell:
        shell = self.servers[0].shell
        assert isinstance(shell, Shell)
        return shell

    @property
    def engine(self) -> Engine:
        assert self.shell.run is not None
        return self.shell.run.engine

    async def train(self, job: Job, workers: list[Identity]) -> Outcome:
        """Run a job to its end."""
        for server in reversed(self.servers):
            await server.start([peer.address for peer in self.servers[1:]] if server is self.servers[0] else [])
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self.shell.waits_for:
                    await asyncio.sleep(0.002)
                for identity in workers:
                    self._start(identity)
                return await asyncio.to_thread(self._submit_and_watch, job)
        finally:
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)
            for server in self.servers:
                await server.end()

    def _submit_and_watch(self, job: Job) -> Outcome:
        with Client(self.servers[0].address) as client:
            client.submit(job, uuid.uuid4().hex)
            for _ in client.watch():
                pass
            status = client.status()
            theta, _ = client.pull() if status.version else ({}, 0)
        numbers = (status.state, status.reason, status.version, tuple(status.clock), status.samples, status.loss)
        staleness = tuple(sorted(status.staleness.items()))
        return Outcome(*numbers, staleness, theta_sha256(theta) if theta else "")

    def _start(self, identity: Identity) -> None:
        trainer = Trainer(identity, transport=self._transport)
        trainer._compute = partial(self._compute, trainer)
        addresses = [server.address for server in self.servers]
        worker = asyncio.create_task(work(addresses, trainer, DEADLINE_S))
        self._workers[identity.name] = worker
        worker.add_done_callback(partial(self._replace, identity))

    def _replace(self, identity: Identity, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and isinstance(worker.exception(), Killed):
            self.deaths += 1
            self._start(Identity(identity.name, identity.accepts, identity.pinned))

    async def _compute(
        self,
        trainer: Trainer,
        learner: Learner,
        theta: dict[str, Array],
        shard: int,
        step: int,
        out: dict[str, Array],
    ) -> Gradient:
        self.computed.setdefault(trainer._identity.name, set()).add(shard)
        await self._before(self, shard, step)
        self.shared.add(trainer._replica is not None and trainer._replica.shares_memory)
        return await trainer._compute_by_task(learner, theta, shard, step, out)
