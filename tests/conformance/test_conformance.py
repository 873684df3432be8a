"""Every feature over every transport and number of servers, undisturbed and through a death: the same bits.

A cell is a feature of `conformance.table` in one place: over `grpc` alone, beside a `stream` or over `shm`, with θ on
1, 2 or 3 servers. All features are run in all nine places. How a cell is disturbed rotates with the feature and the
place: not at all, by the death of a server or by that of a worker, after a snapshot and some more steps. So every
feature lives through each thrice, and every place through each with a third of the features; which of the servers dies
rotates too. Cells that the product refuses are in `REFUSED`: they pass only while they are refused, with the message
that stands there.

What every cell must give is what one worker and one server make of the job without sockets, files or cuts: the hash of
θ as a client pulls it, and version, clocks, samples, loss and the histogram of staleness as the status tells them.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from conformance.oneloop import Killed, OneLoop, Outcome
from conformance.table import FEATURES, REFUSED, SHARDS, STEPS, Feature, make_job
from paramserver.server import coordinator
from paramserver.server.engine import Engine
from paramserver.server.snapshot import named
from paramserver.wire.errors import JobError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.layout import Array
from paramserver.worker import process
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import Gradient, Identity
from server.inprocess import Training, at_once

Theta = dict[str, Array]

PLACES = list(product(("grpc", "stream", "shm"), (1, 2, 3)))
RECOVERIES = ("undisturbed", "server", "worker")

#: (shard, step) before which a snapshot is taken, and before which the victim dies.
SAVED_AT, KILLED_AT = (0, 2), (1, 4)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever looks for a server again does so soon; sums have one order."""
    monkeypatch.setattr(process, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(coordinator, "FIRST_PAUSE_S", 0.01)
    with threadpool_limits(limits=1):
        yield


class Turns:
    """Lets one gradient at a time be computed, shard after shard, once all wait with the θ that they have."""

    def __init__(self, order: Sequence[int], engine: Callable[[], Engine]) -> None:
        self._order, self._engine = order, engine
        self._waiting: set[int] = set()
        self._taken = 0

    async def wait(self, shard: int) -> None:
        self._waiting.add(shard)
        while not self._is_next(shard):
            await asyncio.sleep(0.0005)
        self._waiting.discard(shard)
        self._taken += 1

    def _is_next(self, shard: int) -> bool:
        engine = self._engine()
        at_work = {s for s, clock in enumerate(engine.clocks) if clock < engine.total_steps}
        while self._next not in at_work:
            self._taken += 1
        return shard == self._next and at_work <= self._waiting

    @property
    def _next(self) -> int:
        return self._order[self._taken % len(self._order)]


@functools.cache
def reference(number: int) -> Outcome:
    """Train with one worker, or in turns, without sockets, files, cuts or deaths."""
    feature = FEATURES[number]
    training = Training(make_job(feature, 1))
    turns, switches = Turns(feature.turns, lambda: training.run.engine), dict(feature.switches)

    async def compute(learner: Learner, theta: Theta, shard: int, step: int, out: Theta) -> Gradient:
        if feature.turns:
            await turns.wait(shard)
        if (changes := switches.pop((shard, step), None)) is not None:
            training.run.set_policy(changes)
        return await at_once(learner, theta, shard, step, out)

    training.finish(*[compute] * (feature.workers if feature.turns else 1))
    assert not switches
    run, engine = training.run, training.run.engine
    assert run.store is not None
    theta = named(run.store.layout, run.store.theta, {} if run.tables is None else run.tables.contents())
    return Outcome(
        *(engine.phase, engine.reason, engine.version, tuple(engine.clocks), engine.samples, engine.loss),
        tuple(sorted(engine.staleness.items())),
        theta_sha256(theta),
    )


class Faults:
    """What happens to a training, once each."""

    def __init__(self, feature: Feature, recovery: str, victim: int) -> None:
        self.recovery, self.victim = recovery, victim
        self.switches = dict(feature.switches)
        self.done: set[tuple[int, int]] = set()
        self.turns: Turns | None = None

    async def __call__(self, loop: OneLoop, shard: int, step: int) -> None:
        if self.turns is not None:
            await self.turns.wait(shard)
        at = (shard, step)
        if (changes := self.switches.pop(at, None)) is not None:
            await loop.shell.set_policy(changes)
            await loop.shell.settled()
        if self.recovery == "undisturbed" or at in self.done or at not in (SAVED_AT, KILLED_AT):
            return
        self.done.add(at)
        if at == SAVED_AT:
            await loop.shell.save()
        elif self.recovery == "server":
            await loop.servers[self.victim].kill()
        else:
            raise Killed


def cells() -> Iterator[pytest.param]:
    for number, feature in enumerate(FEATURES):
        for place, (transport, partitions) in enumerate(PLACES):
            recovery = RECOVERIES[(number + place + place // 3) % 3] if feature.recovers else "undisturbed"
            victim = (number // 3 + place) % partitions
            name = f"{feature.name}-{transport}-{partitions}-{recovery}"
            yield pytest.param(number, transport, partitions, recovery, victim, id=name)


@pytest.mark.parametrize(("number", "transport", "partitions", "recovery", "victim"), list(cells()))
def test_the_bits_are_the_same(
    tmp_path: Path, number: int, transport: str, partitions: int, recovery: str, victim: int
) -> None:
    feature = FEATURES[number]
    faults = Faults(feature, recovery, victim)
    loop = OneLoop(tmp_path, transport, partitions, faults)
    refused = REFUSED.get(feature.name) if partitions > 1 else None
    if refused is not None:
        assert_refused(loop, feature, partitions, refused)
        return
    if feature.turns:
        faults.turns = Turns(feature.turns, lambda: loop.engine)
    workers = [Identity(f"w{n}", (n,) if feature.turns else ()) for n in range(feature.workers)]
    if feature.pinned:
        workers[-1] = Identity(workers[-1].name, pinned=feature.pinned)
    job = make_job(feature, partitions)
    outcome, expected = asyncio.run(loop.train(job, workers)), reference(number)
    if feature.delays_vary:
        assert sum(count for _, count in outcome.staleness) == SHARDS * STEPS
        outcome = outcome._replace(staleness=expected.staleness)
    assert outcome == expected
    assert outcome.state == "done", outcome.reason
    if feature.pinned:
        assert loop.computed[workers[-1].name] == set(feature.pinned)
        assert not loop.computed[workers[0].name] & set(feature.pinned)
    assert not faults.switches
    if recovery != "undisturbed":
        assert faults.done == {SAVED_AT, KILLED_AT}
        assert loop.deaths == (recovery == "worker")
    # Where delays are compensated for, the server has to know at which θ a worker computes.
    compensates = job.train.delay_compensation > 0
    assert loop.shared == {transport == "shm" and not compensates}


def test_only_features_are_refused() -> None:
    assert set(REFUSED) <= {feature.name for feature in FEATURES}


def assert_refused(loop: OneLoop, feature: Feature, partitions: int, message: str) -> None:
    try:
        job = make_job(feature, partitions)
    except JobError as error:
        reason = str(error)
    else:
        reason = asyncio.run(loop.train(job, [Identity("w")])).reason
    assert re.search(message, reason), f"{feature.name} is not refused as expected; it ended with: {reason!r}"
