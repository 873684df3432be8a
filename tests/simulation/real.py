"""The real modules, put into simulated surroundings: what they take from the operating system comes from here."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

from paramserver.server import (
    control,
    coordinator,
    following,
    links,
    log,
    partition,
    replay,
    run,
    saver,
    shell,
    snapshots,
    store,
    training,
)
from paramserver.server.optimizers import factory
from paramserver.wire import sharing
from paramserver.wire.job import Job
from paramserver.worker import process as worker_process
from paramserver.worker import trainer
from simulation.disk import Flock, Os
from simulation.leadership import PartitionStub, simulated_grpc
from simulation.ledger import Learner
from simulation.loop import Clock, Process
from simulation.network import Network, Stream

#: Nothing that is measured in seconds of a watcher's patience matters here.
WATCH_EVERY_S = 2.0
BEAT_EVERY_S = 3.0

#: The simulated jobs are short.
AHEAD_VERSIONS = 3


@cache
def _that_tell_time() -> list[ModuleType]:
    modules = [m for name, m in sys.modules.items() if name.startswith(("paramserver.server.", "paramserver.worker."))]
    return [module for module in modules if getattr(module, "time", None) is time]


class _JobTexts:
    """What was read from and written as JSON already: a simulated network and disk carry the same few jobs."""

    def __init__(self) -> None:
        self._read: dict[str, Job] = {}
        self._written: dict[int, tuple[Job, str]] = {}
        self._from_json, self._to_json = Job.from_json, Job.to_json

    def read(self, text: str) -> Job:
        if text not in self._read:
            self._read[text] = self._from_json(text)
        return self._read[text]

    def write(self, job: Job) -> str:
        if id(job) not in self._written:
            self._written[id(job)] = job, self._to_json(job)
        return self._written[id(job)][1]


class _NoNotes:
    """Stands for `paramserver.server.provenance.Provenance`."""

    def __init__(self, *_: object) -> None:
        self.full = lambda: None

    def applied(self, _update: object) -> bool:
        return False

    def switched(self, *_: object) -> None:
        pass

    def take(self) -> None:
        pass

    def write(self, _notes: object) -> None:
        pass

    def close(self) -> None:
        pass


class _NoThread:
    """A pool whose work either goes through the simulated event loop or is none."""

    def __init__(self, **_: object) -> None:
        pass

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)

    def shutdown(self) -> None:
        pass


class _Thread:
    """A pool of one thread that nobody waits for."""

    def __init__(self, **_: object) -> None:
        pass

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        assert Process.current is not None
        Process.current.in_thread(self, function, arguments)

    def shutdown(self) -> None:
        process = Process.current
        assert process is not None
        process.io_time = max(process.io_time, process.thread_time(self))


@contextmanager
def surroundings(
    clock: Clock, network: Network, rng: Random, chunk_bytes: int, store_class: type[store.Store]
) -> Iterator[None]:
    """Let the real code run on a simulated clock, network and disk."""
    now = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now, time=lambda: clock.now)
    level = logging.root.manager.disable
    before: list[tuple[object, str, Any]] = []

    def put(owner: object, name: str, value: object) -> None:
        # A class method is to come back as one.
        before.append((owner, name, vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)))
        setattr(owner, name, value)

    try:
        for module in _that_tell_time():
            put(module, "time", now)
        texts = _JobTexts()
        put(Job, "from_json", staticmethod(texts.read))
        put(Job, "to_json", lambda job: texts.write(job))
        for module in (snapshots, log, replay):
            put(module, "os", Os(rng))
        for module in (coordinator, partition):
            put(module, "os", SimpleNamespace(urandom=rng.randbytes))
        put(coordinator, "random", rng)
        put(links, "grpc", simulated_grpc(network))
        put(links, "PartitionStub", PartitionStub)
        put(following, "ThreadPoolExecutor", _Thread)
        put(partition, "BEAT_EVERY_S", BEAT_EVERY_S)
        # SQLite does its own input and output, and no θ depends on what is noted there.
        put(shell, "Provenance", _NoNotes)
        put(shell, "gc", SimpleNamespace(collect=lambda: 0))
        put(saver, "ThreadPoolExecutor", _NoThread)
        put(snapshots, "fcntl", Flock())
        Stream.network = network
        put(worker_process, "Stream", Stream)
        put(worker_process, "random", rng)
        put(trainer, "Learner", Learner)
        put(run, "Store", store_class)
        # Shared memory belongs to the kernel, which is not simulated.
        put(sharing, "AVAILABLE", False)
        put(control, "WATCH_EVERY_S", WATCH_EVERY_S)
        put(log, "AHEAD_VERSIONS", AHEAD_VERSIONS)
        for module in (store, training):
            put(module, "CHUNK_BYTES", chunk_bytes)
        # Compiled forms give the same bits, and take seconds to compile.
        put(factory.make_optimizer, "__defaults__", (False,))
        logging.disable(logging.CRITICAL)
        yield
    finally:
        logging.disable(level)
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
