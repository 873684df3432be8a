"""An engine that is thrown away at any moment and restored from an earlier state: the same end as undisturbed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.enginestate import EngineState
from paramserver.wire.job import Job

SHARDS, STEPS, WORKERS = 3, 5, ("a", "b")


def make_job(mode: str, quorum: int = 0, **stop: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "t"},
            "data": {"source": "d", "shards": SHARDS, "batch_size": 4},
            "train": {"mode": mode, "steps": STEPS, "staleness": 1, "quorum": quorum},
            "stop": stop,
        }
    )


@dataclass
class World:
    """One engine, workers that answer what they are asked, and a θ that shows every contribution and its order."""

    job: Job
    engine: Engine
    now: float = 0.0
    theta: float = 1.0
    #: Work that was granted and not yet done, in order, by worker.
    granted: dict[str, list[tuple[int, ev.Assignment]]] = field(default_factory=dict)
    counted: list[tuple[int, int]] = field(default_factory=list)
    progress: dict[int, tuple[int, float, int]] = field(default_factory=dict)

    def feed(self, event: ev.Event) -> None:
        self.now += 1.0
        for effect in self.engine.handle(event, self.now):
            match effect:
                case ev.Grant(worker, version, assignments):
                    self.granted[worker] = [(version, assignment) for assignment in assignments]
                case ev.Apply(_, step, contributions):
                    for c in contributions:
                        self.counted.append((c.shard, c.step))
                        # Neither commutative nor associative: the order shows.
                        self.theta = math.fsum([self.theta * 0.9, c.loss]) / (1 + 0.01 * step)
                case ev.Progress(step, version, loss, samples):
                    self.progress[step] = (version, loss, samples)

    def join(self) -> None:
        for worker in WORKERS:
            self.feed(ev.Joined(worker))
            self.feed(ev.Pulled(worker))

    def act(self, worker: str) -> bool:
        """Let a worker do its next piece of work; False if it has none."""
        if not self.granted.get(worker):
            return False
        version, a = self.granted[worker].pop(0)
        match a.kind:
            case ev.Kind.SURVEY:
                self.feed(ev.Surveyed(worker, a.shard, a.epoch, 10 + a.shard))
            case ev.Kind.INITIAL:
                self.feed(ev.Initialised(worker, a.shard, a.epoch))
            case ev.Kind.GRADIENT:
                # In sync mode a gradient depends on θ; elsewhere on its name alone, so that the sum is exact.
                at = self.theta if self.job.train.mode == "sync" else 0.0
                loss = math.sin(a.shard * 7 + a.step) + 2 + 0.1 * at
                self.feed(ev.Pushed((ev.Contribution(worker, a.shard, a.epoch, a.step, version, 4, loss),)))
        if not self.granted.get(worker):
            self.feed(ev.Pulled(worker))
        return True


@dataclass
class Saved:
    """What a snapshot would hold, gone through JSON as on the disk."""

    text: str
    theta: float
    counted: list[tuple[int, int]]
    progress: dict[int, tuple[int, float, int]]


def save(world: World) -> Saved | None:
    state = world.engine.state(world.now)
    if state is None:
        return None
    return Saved(state.model_dump_json(), world.theta, list(world.counted), dict(world.progress))


def restore(world: World, saved: Saved | None) -> World:
    """Return a new world after a crash, with nothing but what was saved."""
    # Every start gives epochs above all that were given before.
    epoch, now = world.engine.epoch + 1000, world.now + 100.0
    if saved is None:
        return World(world.job, Engine(world.job, epoch), now)
    engine = Engine.restored(world.job, EngineState.model_validate_json(saved.text), epoch, now)
    return World(world.job, engine, now, saved.theta, counted=list(saved.counted), progress=dict(saved.progress))


def run(job: Job, choose: Callable[[int], int]) -> World:
    """Run to the end; `choose(n)` decides what happens next: 0 save, 1 crash, otherwise which worker acts."""
    world, saved, crashes = World(job, Engine(job)), None, 0
    world.join()
    while not world.engine.ended:
        choice = choose(12)
        if choice == 0:
            saved = save(world) or saved
        elif choice == 1 and crashes < 6:
            crashes += 1
            world = restore(world, saved)
            world.join()
        else:
            first = choice % len(WORKERS)
            assert world.act(WORKERS[first]) or world.act(WORKERS[1 - first]), "nobody has anything to do"
    return world


def undisturbed(job: Job) -> World:
    return run(job, lambda _: 2)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("stop", [{}, {"tolerance": 0.2, "patience": 2}, {"target_loss": 2.2}], ids=str)
def test_in_sync_a_crash_at_any_moment_leaves_no_trace(seed: int, stop: dict[str, Any]) -> None:
    job = make_job("sync", **stop)
    world, calm = run(job, random.Random(seed).randrange), undisturbed(job)
    assert world.theta == calm.theta
    assert world.counted == calm.counted
    assert world.progress == calm.progress
    end, calm_end = world.engine, calm.engine
    assert (end.phase, end.reason, end.version, end.clocks) == (
        calm_end.phase,
        calm_end.reason,
        calm_end.version,
        calm_end.clocks,
    )
    assert (end.samples, end.loss, end.staleness) == (calm_end.samples, calm_end.loss, calm_end.staleness)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_in_async_and_ssp_every_step_counts_once(seed: int, mode: str) -> None:
    job = make_job(mode)
    world = run(job, random.Random(seed).randrange)
    assert sorted(world.counted) == [(shard, step) for shard in range(SHARDS) for step in range(STEPS)]
    assert world.engine.version == SHARDS * STEPS
    assert world.engine.staleness.total() == SHARDS * STEPS
    assert world.engine.samples == 4 * SHARDS * STEPS
    assert sorted(world.progress) == list(range(1, STEPS + 1))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_with_a_quorum_every_round_is_applied_once(seed: int) -> None:
    world = run(make_job("sync", quorum=2), random.Random(seed).randrange)
    assert len(set(world.counted)) == len(world.counted)
    by_step = Counter(step for _, step in world.counted)
    assert sorted(by_step) == list(range(STEPS))
    assert min(by_step.values()) >= 2
    assert world.engine.version == STEPS
    assert world.engine.clocks == [STEPS] * SHARDS
    assert world.engine.samples == 4 * len(world.counted)


def test_what_was_promised_to_a_dead_server_is_refused_by_the_next() -> None:
    job = make_job("sync")
    world = World(job, Engine(job))
    world.join()
    while save(world) is None:
        assert world.act("a") or world.act("b")
    stale = next(a for grants in world.granted.values() for _, a in grants)
    again = restore(world, save(world))
    again.join()
    refusal = again.engine.admit("a", stale.shard, stale.epoch, stale.step)
    assert refusal is not None
    assert refusal.code is ev.Code.FENCED


def test_time_goes_on_where_it_stopped_and_pinned_shards_wait_for_their_worker() -> None:
    job = make_job("async", max_seconds=1000)
    world = World(job, Engine(job))
    world.feed(ev.Joined("a", None, frozenset({1})))
    world.feed(ev.Pulled("a"))
    while save(world) is None:
        assert world.act("a")
    elapsed = world.now - world.engine.train_started
    again = restore(world, save(world))
    assert again.now - again.engine.train_started == elapsed
    again.feed(ev.Joined("b"))
    assert [shard.holder for shard in again.engine.shards] == ["b", None, "b"]
    again.now = again.engine.train_started + 990
    again.feed(ev.Tick())
    assert again.engine.phase == "train"
    again.now = again.engine.train_started + 1000
    again.feed(ev.Tick())
    assert again.engine.phase == "done"


def test_before_the_first_theta_and_after_a_failure_there_is_nothing_to_restore() -> None:
    job = make_job("sync")
    world = World(job, Engine(job))
    assert world.engine.state(0.0) is None
    world.join()
    for worker in WORKERS:
        world.feed(ev.Failed(worker, "no data"))
    assert world.engine.phase == "failed"
    assert world.engine.state(world.now) is None
