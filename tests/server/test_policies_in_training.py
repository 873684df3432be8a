"""Quorum, bounded delay and a policy that changes, in whole trainings, against one process that does the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.events import Code, Contribution
from paramserver.server.snapshot import Snapshot
from paramserver.wire.errors import JobError
from paramserver.wire.job import Job
from paramserver.worker.learner import Learner
from server.inprocess import Training, at_once, gradient, slower

SHARDS, STEPS, RATE = 4, 30, 0.3


def make_job(steps: int = STEPS, **train: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": "builtin:linear", "shards": SHARDS, "batch_size": 32},
            "train": {"steps": steps, "dtype": "float64", **train},
            "optimizer": {"learning_rate": RATE},
        }
    )


def recorded(training: Training) -> list[ev.Apply]:
    """Return the updates as the engine asks for them; the list fills while the training runs."""
    applied: list[ev.Apply] = []
    handle = training.run.engine.handle

    def listen(event: ev.Event, now: float) -> list[ev.Effect]:
        effects = handle(event, now)
        applied.extend(effect for effect in effects if isinstance(effect, ev.Apply))
        return effects

    training.run.engine.handle = listen  # type: ignore[method-assign]
    return applied


def replay(job: Job, applied: list[ev.Apply]) -> dict[str, np.ndarray]:
    """Make the recorded updates in one process, every gradient at the version that it names."""
    learner = Learner(job)
    for shard in range(SHARDS):
        learner.survey(shard)
    learner.prepare(0, None)
    versions = [learner.initial(0)]
    for update in applied:
        total: dict[str, Any] = dict.fromkeys(versions[0], 0.0)
        for c in update.contributions:
            computed = gradient(learner, versions[c.version], c.shard, c.step)
            total = {name: total[name] + computed.samples * computed.arrays[name] for name in total}
        samples = sum(c.samples for c in update.contributions)
        versions.append({name: value - RATE * total[name] / samples for name, value in versions[-1].items()})
    return versions[-1]


def assert_same(theta: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(theta[name], value, rtol=1e-12, err_msg=name)


def test_a_quorum_does_not_wait_for_who_is_late_and_never_applies_what_comes_late() -> None:
    job = make_job(quorum=3)
    training = Training(job)
    applied = recorded(training)
    training.finish(at_once, at_once, at_once, slower(9))
    engine = training.run.engine
    assert (engine.phase, engine.version, engine.clocks) == ("done", STEPS, [STEPS] * SHARDS)
    assert all(len(update.contributions) == 3 for update in applied)
    assert training.rejected["superseded"] > 0
    assert set(training.rejected) == {"superseded"}
    contributions = [(c.shard, c.step) for update in applied for c in update.contributions]
    assert len(contributions) == len(set(contributions)) == 3 * STEPS
    assert all(c.step == c.version == update.version - 1 for update in applied for c in update.contributions)
    assert_same(training.theta, replay(job, applied))


def test_a_quorum_of_all_shards_has_the_bits_of_no_quorum() -> None:
    thetas = [Training(make_job(quorum=q)).finish(at_once, slower(3)).theta for q in (0, SHARDS)]
    for name, value in thetas[0].items():
        assert value.tobytes() == thetas[1][name].tobytes()


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_what_is_older_than_max_delay_is_computed_again_at_a_fresh_theta(mode: str) -> None:
    job = make_job(mode=mode, staleness=100, max_delay=4)
    training = Training(job)
    applied = recorded(training)
    training.finish(at_once, at_once, at_once, slower(40))
    assert training.run.engine.phase == "done"
    assert training.rejected["stale"] > 0
    assert set(training.rejected) == {"stale"}
    assert max(update.version - 1 - update.contributions[0].version for update in applied) <= 4
    steps = sorted((update.contributions[0].shard, update.contributions[0].step) for update in applied)
    assert steps == [(shard, step) for shard in range(SHARDS) for step in range(STEPS)], "each once, none is left out"
    assert_same(training.theta, replay(job, applied))


def test_without_a_bound_the_same_workers_are_later_than_that() -> None:
    training = Training(make_job(mode="async"))
    applied = recorded(training)
    training.finish(at_once, at_once, at_once, slower(40))
    assert max(update.version - 1 - update.contributions[0].version for update in applied) > 4
    assert not training.rejected


def test_the_policy_changes_in_the_middle_and_every_step_still_counts_once() -> None:
    """Through every mode, with workers of different speed, so that rounds are open and shards apart at the switches."""
    plan: dict[int, dict[str, str | int]] = {
        5: {"mode": "async", "max_delay": 6},
        40: {"mode": "ssp", "staleness": 1},
        70: {"mode": "sync"},
        75: {"mode": "async", "max_delay": 0},
        100: {"mode": "sync", "quorum": 3},
    }
    modes = []

    def switch(training: Training) -> None:
        due = [version for version in plan if training.run.engine.version >= version]
        for version in due:
            store = training.run.store
            assert store is not None
            before = store.theta.tobytes(), store.version
            training.run.set_policy(plan.pop(version))
            assert (store.theta.tobytes(), store.version) == before
            modes.append(training.run.job.train.mode)

    job = make_job(steps=40)
    training = Training(job, on_move=switch)
    applied = recorded(training)
    training.finish(at_once, slower(1), slower(5))
    assert modes == ["async", "ssp", "sync", "async", "sync"]
    assert training.run.engine.phase == "done"
    assert set(training.rejected) <= {"stale", "superseded"}
    names = [(c.shard, c.step) for update in applied for c in update.contributions]
    assert len(names) == len(set(names))
    assert_same(training.theta, replay(job, applied))
    assert Job.from_json(training.run.job.to_json()).train.quorum == 3
    assert training.run.submitted == job


def test_a_snapshot_after_a_switch_goes_on_under_the_new_policy() -> None:
    """Also where shards are apart when rounds begin, and the first rounds are of those that are behind."""
    kept: list[Snapshot] = []

    def switch(training: Training) -> None:
        if not kept and training.run.engine.version >= 20:
            training.run.set_policy({"mode": "sync"})
            kept.append(training.run.snapshot())

    Training(make_job(mode="async"), on_move=switch).finish(at_once, slower(7))
    (snapshot,) = kept
    assert snapshot.train is not None
    assert snapshot.train.mode == "sync"
    assert snapshot.engine is not None
    clocks = [shard.clock for shard in snapshot.engine.shards]
    assert max(clocks) - min(clocks) > 1
    restarted = Training(snapshot.job)
    restarted.run.restore(snapshot)
    applied = recorded(restarted)
    restarted.finish(at_once, at_once)
    assert (restarted.run.engine.phase, restarted.run.engine.clocks) == ("done", [STEPS] * SHARDS)
    rounds = [{c.step for c in update.contributions} for update in applied]
    assert rounds == [{step} for step in range(min(clocks), STEPS)]
    assert sum(len(update.contributions) for update in applied) == SHARDS * STEPS - sum(clocks)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mode": "bsp"}, "'train.mode' is 'bsp'"),
        ({"quorum": 5}, "train.quorum = 5 is above data.shards = 4"),
        ({"mode": "ssp", "staleness": -1}, "'train.staleness' is -1"),
    ],
)
def test_a_wrong_policy_is_refused_and_changes_nothing(changes: dict[str, Any], told: str) -> None:
    training = Training(make_job())
    before = training.run.job
    with pytest.raises(JobError, match=told):
        training.run.set_policy(changes)
    assert training.run.job == before


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"quorum": 5}, "quorum = 5 is above data.shards = 4: no round would ever close"),
        ({"quorum": -1}, "train.quorum"),
        ({"max_delay": -1}, "train.max_delay"),
        ({"delay_compensation": -0.1}, "train.delay_compensation"),
        ({"staleness_scaling": 1}, "train.staleness_scaling"),
        ({"max_dely": 1}, "did you mean"),
    ],
)
def test_a_job_that_cannot_work_is_refused(train: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match="(?i)" + told):
        make_job(**train)


def engine_in_training(**train: Any) -> Engine:
    """Return an engine whose four shards are being computed, by a worker each."""
    engine = Engine(make_job(**train))
    for number in range(SHARDS):
        engine.handle(ev.Joined(f"w{number}", frozenset({number})), 0.0)
    for shard, state in enumerate(engine.shards):
        engine.handle(ev.Pulled(f"w{shard}"), 0.0)
        engine.handle(ev.Surveyed(f"w{shard}", shard, state.epoch, 250), 0.0)
    engine.handle(ev.Pulled("w0"), 0.0)
    engine.handle(ev.Initialised("w0", 0, engine.shards[0].epoch), 0.0)
    for number in range(SHARDS):
        engine.handle(ev.Pulled(f"w{number}"), 0.0)
    assert engine.phase == "train"
    assert all(shard.busy for shard in engine.shards)
    return engine


def push(engine: Engine, shard: int, step: int = 0, version: int = 0) -> list[ev.Effect]:
    name = f"w{shard}"
    return engine.handle(
        ev.Pushed((Contribution(name, shard, engine.shards[shard].epoch, step, version, 32, 1.0),)), 0.0
    )


def test_who_is_late_for_a_round_is_told_and_goes_on_with_the_round_of_the_others() -> None:
    engine = engine_in_training(quorum=2)
    assert not any(isinstance(effect, ev.Apply) for effect in push(engine, 3))
    (wait, *_) = engine.waits(0.0)
    assert "1 contributions are in, 2 close the round" in wait.reason
    (update, *_) = (effect for effect in push(engine, 1) if isinstance(effect, ev.Apply))
    assert [c.shard for c in update.contributions] == [1, 3]
    assert engine.clocks == [1, 1, 1, 1]
    (refusal,) = push(engine, 0)
    assert isinstance(refusal, ev.Refuse)
    assert refusal.code is Code.SUPERSEDED
    assert refusal.reason == "the round of step 0 closed without shard 0; step 1 is expected"
    (grant,) = engine.handle(ev.Pulled("w0"), 0.0)
    assert isinstance(grant, ev.Grant)
    assert (grant.version, grant.assignments[0].step) == (1, 1)


def test_a_refusal_for_age_names_the_numbers_and_the_step_comes_again() -> None:
    engine = engine_in_training(mode="async", max_delay=1)
    push(engine, 0)
    push(engine, 1)
    (refusal,) = push(engine, 2)
    assert isinstance(refusal, ev.Refuse)
    assert refusal.code is Code.STALE
    assert refusal.reason == "the contribution of shard 2 is 2 versions old, max_delay is 1: compute it again"
    (grant,) = engine.handle(ev.Pulled("w2"), 0.0)
    assert isinstance(grant, ev.Grant)
    assert (grant.version, grant.assignments[0].step) == (2, 0)


def test_a_switch_takes_the_open_round_back_and_recalls_what_is_being_computed() -> None:
    engine = engine_in_training()
    push(engine, 0)
    push(engine, 2)
    assert (engine.clocks, engine.samples) == ([1, 0, 1, 0], 64)
    train = make_job(mode="async").train
    *taken_back, restage = engine.handle(ev.PolicyChanged(train), 0.0)
    assert restage == ev.Restage(train)
    # Who had pushed is told, or it would take the same work for a repetition.
    assert [(e.worker, e.shard, e.step, e.code) for e in taken_back if isinstance(e, ev.Refuse)] == [
        ("w0", 0, 0, ev.Code.STALE),
        ("w2", 2, 0, ev.Code.STALE),
    ]
    assert engine.rejected() == {}
    assert (engine.clocks, engine.samples, engine.version, +engine.staleness) == ([0] * 4, 0, 0, {})
    (refusal,) = push(engine, 1)
    assert isinstance(refusal, ev.Refuse)
    assert refusal.code is Code.STALE
    engine.handle(ev.Pulled("w1"), 0.0)
    (_, update, *_) = push(engine, 1)
    assert isinstance(update, ev.Apply)
    (grant,) = engine.handle(ev.Pulled("w0"), 0.0)
    assert isinstance(grant, ev.Grant)
    assert (grant.version, grant.assignments[0].step) == (1, 0)
